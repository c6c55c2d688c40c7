"""Recorded outputs replayed without a model: they come back token by token, and tau is that of the
model's own run."""

import json

import pytest
import torch

import specdec
from experiments.measuring.replay import Replayed
from experiments.records import lookups as program
from specdec.models.vocabulary import tokenizer_digest
from specdec.plugins import build
from tests.models import prompts, shared

DRAFTERS = [
    {"name": "none"},
    {"name": "ngram"},
    {"name": "ngram", "tree": True},
    {"name": "suffix"},
    {"name": "suffix", "tree": False},
]


@pytest.mark.parametrize("drafter", DRAFTERS, ids=str)
def test_a_replay_is_the_run_that_was_recorded(drafter):
    target = specdec.load(shared("llama_gqa", torch.float64))
    for row in prompts(9, 1):
        options = {"drafter": drafter, "max_new_tokens": 30}
        out = specdec.generate(target, [row], **options)
        text = Replayed([*row, *out.tokens[0].tolist()], target.vocabulary)
        again = specdec.generate(text, [row], **options)
        assert again.tokens[0].tolist() == out.tokens[0].tolist()
        assert again.report.tau == out.report.tau


def test_what_looks_at_the_target_cannot_be_replayed():
    with pytest.raises(ValueError, match="replay lookups"):
        specdec.generate(Replayed([1, 2, 3], 4), [[1, 2]], drafter="recycle", max_new_tokens=1)
    with pytest.raises(ValueError, match="one row"):
        specdec.generate(Replayed([1, 2, 3], 4), [[1], [1]], drafter="none", max_new_tokens=1)
    for method in ("suffix_fanout", "recycle"):
        with pytest.raises(ValueError, match="looks at the target's laws"):
            program.drafter_of(method, None)
    with pytest.raises(ValueError, match=r"no method 'sufix'; there are: .*suffix"):
        program.drafter_of("sufix", None)


def test_edits_of_files_are_mostly_in_their_prompts(tmp_path, capsys):
    lines = [f"    result_{n} = compute(value, {n})\n" for n in range(12)]
    (tmp_path / "one.py").write_text("def compute_all(value):\n" + "".join(lines))
    (tmp_path / "short.py").write_text("x = 1\n")
    program.main(program.Replay(["ngram_chain", "suffix"], edits=str(tmp_path)))
    told = capsys.readouterr().out
    assert "1 outputs" in told
    taus = [float(line.split("|")[2].split()[0]) for line in told.splitlines()[2:4]]
    assert taus[1] > 4


def test_outputs_are_replayed_in_their_order_cold_and_warm(tmp_path, capsys):
    entry = {"category": "c", "given": [1, 2], "tokens": [5, 6, 7, 8, 9, 3], "tokenizer": None}
    (tmp_path / "outputs.jsonl").write_text((json.dumps(entry) + "\n") * 2)
    program.main(program.Replay(["suffix_store"], records=str(tmp_path)))
    row = next(line for line in capsys.readouterr().out.splitlines() if "suffix_store" in line)
    warm, cold = (float(row.split("|")[place].split()[0]) for place in (2, 4))
    assert warm > cold


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give one of"),
        ({"records": "a", "edits": "b"}, "give one of"),
        ({"edits": "."}, "nothing to replay"),
    ],
)
def test_what_cannot_be_replayed(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        program.recorded(program.Replay(**given))


def test_a_runs_outputs_are_what_its_method_put_out(tmp_path):
    """Also that a run writes them at all: they are asked for."""
    from experiments.measuring.outputs import read_outputs, write_outputs
    from experiments.measuring.play import Play
    from experiments.measuring.ways import Ours
    from experiments.prompts import Prompt

    target = specdec.load("demo")
    way = Ours(target, build("drafter", "suffix"))
    play = Play([Prompt(0, "import os\n", "code"), Prompt(1, "x = 1\n", "all")], target, None, 2, 6)
    played = list(play({"method": way}, 0))
    write_outputs(tmp_path / "outputs.jsonl", played, target)
    found = list(read_outputs(tmp_path))
    assert [one.tokens for one in found] == played[0].samples["method"].tokens
    assert [one.given for one in found] == list(played[0].given["method"])
    assert [one.text for one in found] == [target.tokenizer.decode(one.tokens) for one in found]
    assert [(one.prompt, one.category) for one in found] == [(0, "code"), (1, "all")]
    assert {one.tokenizer for one in found} == {tokenizer_digest(target)}
