"""The program that says what a folder of a head is, and under which reading it drafts best."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drafters.dflash import DFlashHead
from drafters.eagle3 import Eagle3Head
from experiments import inspect_head as program
from experiments.checkups import head_readings
from experiments.checkups.finding import GOOD, WRONG
from experiments.checkups.head_patient import (
    ANCHOR,
    AS_IT_IS,
    HIGHER,
    LOWER,
    OTHER_PROMPTS,
    Tau,
    reread,
    turned,
)
from experiments.terminal.options import start
from specdec import load
from tests.models import HEADS, head, lm


def inspected(capsys, folder, *more):
    """The exit status, and the JSON object that is printed."""
    given = [str(folder), "max_new_tokens=24", "device=cpu", "progress=false", "--json", *more]
    try:
        start(program.main, program.InspectHead, given)
        status = 0
    except SystemExit as end:
        status = end.code
    found = json.loads(capsys.readouterr().out)
    return status, {check["check"]: check for check in found["checks"]}


def saved(folder, made, **settings):
    """The same weights, in files that say something else."""
    reread(made, settings).save(folder, **made.notes)
    return folder


# ------------------------------------------------------------------------------- what the files say


@pytest.mark.parametrize("kind", HEADS)
def test_without_a_target_the_files_alone_are_told(kind, tmp_path, capsys):
    target = lm("llama_gqa")
    head(kind, target).save(tmp_path / "head")
    status, found = inspected(capsys, tmp_path / "head")
    assert status == 0
    assert list(found) == ["layout", "architecture", "reads", "guesses", "needs"]
    assert found["layout"]["numbers"]["kind"] == kind
    assert found["architecture"]["numbers"]["weights"] > 0
    assert found["needs"]["numbers"]["hidden_size"] == target.hidden_size
    assert f"hidden size 32 and {target.vocabulary} tokens" in found["needs"]["sentence"]


def test_a_block_is_told_with_its_mask_and_its_anchor(tmp_path, capsys):
    head("dflash", lm("llama_gqa")).save(tmp_path / "head")
    _, found = inspected(capsys, tmp_path / "head")
    numbers = found["guesses"]["numbers"]
    assert (numbers["block"], numbers["places"], numbers["sample_from_anchor"]) == (3, 4, False)
    assert "root's place guesses nothing" in found["guesses"]["sentence"]
    assert "layers 1, 2" in found["reads"]["sentence"]
    assert found["needs"]["numbers"]["least_layers"] == 3


def test_a_vocabulary_of_its_own_is_told(tmp_path, capsys):
    made = head("eagle3", lm("llama_gqa"))
    made.save(tmp_path / "head")
    _, found = inspected(capsys, tmp_path / "head")
    assert f"{len(made.d2t)} of the target's 97 tokens" in found["guesses"]["sentence"]


def test_who_it_was_trained_for_is_told(tmp_path, capsys):
    from experiments.export_head import export

    head("dspark", lm("qwen3")).save(tmp_path / "head")
    export(str(tmp_path / "head"), tmp_path / "out", "someone/model")
    _, found = inspected(capsys, tmp_path / "out")
    assert "trained for someone/model" in found["needs"]["sentence"]
    assert "speculators layout of vLLM, type dspark" in found["layout"]["sentence"]


# ---------------------------------------------------------------------------------------- readings


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "medusa"])
def test_a_bundled_head_is_best_as_it_is(kind, capsys):
    status, found = inspected(capsys, f"demo-{kind}", "target=demo", "limit=3")
    assert status == 0, found
    assert found["target"]["verdict"] == GOOD
    assert found["best reading"]["numbers"]["best"] == AS_IT_IS
    assert found["tau"]["numbers"]["tau"] > 1.5
    assert found["place of states"]["verdict"] == GOOD
    assert found["layer ids"]["applies"] is (kind == "eagle3")
    assert found["anchor"]["applies"] is found["prompts"]["applies"] is False


def test_layer_ids_that_are_one_lower_are_named(tmp_path, capsys):
    made = Eagle3Head.load("demo-eagle3")
    shifted = [tap - 1 for tap in made.taps]
    folder = saved(tmp_path / "head", made, taps=shifted)
    status, found = inspected(capsys, folder, "target=demo", "limit=4")
    assert status == 1
    one = found["layer ids"]
    assert (one["verdict"], one["numbers"]["best"]) == (WRONG, HIGHER)
    assert f"trained on are {list(made.taps)}, and its files say {shifted}" in one["sentence"]
    assert found["best reading"]["numbers"]["best"] == HIGHER
    assert "with all layer ids one higher" in found["best reading"]["sentence"]
    numbers = one["numbers"]
    assert numbers["first_guess_right"][HIGHER] > 1.1 * numbers["first_guess_right_as_it_is"]
    assert numbers["tau"][HIGHER] > numbers["tau_as_it_is"]


def test_layer_ids_that_the_target_does_not_have_are_read_one_lower(tmp_path, capsys):
    """The file as it is cannot be used; the other reading is tried all the same."""
    made = Eagle3Head.load("demo-eagle3")
    folder = saved(tmp_path / "head", made, taps=[tap + 1 for tap in made.taps])
    status, found = inspected(capsys, folder, "target=demo", "limit=3")
    assert status == 1
    assert found["tau"]["verdict"] == WRONG
    assert "reads layers" in found["tau"]["sentence"]
    assert found["layer ids"]["numbers"]["best"] == LOWER
    assert "as the files say it cannot be used here" in found["best reading"]["sentence"]


@pytest.fixture
def bigrams(tiny, tmp_path):
    """The tiny target without what its layers add: the next token depends on the last alone."""
    folder = shutil.copytree(tiny, tmp_path / "bigrams")
    model = AutoModelForCausalLM.from_pretrained(folder)
    silence(model.model.layers)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def silence(layers):
    for layer in layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def test_the_anchor_convention_is_named(bigrams, tmp_path, capsys):
    """This head knows the token behind the root at the root's place, and nothing else."""
    target = load(str(bigrams), device="cpu")
    made = DFlashHead.for_target(target, layers=1, block=3, taps=[1])
    silence(made.decoder.layers)
    with torch.no_grad():
        made.norm.weight.copy_(target.model.model.norm.weight)
    prompts = f"prompts={bigrams}/prompts.jsonl"
    told = (f"target={bigrams}", prompts, "temperature=0.9")
    wrong = saved(tmp_path / "wrong", made)
    status, found = inspected(capsys, wrong, *told)
    assert status == 1
    one = found["anchor"]
    assert (one["verdict"], one["numbers"]["best"]) == (WRONG, ANCHOR)
    assert "trained with sample_from_anchor true" in one["sentence"]
    right = saved(tmp_path / "right", made, **turned(made))
    status, found = inspected(capsys, right, *told)
    assert found["anchor"]["verdict"] == GOOD
    assert found["best reading"]["numbers"]["best"] == AS_IT_IS


def test_prompts_are_tried_with_the_template_and_without(tiny, tmp_path, capsys):
    folder = shutil.copytree(tiny, tmp_path / "chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for message in messages %}read {{ message['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}read {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    head("eagle", load(str(folder), device="cpu")).save(tmp_path / "head")
    prompts = f"prompts={folder}/prompts.jsonl"
    _, found = inspected(capsys, tmp_path / "head", f"target={folder}", prompts)
    assert found["prompts"]["applies"]
    assert list(found["prompts"]["numbers"]["tau"]) == [OTHER_PROMPTS]
    assert "as plain text" in found["prompts"]["sentence"]
    _, found = inspected(capsys, tmp_path / "head", f"target={folder}", prompts, "chat=false")
    assert "through the chat template" in found["prompts"]["sentence"]


def test_another_reading_must_be_clearly_better():
    own = Tau(2.0, (2.0, 2.1, 1.9, 2.0))
    assert head_readings.better(Tau(2.4, (2.4, 2.5, 2.3, 2.4)), own)
    assert not head_readings.better(Tau(2.08, (2.1, 2.1, 2.1, 2.0)), own)  # by less than a tenth
    assert not head_readings.better(Tau(2.4, (4.0, 1.9, 1.8, 1.9)), own)  # on one prompt alone
    assert not head_readings.better(Tau(1.06, (1.06,)), Tau(1.0, (1.0,)))
    assert not head_readings.better(Tau(refused="too deep"), own)
    often = Tau(2.05, (2.0, 2.1, 2.1, 2.0), right=0.7)
    assert head_readings.better(often, replace(own, right=0.6))
    assert not head_readings.better(often, replace(own, right=0.66))
    assert not head_readings.better(replace(own, right=0.7), replace(often, right=0.6))  # tau
    assert head_readings.better(own, Tau(refused="too deep"))


def test_a_head_of_another_target_is_refused_in_every_reading(tiny, capsys):
    prompts = f"prompts={tiny}/prompts.jsonl"
    status, found = inspected(capsys, "demo-eagle3", f"target={tiny}", prompts)
    assert status == 1
    assert "trained for a hidden size of 384, the target has 16" in found["target"]["sentence"]
    assert "hidden size of 384" in found["tau"]["sentence"]
    assert not found["layer ids"]["applies"]
    assert not found["place of states"]["applies"]
    assert found["best reading"]["sentence"] == (
        "No reading of the files can be used with this target."
    )


def test_a_turned_block_has_as_many_places():
    made = head("dflash", lm("llama_gqa"))
    other = reread(made, turned(made))
    assert (other.places, other.block, other.from_anchor) == (made.places, made.block + 1, True)
    assert turned(other) == {"from_anchor": False, "block": made.block}
    single = DFlashHead.for_target(lm("llama_gqa"), block=1)
    assert turned(reread(single, {"from_anchor": True})) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["./nowhere"], "no head at nowhere"),
        ([], "one folder of a head is inspected"),
        (["one", "two"], "got 2"),
        (["demo-eagle", "tmperature=1"], "did you mean temperature=..."),
        (["demo-eagle", "target=./nowhere"], "no model folder at nowhere"),
        (["demo-eagle", "temperature=-1", "target=demo"], "temperature must be a finite number"),
    ],
)
def test_bad_input_is_one_line(given, said):
    with pytest.raises(SystemExit) as end:
        start(program.main, program.InspectHead, given)
    assert said in str(end.value)


def test_sentences_are_printed_without_json(capsys):
    start(program.main, program.InspectHead, ["demo-medusa"])
    said = " ".join(capsys.readouterr().out.split())
    assert "layout good A head of kind medusa" in said
    assert "Nothing is wrong" in said
