"""Certificates must be able to fail: planted faults are refused, rules that only look wrong are not
(docs/mutants.md).

Faults are numbered as in that page. The known total variations are exact ones, computed apart from
this code.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from drafters.small_model import SmallModel
from experiments.certificates import exact, greedy, sampled, tiny
from experiments.certificates.statistics import SIZE
from experiments.certificates.tables import Tables, standard
from specdec.models.language_model import TransformersLM
from specdec.output import Emission
from specdec.plugins import build
from specdec.tree import TokenTree
from tests.mutants import drafts, engine, rules

FOUR = Tables(  # the tables of the known distances
    "four tokens",
    {
        (): [4, 3, 2, 1],
        (0,): [1, 5, 2, 2],
        (1,): [3, 1, 3, 3],
        (2,): [2, 2, 5, 1],
        (3,): [4, 1, 1, 4],
    },
    {
        (): [1, 2, 3, 4],
        (0,): [3, 2, 1, 4],
        (1,): [1, 4, 4, 1],
        (2,): [3, 3, 2, 2],
        (3,): [1, 2, 3, 4],
    },
)
BY_NAME = {tables.name: tables for tables in standard()}
FILTERED = BY_NAME["filtered"]
COOL = Tables("cool", FOUR.p, FOUR.q, sampling={"temperature": 0.5})
COLD = Tables("cold", FOUR.p, FOUR.q, sampling={"temperature": 0.0})
HALVES = Tables("halves", {(): [1, 1]}, {(): [3, 2]})
TREE = {"depth": 2, "branching": 2}
CHAIN = {"depth": 2, "branching": 1}

Make = Callable[[], Any]


def fault(
    name: str, tables: Tables, drafter: dict[str, Any], rule: Make, tv: str | None = None
) -> Any:
    return pytest.param(tables, drafter, rule, tv, id=name)


def right(name: str) -> Make:
    return lambda: build("verifier", name)


def drafting(tables: Tables, settings: dict[str, Any]) -> Any:
    if settings.get("width") == "adaptive":
        return drafts.SecondIfImprobable(tables.draft(), settings["fixed"])
    return drafts.Drafting(model=tables.draft(), **settings)


EXACT = [
    fault("1-bonus-without-temperature", COOL, CHAIN, rules.BonusWithoutTemperature),
    fault("2-correction-from-p", FOUR, CHAIN, rules.CorrectionFromP, "81/500"),
    fault("3-draw-again", HALVES, {"depth": 1, "draw": "topk"}, rules.DrawAgain, "1/4"),
    fault("4-longest-of-many-draws", FOUR, {**TREE, "draw": "topk"}, rules.LongestOfManyDraws),
    fault(
        "5-argmax-drafts-softmax-q",
        HALVES,
        {"depth": 1, "draws": drafts.MostProbable},
        right("token"),
        "1/3",
    ),
    fault(
        "5-top-k-with-q", FOUR, {**TREE, "draws": drafts.MostProbable}, right("rrs_wor"), "14/25"
    ),
    fault("6-beam-as-samples", FOUR, {**TREE, "draws": drafts.BestOfMore}, right("rrs_wor")),
    fault(
        "6-sorted-by-q",
        FOUR,
        {**TREE, "draws": drafts.SortedByQ},
        right("rrs_wor"),
        "229823/1587600",
    ),
    fault("6-reranked", FOUR, {**TREE, "change": drafts.reranked}, right("rrs_wor")),
    fault("6-reranked-traversal", FOUR, {**TREE, "change": drafts.reranked}, right("traversal")),
    fault("7-independent-ratio", FOUR, CHAIN, rules.IndependentRatio),
    fault("7-late-rejection", FOUR, CHAIN, rules.LateRejection),
    fault("8-argmax", FOUR, CHAIN, rules.Argmax),
    fault(
        "9-filter-order",
        FILTERED,
        CHAIN,
        lambda: rules.ChangedLaws("token", sampling=rules.FiltersInTheOtherOrder),
    ),
    fault("14-unsharpened-at-0", COLD, CHAIN, rules.UnsharpenedTest),
    fault("15-q-edited-by-a-sibling", FOUR, {**TREE, "draw": "wr"}, rules.ForgetsWhatWasRejected),
    fault(
        "18-replacement",
        FOUR,
        {**TREE, "draw": "wr", "draws": drafts.WithoutReplacement},
        right("rrs_wr"),
    ),
    fault(
        "merged-under-rrs_wr",
        FOUR,
        {**TREE, "draw": "wr", "change": drafts.merged},
        right("rrs_wr"),
        "3/112",
    ),
]


@pytest.mark.parametrize(("tables", "drafter", "rule", "tv"), EXACT)
def test_the_exact_certificate_refuses(tables, drafter, rule, tv):
    found = exact.exact(
        tables, lambda tables: drafting(tables, drafter), rule(), drafter.get("depth", 1) + 1
    )
    assert found.complete
    assert not found.lossless
    assert found.tv > 1e-3
    if tv is not None:
        assert found.tv == pytest.approx(float(Fraction(tv)), abs=1e-9)


def test_a_width_that_is_called_fixed_and_varies_is_refused_by_the_loop():
    """Under a rule that uses the joint law of all siblings it would bend the law (TV 0.086)."""
    settings = {"width": "adaptive", "fixed": True}
    with pytest.raises(ValueError, match="its width varies, and the drafter declares it fixed"):
        exact.exact(FOUR, lambda tables: drafting(tables, settings), right("ot")(), 2)


FALSE_ALARMS = [
    *(
        fault(f"point-mass-{rule}", FOUR, {**TREE, "draw": "topk"}, right(rule))
        for rule in ("rrs_wor", "traversal")
    ),
    *(
        fault(f"token-matching-{draw}", FOUR, {**TREE, "draw": draw}, right("naive"))
        for draw in ("wor", "topk", "hub")
    ),
    fault(
        "merged-under-rrs_wor",
        FOUR,
        {**TREE, "draw": "wr", "change": drafts.merged_as_wor},
        right("rrs_wor"),
    ),
    *(
        fault(f"adaptive-width-{rule}", FOUR, {"width": "adaptive", "fixed": False}, right(rule))
        for rule in ("rrs_wor", "traversal", "naive")
    ),
    fault("the-rule-that-faults-are-planted-in", FOUR, CHAIN, rules.TokenChain),
]


@pytest.mark.parametrize(("tables", "drafter", "rule", "tv"), FALSE_ALARMS)
def test_no_false_alarm(tables, drafter, rule, tv):
    found = exact.exact(
        tables, lambda tables: drafting(tables, drafter), rule(), drafter.get("depth", 1) + 1
    )
    assert found.lossless, found


# ------------------------------------------------------------------------------------------ sampled

TEMPERATURE, PROCESSOR = sampled.SETTINGS


def sample(
    setting: sampled.Setting,
    drafter: dict[str, Any],
    rule: Any,
    strength: float,
    chance: Any = None,
    lm: type[TransformersLM] = TransformersLM,
) -> sampled.Sampled:
    job = sampled.prepare(
        setting, lambda target, draft: SmallModel(draft, **drafter), rule, strength, chance, lm
    )
    return next(result for result in job.run() if result is not None)


def refused(result: sampled.Sampled) -> bool:
    return result.fit.p_value <= SIZE


@pytest.mark.parametrize(
    ("draws", "drafter", "rule", "strength"),
    [
        pytest.param(
            engine.OneNumberPerRound, {"depth": 2}, "token", 0.05, id="11-one-number-per-round"
        ),
        pytest.param(
            engine.SharedNoise, {"depth": 2}, "token", 0.2, id="11-noise-shared-with-drafts"
        ),
        pytest.param(engine.ByPosition, {"depth": 3}, "block", 0.2, id="11-keyed-by-position"),
    ],
)
def test_the_sampled_certificate_refuses_chances(draws, drafter, rule, strength):
    assert refused(sample(TEMPERATURE, drafter, rule, strength, engine.Changed(draws)))


@pytest.mark.parametrize(
    ("lm", "setting"),
    [
        pytest.param(engine.MaskOffByOne, TEMPERATURE, id="16-mask"),
        pytest.param(engine.KeepsTheWrongBranch, TEMPERATURE, id="16-cache-after-a-rollback"),
    ],
)
def test_the_sampled_certificate_refuses_engines(lm, setting):
    assert refused(sample(setting, {"depth": 2, "branching": [2, 1]}, "rrs_wor", 0.1, lm=lm))


@pytest.mark.parametrize(
    ("lm", "sound"),
    [(TransformersLM, True), (engine.PositionsOfRejectedNodes, False)],
    ids=["sound", "16-positions"],
)
def test_logits_after_a_rollback_are_those_of_plain_decoding(lm, sound):
    """16: positions that run on as if rejected nodes were still there. The laws of a model this
    small hardly feel it, so the logits themselves are compared."""
    model = lm(tiny.llama(8))
    prompt, root, drafted, following = (
        torch.tensor([[1, 2, 3, 4, 5, 6]]),
        7,
        [2, 4],
        torch.tensor([[3, 1]]),
    )
    with torch.inference_mode(), model.open(1, 24) as session:
        session.read(prompt, [6])
        session.score(TokenTree(torch.tensor([[root, *drafted]]), [[-1, 0, 0]]))
        session.keep(np.array([[2]]), [1])
        logits = session.score(TokenTree(following, [[-1, 0]])).logits[0, -1]
        plain = model.model(
            torch.cat([prompt, torch.tensor([[root, drafted[1]]]), following], 1)
        ).logits[0, -1]
    assert (float((logits - plain).abs().max()) < 1e-4) == sound


def test_a_model_whose_mask_is_off_by_one_is_refused_when_it_is_loaded():
    """16: the engine tries every model out."""
    with pytest.raises(ValueError, match="differ from plain decoding"):
        engine.MaskOffByOneProved(tiny.llama(4))


def test_10_penalties_computed_once():
    rule = rules.ChangedLaws("token", laws=rules.PenaltiesOnce)
    assert refused(sample(PROCESSOR, {"depth": 3}, rule, 0.05))


def test_17_drafts_past_the_end_of_text(monkeypatch):
    monkeypatch.setattr(Emission, "add", engine.past_the_end)
    result = sample(PROCESSOR, {"depth": 3}, "token", 0.05)
    assert result.fit.impossible > 0
    assert refused(result)


def test_the_same_engine_without_faults_passes():
    """What the tests above would see if nothing was planted."""
    assert not refused(
        sample(TEMPERATURE, {"depth": 3}, "block", 0.2, engine.Changed(engine.KeyedDraws))
    )
    assert not refused(sample(PROCESSOR, {"depth": 3}, rules.ChangedLaws("token"), 0.05))
    assert not refused(sample(TEMPERATURE, {"depth": 2, "branching": [2, 1]}, "rrs_wor", 0.1))


# ------------------------------------------------------------------------------------------- greedy


def decode(lm: type[TransformersLM], rule: Any) -> greedy.Greedy:
    target = lm(tiny.llama(97, hidden=32), name="tiny")
    draft = TransformersLM(tiny.similar(97, 0.05, hidden=32))
    prompts = [[5, 17, 3, 40, 8], [1, 2, 3], [60, 61, 62, 63]]
    return greedy.compare(
        target, prompts, SmallModel(draft, depth=3, branching=[2, 1, 1]), rule, 24
    )


@pytest.mark.parametrize(
    "lm", [engine.MaskOffByOne, engine.PositionsOfRejectedNodes, engine.KeepsTheWrongBranch]
)
def test_the_greedy_certificate_calls_wrong_engines_faulty(lm):
    found = decode(lm, "greedy")
    assert not found.passes
    assert any(one.kind == "fault" for one in found.divergences)


def test_the_greedy_certificate_passes_the_right_engine():
    found = decode(TransformersLM, "greedy")
    assert found.passes
    assert not found.divergences


def test_the_greedy_certificate_refuses_an_unsharpened_test():
    """14."""
    target, draft = (
        TransformersLM(model)
        for model in (tiny.llama(97, hidden=32), tiny.similar(97, 0.5, hidden=32))
    )
    found = greedy.compare(
        target,
        [[5, 17, 3, 40, 8], [1, 2, 3]],
        SmallModel(draft, depth=3),
        rules.UnsharpenedTest(),
        24,
    )
    assert not found.passes
