"""`specdec "def read_csv("`: its options, and how it ends where it cannot go on."""

import os
import re
import sys

import pytest
import torch

from specdec import __main__ as command
from specdec import requests

PROMPT = "def read ( path )"
SHORT = ["--drafter", "none", "--max-new-tokens", "4"]


@pytest.fixture
def calls(monkeypatch):
    """What each run was asked for."""
    asked, prepare = [], requests.prepare

    def noted(target, prompts, **options):
        asked.append({"target": target, **options})
        return prepare(target, prompts, **options)

    monkeypatch.setattr(requests, "prepare", noted)
    return asked


def texts(tiny, capsys, *arguments: str) -> str:
    """What is printed of the continuation."""
    fixed = [PROMPT, "--target", str(tiny), "--drafter", "ngram", "--max-new-tokens", "12"]
    assert command.main([*fixed, *arguments]) == 0
    return capsys.readouterr().out.removeprefix(PROMPT).partition("\n\ntau")[0]


def test_options_of_the_law(tiny, capsys, calls):
    """top-k 1 and a small top-p leave the best token alone, which is greedy decoding."""
    greedy = texts(tiny, capsys)
    hot = ["--temperature", "5", "--seed", "3"]
    assert texts(tiny, capsys, *hot) != greedy
    assert texts(tiny, capsys, *hot, "--top-k", "1") == greedy
    assert texts(tiny, capsys, *hot, "--top-p", "0.01") == greedy
    assert [(call["top_k"], call["top_p"]) for call in calls[-4:]] == [(1, None)] * 2 + [
        (None, 0.01)
    ] * 2


def test_stop_strings(tiny, capsys):
    whole = texts(tiny, capsys).split()
    word = next(word for word in whole[2:] if word not in whole[:2])
    ended = texts(tiny, capsys, "--stop", "no such word", "--stop", word).split()
    assert ended == whole[: whole.index(word)]


def test_grammars_in_files(capsys, tmp_path):
    """Of the bundled target, which has an end of text."""
    schema, rules = tmp_path / "pair.json", tmp_path / "colours.lark"
    schema.write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}')
    rules.write_text('start: "red" | "green" | "blue"')
    for file, pattern in ((schema, r"\[[12], [12]\]"), (rules, "red|green|blue")):
        assert command.main(["x = ", "--drafter", "ngram", "--grammar", str(file)]) == 0
        said = capsys.readouterr().out.removeprefix("x = ").partition("\n\ntau")[0]
        assert re.fullmatch(pattern, said), said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rules.ebnf", "x", "--grammar takes a JSON schema in FILE.json or a Lark grammar in FILE"),
        ("broken.json", "{", "broken.json: Expecting property name"),
        ("list.json", "[]", "list.json: a JSON schema is a dictionary, or True for any JSON"),
        ("wrong.lark", "begin: x", "no grammar can be made of this Lark grammar: no start rule"),
        ("missing.json", None, "No such file or directory"),
    ],
)
def test_files_that_hold_no_grammar(tmp_path, capsys, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert command.main(["x = ", *SHORT, "--grammar", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_the_draft_model_goes_where_the_target_goes(tiny, capsys, calls):
    options = ["--device", "cpu", "--dtype", "float64", "--max-new-tokens", "4"]
    arguments = [PROMPT, "--target", str(tiny), "--drafter", f"small_model,model={tiny}", *options]
    assert command.main(arguments) == 0
    models = [calls[-1]["target"], calls[-1]["drafter"]["model"]]
    assert [model.dtype for model in models] == [torch.float64] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--top-p", "2"], "top_p must be in (0, 1]"),
        (["--top-k", "0"], "top_k (None is off) must be an integer >= 1"),
        (["--stop", ""], "stop must be non-empty strings"),
        (["--dtype", "float31"], "dtype must be a torch dtype"),
        (["--device", "nowhere"], "cannot be moved to device 'nowhere'"),
        (["--target", "./nowhere"], "no model folder at nowhere"),
        (["--drafter", "ngrm"], "unknown drafter 'ngrm'; did you mean 'ngram'?"),
        (["--seed", str(2**70)], "seed must be an integer"),
    ],
)
def test_what_cannot_be_is_one_line(tiny, capsys, arguments, said):
    assert command.main([PROMPT, "--target", str(tiny), *arguments]) == 2
    (line,) = [
        each for each in capsys.readouterr().err.splitlines() if each.startswith("specdec: ")
    ]
    assert said in line


def test_an_interruption_is_one_line(tiny, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "drafter_choice", interrupt)
    assert command.main([PROMPT, "--target", str(tiny)]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_a_reader_that_has_gone_is_no_error(tiny, capsys, monkeypatch):
    """... | head: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert command.main([PROMPT, "--target", str(tiny), *SHORT]) == 141
    assert "specdec: " not in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_one_line(tiny, capsys, monkeypatch):
    out = open("/dev/full", "w")  # noqa: SIM115 - closing it fails
    monkeypatch.setattr(sys, "stdout", out)
    assert command.main([PROMPT, "--target", str(tiny), *SHORT]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "specdec: No space left on device"
    os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    out.close()
