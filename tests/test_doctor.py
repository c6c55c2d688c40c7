"""The doctor: every check on a pair that is in order, and on one that is not."""

import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from drafters.eagle import EagleHead
from drafters.medusa import MedusaHeads
from drafters.small_model import SmallModel
from experiments import doctor as program
from experiments.checkups import acceptance, costs, fit, law, positions, text
from experiments.checkups.break_even import Times
from experiments.checkups.examine import CHECKS, examine
from experiments.checkups.finding import GOOD, NOTE, WRONG
from experiments.checkups.patient import Patient
from experiments.prompts import read
from experiments.study.schema import Sampling, Target
from experiments.terminal.options import start
from specdec import __main__ as shell
from specdec import load
from tests.strangers import IN_ORDER, write
from verifiers.naive import Naive

DRAFTER = "tests.test_doctor"


@contextmanager
def no_bar(name, total):
    yield lambda note="": None


@pytest.fixture
def patient(tiny):
    """`patient({"name": ...}, target=FOLDER, temperature=..., ...)`."""

    def make(
        drafter=None,
        target=tiny,
        temperature=0.9,
        verifier="auto",
        tokens=24,
        layers=0,
        dtype=None,
        **options,
    ):
        verifier = {"name": verifier} if isinstance(verifier, str) else verifier
        return Patient(
            Target(str(target), device="cpu", dtype=dtype, extra_layers=layers),
            drafter or {"name": "small_model", "model": str(tiny), "depth": 3},
            verifier,
            Sampling(temperature),
            read("jsonl", str(tiny / "prompts.jsonl")),
            tokens,
            no_bar,
            **options,
        )

    return make


@pytest.fixture
def ours(monkeypatch):
    """The classes of this file as plug-ins."""
    monkeypatch.setenv("SPECDEC_ALLOW", "tests")
    return lambda name, **arguments: {"_target_": f"{DRAFTER}.{name}", **arguments}


@pytest.fixture
def changed(tiny, tmp_path):
    """`changed(model=..., tokenizer=...)`: a copy of the tiny target, edited by these functions."""

    def make(name, model=None, tokenizer=None, vocabulary=None):
        folder = shutil.copytree(tiny, tmp_path / name)
        if model is not None:
            one = AutoModelForCausalLM.from_pretrained(folder)
            with torch.no_grad():
                model(one)
            one.save_pretrained(folder)
        if tokenizer is not None:
            one = AutoTokenizer.from_pretrained(folder)
            tokenizer(one)
            one.save_pretrained(folder)
        if vocabulary is not None:
            path = folder / "tokenizer.json"
            content = json.loads(path.read_text())
            vocabulary(content["model"]["vocab"])
            path.write_text(json.dumps(content))
        return folder

    return make


def swapped(vocabulary):
    """Two words change their ids."""
    one, other = list(vocabulary)[1:3]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


# ------------------------------------------------------------------------- vocabulary and template


def test_a_draft_model_of_the_same_tokens_is_good(patient):
    found = fit.vocabulary(patient())
    assert (found.verdict, found.applies) == (GOOD, True)


def test_a_draft_model_of_another_tokenizer_is_wrong_and_nothing_else_is_asked(patient, changed):
    other = changed("other", vocabulary=swapped)
    findings = list(examine(patient({"name": "small_model", "model": str(other)})))
    assert [found.check for found in findings] == [check.name for check in CHECKS]
    assert findings[0].verdict == WRONG
    assert "another tokenizer" in findings[0].sentence
    assert not any(found.applies for found in findings[1:])
    assert all("the drafter refuses this target" in found.sentence for found in findings[2:])


def test_a_head_of_another_target_is_wrong(patient):
    found = fit.vocabulary(patient({"name": "eagle"}))  # that of the demo target
    assert found.verdict == WRONG
    assert "trained for a hidden size of 384, the target has 16" in found.sentence


def test_a_drafter_without_tokens_of_its_own_has_no_vocabulary(patient):
    found = fit.vocabulary(patient({"name": "ngram"}))
    assert (found.verdict, found.applies) == (NOTE, False)


def test_a_tokenizer_that_is_larger_than_the_model_is_wrong(patient, changed):
    larger = changed("larger", vocabulary=lambda words: words.update(more=len(words)))
    found = fit.vocabulary(patient({"name": "ngram"}, target=larger))
    assert found.verdict == WRONG
    assert found.numbers["highest"] == found.numbers["vocabulary"]


TURNS = (
    "{% for message in messages %}read {{ message['content'] }} END {% endfor %}"
    "{% if add_generation_prompt %}read {% endif %}"
)


def with_template(text):
    def change(tokenizer):
        tokenizer.chat_template = text

    return change


@pytest.mark.parametrize(
    ("end", "ids", "verdict", "said"),
    [
        ("<end>", [0], GOOD, "and so does the target"),
        ("<end>", [3], WRONG, "ends an answer with '<end>' (id 0)"),
        (")", [0], NOTE, "no special token"),
    ],
)
def test_templates_end_where_the_target_ends(patient, changed, end, ids, verdict, said):
    folder = changed("chat", tokenizer=with_template(TURNS.replace("END", end)))
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": ids}))
    found = fit.template(patient({"name": "ngram"}, target=folder))
    assert found.verdict == verdict, found
    assert said in found.sentence


def test_a_template_that_begins_twice_is_wrong(patient, changed):
    def twice(tokenizer):
        tokenizer.bos_token = "<end>"
        tokenizer.chat_template = "<end> <end> " + TURNS.replace("END", "<end>")

    found = fit.template(patient({"name": "ngram"}, target=changed("twice", tokenizer=twice)))
    assert found.verdict == WRONG
    assert "twice" in found.sentence


def test_without_a_template_nothing_is_said(patient):
    assert not fit.template(patient()).applies


# ------------------------------------------------------------------------------------------- law


class Liar(Naive):
    """Says that it is lossless, and its bonus is the last drafted token."""

    def verify(self, trees, p, chance):
        found = super().verify(trees, p, chance)
        return type(found)(found.path, found.num_accepted, found.bonus * 0 + trees.tokens[:, -1])


def test_a_sound_pair_keeps_the_law(patient):
    one = patient()
    assert law.tables(one).verdict == GOOD
    found = law.samples(one)
    assert found.verdict == GOOD, found
    assert found.numbers["p"] > law.ALPHA
    assert law.greedy(one).verdict == GOOD


def test_a_wrong_rule_is_found_three_times(patient, ours):
    one = patient(verifier=ours("Liar"))
    for check in (law.tables, law.samples, law.greedy):
        assert check(one).verdict == WRONG, check
    assert law.tables(one).numbers["tv"] > 0.1
    assert law.greedy(one).numbers["faults"] > 0


def test_a_lossy_rule_is_a_note(patient):
    one = patient(verifier="typical", allow_lossy=True)
    assert law.tables(one).verdict == NOTE
    assert "lossy by its own contract" in law.tables(one).sentence
    assert not law.samples(one).applies


def test_at_temperature_0_tables_are_greedy_and_samples_do_not_apply(patient):
    one = patient(temperature=0.0)
    assert law.tables(one).verdict == GOOD
    assert not law.samples(one).applies


def test_ties_are_counted(patient, changed):
    """Every token has a twin with the same logits."""

    def twins(model):
        head = model.get_output_embeddings().weight
        half = len(head) // 2
        head[half : 2 * half] = head[:half]

    found = law.greedy(patient({"name": "ngram"}, target=changed("twins", model=twins)))
    assert found.verdict in (NOTE, WRONG)  # wrong where most outputs part at ties
    assert found.numbers["faults"] == 0
    assert found.numbers["near_ties"] > 0.9 * found.numbers["positions"]


# ------------------------------------------------------------------------------------------ loops


def test_a_loop_is_wrong_and_a_text_is_good(patient, changed):
    def stuck(model):
        """The token never depends on anything."""
        model.model.norm.weight.zero_()

    looping = changed("stuck", model=stuck)
    found = text.loops(patient({"name": "ngram"}, target=looping, temperature=0.0))
    assert found.verdict == WRONG
    assert found.numbers["distinct_4grams"] < 0.1
    assert text.loops(patient({"name": "ngram"}, target=looping, temperature=1.0)).verdict == GOOD


def test_some_loops_are_a_note_with_the_tau_of_the_others(patient):
    one = patient({"name": "ngram"}, temperature=1.0)
    looping, *others = one.played
    looping.samples["method"] = replace(looping.samples["method"], tokens=[[1] * 40])
    found = text.loops(one)
    assert found.verdict == NOTE
    assert found.numbers["looping"] == 1 + sum(
        (text.distinct_ngrams(other.samples["method"].tokens) or 1) < text.FINE for other in others
    )
    assert found.numbers["tau_of_the_others"] is not None


# -------------------------------------------------------------------------- acceptance and places


class Misfed(SmallModel):
    """Its first law belongs to other tokens."""

    def _read_new(self, state):
        return super()._read_new(state).roll(5, -1)


def test_a_draft_model_that_is_misfed_is_wrong(patient, ours, tiny):
    assert acceptance.acceptance(patient()).verdict == GOOD
    found = acceptance.acceptance(patient(ours("Misfed", model=str(tiny), depth=2)))
    assert found.verdict == WRONG
    assert found.numbers["promised"] == pytest.approx(1)
    assert found.numbers["measured"] < 0.5


def head_for(tiny, accuracies):
    head = MedusaHeads.for_target(load(str(tiny)), heads=2, tied=True)
    head.notes = {"accuracies": accuracies, "temperature": 0.9}
    return {"name": "medusa", "heads": head, "branching": [2, 1]}


@pytest.mark.parametrize(
    ("promised", "verdict", "said"),
    [(0.01, GOOD, "training measured 0.01"), (1.0, WRONG, "less than half")],
)
def test_heads_are_held_to_what_training_measured(patient, tiny, promised, verdict, said):
    """An untrained head guesses nearly at random."""
    found = acceptance.acceptance(patient(head_for(tiny, [[promised] * 3] * 2)))
    assert found.verdict == verdict, found
    assert said in found.sentence


def test_a_head_that_guesses_from_the_wrong_place_is_wrong(patient, tiny):
    """This one is the LM head itself: right about the next token, and asked for the one after."""
    found = positions.states(patient(head_for(tiny, [[0.1] * 3] * 2)))
    assert found.verdict == WRONG
    assert "one place later" in found.sentence
    assert found.numbers["top1"]["1"] > 0.99


def of_the_demo(drafter):
    prompts = read("jsonl", "demo", limit=3)
    where = Target("demo", device="cpu")
    return Patient(where, {"name": drafter}, {"name": "auto"}, Sampling(0.6), prompts, 24, no_bar)


def test_a_trained_head_that_is_read_one_place_off_is_wrong(monkeypatch):
    assert positions.states(of_the_demo("eagle")).verdict == GOOD
    monkeypatch.setattr(EagleHead, "fuse", lambda head, taps: taps[:, :, -1].roll(1, 1))
    found = positions.states(of_the_demo("eagle"))
    assert found.verdict == WRONG
    assert "one place later" in found.sentence


def test_a_head_of_the_demo_is_in_its_place():
    one = of_the_demo("medusa")
    assert positions.states(one).verdict == GOOD
    assert fit.vocabulary(one).verdict == GOOD
    assert acceptance.acceptance(one).verdict in (GOOD, NOTE)


def test_drafts_that_are_one_place_off_are_wrong(patient, tmp_path, monkeypatch):
    """It drafts the last committed token again and again."""
    write(tmp_path, "theirs", IN_ORDER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPECDEC_ALLOW", "theirs")
    assert positions.drafts(patient()).verdict == GOOD
    found = positions.drafts(patient({"name": "echo"}, tokens=48))
    assert found.verdict == WRONG
    assert "1 place(s) earlier" in found.sentence


def test_what_drafts_nothing_has_no_acceptance(patient):
    one = patient({"name": "none"})
    for check in (acceptance.acceptance, positions.drafts, positions.states, costs.pays):
        assert not check(one).applies


# ------------------------------------------------------------------------------------------ costs


class Sleepy(Naive):
    def verify(self, trees, p, chance):
        time.sleep(0.01)
        return super().verify(trees, p, chance)


def test_a_slow_host_and_dispatch_are_noted(patient, ours):
    found = costs.where_the_time_goes(patient(verifier=ours("Sleepy")))
    assert found.verdict == NOTE
    assert "the host takes much of it" in found.sentence
    assert "dispatch takes most of a pass" in found.sentence  # the target is tiny
    assert found.numbers["shares"]["verify"] > 0.3
    assert sum(found.numbers["shares"].values()) == pytest.approx(1)


def test_time_is_good_where_the_models_take_it(patient, monkeypatch):
    monkeypatch.setattr(costs, "HOST", 1.0)
    monkeypatch.setattr(costs, "DISPATCH", 1.0)
    monkeypatch.setattr(costs, "STEEP", 99.0)
    assert costs.where_the_time_goes(patient()).verdict == GOOD


@pytest.mark.parametrize(
    ("has", "dtype", "emulated"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "bfloat16", True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, "bfloat16", False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "float32", False),
        ({"architecture": "aarch64"}, "bfloat16", False),  # it does not say
    ],
)
def test_bfloat16_that_a_processor_emulates_is_noted(patient, monkeypatch, has, dtype, emulated):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    found = costs.where_the_time_goes(patient(dtype=dtype))
    assert ("dtype=float32 may be much faster" in found.sentence) == emulated
    assert found.verdict == NOTE or not emulated


class Slow(SmallModel):
    """Drafting costs many passes of the tiny target."""

    def propose(self, state, chance):
        time.sleep(0.03)
        return super().propose(state, chance)


def test_a_drafter_that_costs_too_much_does_not_pay(patient, ours, tiny):
    found = costs.pays(patient(ours("Slow", model=str(tiny), depth=2)))
    assert found.verdict == WRONG
    assert found.sentence.startswith("It does not pay: 0.")
    assert "It would pay with" in found.sentence
    assert found.numbers["tau"] < found.numbers["tau_needed"]
    assert found.numbers["slower_target_needed"] > 1


def test_the_same_drafts_pay_where_the_target_is_slow(patient):
    found = costs.pays(patient(layers=60))
    assert found.verdict == GOOD, found
    assert found.numbers["speedup"]["low"] > 1


def test_what_would_make_it_pay():
    """Plain: 10 ms a token. A round: 4 passes of 5 ms, one of 11, 1 on the host; tau 2."""
    times = Times(plain=0.010, round=0.032, drafting=0.020, score=0.011, tau=2.0, depth=4)
    assert times.speedup == pytest.approx(0.625)
    assert times.tau_needed == pytest.approx(3.2)
    rate = times.rate_needed
    assert sum(rate**k for k in range(5)) == pytest.approx(3.2)
    assert times.drafting_needed == pytest.approx(0.008)  # 2 tokens in 20 ms, 12 of them taken
    factor = times.slower_target_needed
    assert 2.0 * factor * 0.010 == pytest.approx(factor * 0.011 + 0.021)
    depth, predicted = times.best_depth([0.8, 0.2, 0.1, 0.0])
    assert (depth, predicted) == (1, pytest.approx(1.8 * 0.010 / 0.017))
    said = costs.remedies(times, depth, predicted)
    assert said == (
        "It would pay with an acceptance rate of 0.77 at a depth of 4; or with drafting that takes "
        "0.80 of a plain token's time in a round (now 2.00); or with a target 2.3 times as slow; "
        "or with a depth of 1 (about 1.06x)."
    )


def test_where_nothing_makes_it_pay_it_says_so():
    times = Times(plain=0.010, round=0.090, drafting=0.020, score=0.060, tau=2.0, depth=4)
    assert times.rate_needed is None
    assert times.drafting_needed < 0
    assert times.slower_target_needed is None
    assert times.best_depth([0.5, 0.2]) == (0, 1.0)
    assert costs.remedies(times, 0, 1.0) == (
        "No acceptance rate is high enough at a depth of 4. Even drafts that cost nothing would "
        "not pay."
    )


# ---------------------------------------------------------------------------------------- program


def arguments(tiny, *more):
    fixed = [f"target={tiny}", f"prompts={tiny}/prompts.jsonl", "max_new_tokens=24", "device=cpu"]
    return [*fixed, "progress=false", *more]


def ended(call) -> int:
    try:
        call()
    except SystemExit as end:
        return end.code
    return 0


def test_json_is_one_object_and_the_exit_status_is_1_if_something_is_wrong(tiny, capsys, changed):
    other = changed("other", vocabulary=swapped)
    given = arguments(tiny, f"drafter=small_model,model={other}", "--json")
    assert ended(lambda: start(program.main, program.Doctor, given)) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["wrong"] == 1
    assert [check["check"] for check in found["checks"]] == [check.name for check in CHECKS]
    assert {"verdict", "sentence", "numbers", "applies", "seconds"} <= set(found["checks"][0])


def test_the_shell_prints_sentences_and_ends_with_0(tiny, capsys, monkeypatch):
    monkeypatch.setattr("experiments.checkups.examine.CHECKS", CHECKS[:3])
    assert shell.main(["doctor", *arguments(tiny, "drafter=ngram")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "vocabulary note Does not apply" in said
    assert "law on tables good" in said
    assert "Nothing is wrong" in said


def test_what_a_plugin_raises_is_a_finding(patient, monkeypatch):
    one = patient({"name": "ngram"})
    monkeypatch.setattr(
        type(one.method), "propose", lambda *_: (_ for _ in ()).throw(RuntimeError("no luck"))
    )
    findings = {found.check: found for found in examine(one)}
    assert findings["loops"].verdict == WRONG
    assert "RuntimeError: no luck" in findings["loops"].sentence
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RuntimeError, match="no luck"):
        list(examine(one))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["drafter=ngrm"], "did you mean 'ngram'"),
        (["drafter=small_model,dpth=3"], "no argument 'dpth'"),
        (["target=./nowhere"], "no model folder at nowhere"),
        (["temprature=1"], "did you mean temperature=..."),
        (["temperature=-1"], "temperature must be a finite number >= 0"),
        (["limit=0"], "prompts.limit must be >= 1"),
        (["max_new_tokens=0"], "max_new_tokens must be an integer >= 1"),
        (["drafter=ngram", "verifier=hub"], "hub"),
        (["drafter=ngram", "verifier=typical"], "allow_lossy"),
    ],
)
def test_bad_input_is_one_line(tiny, given, said):
    with pytest.raises(SystemExit) as end:
        start(program.main, program.Doctor, arguments(tiny, *given))
    assert said in str(end.value)


@pytest.mark.slow
def test_nothing_is_wrong_with_the_demo_pair(capsys):
    ended(lambda: start(program.main, program.Doctor, ["--json", "progress=false"]))
    found = json.loads(capsys.readouterr().out)
    verdicts = {check["check"]: check["verdict"] for check in found["checks"]}
    assert WRONG not in {verdicts[name] for name in list(verdicts)[:-1]}  # it pays or not: machines
