"""A verdict as one function says what the rule says: tokens, paths, counts, and what is wrong with
a draft or a law.

The compiler is replaced by the function itself, except where tests/test_compiled.py compiles.
"""

import numpy as np
import pytest
import torch

import specdec
from drafters.small_model import SmallModel
from specdec import Keyed
from specdec import verdicts as whole
from specdec.chance import Sites, numbers_by_node
from specdec.models import compiled
from specdec.models.language_model import TransformersLM
from specdec.state import State
from tests import models

PROMPTS = models.prompts(9, 5, 14)
CHAIN = {"depth": 3}


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    """Recorded, without a compiler."""
    monkeypatch.setattr(compiled, "built", lambda function, options: function)
    monkeypatch.setattr(whole, "_made", {})


@pytest.fixture(scope="module")
def pair():
    model = models.build("llama_gqa", torch.float64)
    return model, models.similar(model)


def decoded(pair, rule, temperature, compile=True, shape=CHAIN, **options):
    model, small = pair
    target = TransformersLM(model, compile=compile)
    options = {"max_new_tokens": 12, "seats": 2, "ignore_eos": True, **options}
    return specdec.generate(
        target,
        PROMPTS,
        drafter=SmallModel(TransformersLM(small, compile=False), **shape),
        verifier=rule,
        temperature=temperature,
        allow_lossy=True,
        **options,
    )


def seen(out):
    """Tokens, and of each round the paths of its rows and what the rule counts."""
    rounds = [
        (
            [path[path >= 0].tolist() for path in step.path[step.live]],
            {name: values[step.live].tolist() for name, values in step.counts.items()},
        )
        for step in out.steps
    ]
    return [row.tolist() for row in out.tokens], rounds


def verdicts(out):
    return [each[1:3] for each in out.report.compiled if each.model == "verdict"]


RULES = [
    *(("wor", rule, 0.9) for rule in ("token", "block", "naive", "traversal", "rrs_wor")),
    *(("wr", rule, 0.9) for rule in ("rrs_wr", "kseq")),
    *(("topk", rule, 0.9) for rule in ("naive", "block", "typical")),
    *(("topk", rule, 0.0) for rule in ("greedy", "naive")),
]


@pytest.mark.parametrize(("draw", "rule", "temperature"), RULES)
def test_every_rule_says_the_same(draw, rule, temperature, pair):
    shape = {**CHAIN, "draw": draw}
    out = decoded(pair, rule, temperature, shape=shape)
    assert verdicts(out) == [(4, 2)]
    assert seen(out) == seen(decoded(pair, rule, temperature, compile=False, shape=shape))
    assert verdicts(decoded(pair, rule, temperature, shape=shape)) == []  # it is there


def test_plain_rounds_are_one_function_too(pair):
    target = TransformersLM(pair[0], compile=True)
    options = {"drafter": "none", "temperature": 0.9, "max_new_tokens": 8, "ignore_eos": True}
    out = specdec.generate(target, PROMPTS, **options)
    assert verdicts(out) == [(1, 3)]
    expected = specdec.generate(TransformersLM(pair[0]), PROMPTS, **options)
    assert seen(out) == seen(expected)


@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_filters_are_inside(filters, pair):
    out = decoded(pair, "auto", 0.9, **filters)
    assert verdicts(out) == [(4, 2)]
    assert seen(out) == seen(decoded(pair, "auto", 0.9, compile=False, **filters))


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.2},
        {"rule": "naive", "chance": specdec.Coupled(0)},
        {"shape": {"depth": 2, "branching": 2}},
        {"shape": {"depth": 2, "stop": {"threshold": 0.99}}},
    ],
    ids=["penalty", "coupled", "tree", "stop"],
)
def test_other_rounds_are_judged_as_they_are(options, pair):
    options = {"rule": "auto", **options}
    out = decoded(pair, temperature=0.9, **options)
    assert verdicts(out) == []
    assert seen(out) == seen(decoded(pair, temperature=0.9, compile=False, **options))


def test_settings_of_a_rule_are_part_of_it(pair):
    for epsilon in (0.1, 0.6):
        rule = specdec.plugins.build("verifier", {"name": "typical", "epsilon": epsilon})
        shape = {**CHAIN, "draw": "topk"}
        out = decoded(pair, rule, 0.9, shape=shape)
        assert verdicts(out) == [(4, 2)]
        assert seen(out) == seen(decoded(pair, rule, 0.9, compile=False, shape=shape))


def test_a_verdict_that_cannot_be_recorded(pair, monkeypatch):
    def looks(*arguments):
        raise RuntimeError("it looks at a value")

    monkeypatch.setattr(compiled, "recorded", looks)
    with pytest.warns(UserWarning, match=r"verdicts of Block cannot be compiled \(RuntimeError"):
        out = decoded(pair, "block", 0.9)
    assert verdicts(out) == []
    assert seen(out) == seen(decoded(pair, "block", 0.9, compile=False))
    assert verdicts(decoded(pair, "block", 0.9)) == []  # said once


def test_laws_that_are_none_are_reported(pair, monkeypatch):
    """Also in rounds whose verdict is one function."""
    score, calls = TransformersLM.open, []

    def opened(self, *arguments, **options):
        session = score(self, *arguments, **options)
        if self.compile:
            plain = session.score

            def broken(tree, start=0, taps=()):
                scores = plain(tree, start, taps)
                calls.append(tree)
                if len(calls) == 3:
                    scores.logits[0, 0] = torch.nan
                return scores

            session.score = broken
        return session

    monkeypatch.setattr(TransformersLM, "open", opened)
    with pytest.raises(ValueError, match=r"logits in row 0 .* are NaN"):
        decoded(pair, "block", 0.9)
    assert whole._made


def test_numbers_by_node_are_those_of_the_draws():
    state = State.of([[1, 2], [3, 4, 5]], specdec.Sampling(1.0))
    chance = Keyed(7).round(state)
    found = numbers_by_node(chance, 4, ("accept", "bonus"))
    rows = torch.arange(2).repeat_interleave(4)
    nodes = torch.arange(4).repeat(2)
    zero = torch.zeros_like(rows)
    at = Sites(rows, nodes, zero, nodes, zero == 0)
    for purpose, u in zip(("accept", "bonus"), found, strict=True):
        expected = Keyed(7).round(state).uniform(at, 1, purpose).view(2, 4)
        assert np.array_equal(u.numpy(), expected.numpy())
