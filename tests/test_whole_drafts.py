"""A draft as one function gives the tree that passes and draws one by one give: tokens, q, parents.

The compiler is replaced by the function itself; what is tested is the recorded function.
`tests/test_compiled.py` runs every drafter's golden record through the same code, and compiles.
"""

import warnings

import pytest
import torch

import specdec
from drafters.small_model import SmallModel
from specdec.drafting import whole
from specdec.models import compiled
from specdec.models.language_model import TransformersLM
from specdec.tree import SiblingLaw
from tests import models

CASES = [({"depth": 3}, 0.9), ({"depth": 3, "branching": 2, "draw": "ranked", "nodes": 5}, 0.0)]
MORE = [
    ({"depth": 3}, 0.0),
    ({"depth": 2, "draw": "topk"}, 0.9),
    ({"depth": 2, "branching": [2, 1]}, 0.9),
    ({"depth": 2, "branching": [2, 1]}, 0.0),
    ({"depth": 2, "branching": [2, 2], "draw": "hub"}, 0.9),
    ({"depth": 3, "branching": 2, "draw": "ranked", "nodes": 5}, 0.9),
    ({"depth": 2, "draw": "sequoia", "nodes": 3, "acceptance": [0.6, 0.3]}, 0.9),
]
PROMPTS = models.prompts(9, 5, 14)


@pytest.fixture
def recorded(monkeypatch):
    """Passes of fixed shape and whole drafts, recorded, without a compiler."""
    monkeypatch.setattr(compiled, "built", lambda function, options: function)


@pytest.fixture(scope="module")
def pair():
    model = models.build("llama_gqa", torch.float64)
    return model, models.similar(model)


def decoded(target, drafter, temperature, **options):
    options = {"max_new_tokens": 9, "seats": 2, "ignore_eos": True, **options}
    out = specdec.generate(target, PROMPTS, drafter=drafter, temperature=temperature, **options)
    return out, [row.tolist() for row in out.tokens]


def rounds(out):
    """Of each round: the parents of nodes that rows use, and the accepted path."""
    return [
        [
            ([parent for parent in row.tolist() if parent >= 0], path[path >= 0].tolist())
            for row, path in zip(step.parents[step.live], step.path[step.live], strict=True)
        ]
        for step in out.steps
    ]


@pytest.mark.parametrize(
    ("shape", "temperature"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
    ids=str,
)
def test_small_models_draft_the_same(shape, temperature, recorded, pair):
    model, small = pair
    target, draft = TransformersLM(model, compile=True), TransformersLM(small, name="draft")
    one, tokens = decoded(model, SmallModel(draft, **shape), temperature)
    other, same = decoded(target, SmallModel(draft, **shape), temperature)
    assert same == tokens
    assert rounds(other) == rounds(one)
    steps = {each.steps for each in other.report.compiled if each.model == "draft"}
    assert steps == {shape["depth"]}  # every draft was a whole one


@pytest.mark.parametrize("shape", [{}, {"draw": "wor"}], ids=str)
def test_heads_draft_the_same(shape, recorded, pair):
    model = pair[0]
    target, plain = TransformersLM(model, compile=True), TransformersLM(model)
    head = models.head("eagle", plain)
    make = specdec.plugins.find("drafter", "eagle").make
    one, tokens = decoded(plain, make(head, depth=2, **shape), 0.9)
    other, same = decoded(target, make(head, depth=2, **shape), 0.9)
    assert same == tokens
    assert rounds(other) == rounds(one)
    assert {each.steps for each in other.report.compiled if each.model == "eagle"} == {2}


def test_what_looks_at_values_goes_level_by_level(recorded, pair):
    model, small = pair
    target, draft = TransformersLM(model, compile=True), TransformersLM(small, name="draft")
    for drafter, options in (
        (SmallModel(draft, depth=2, stop={"threshold": 0.3}), {}),
        (SmallModel(draft, depth=2, draw="adaptive", nodes=3), {}),
        (SmallModel(draft, depth=2), {"repetition_penalty": 1.2}),
        (SmallModel(draft, depth=2), {"chance": specdec.Coupled(0), "verifier": "naive"}),
    ):
        out, tokens = decoded(target, drafter, 0.9, **options)
        assert {each.steps for each in out.report.compiled} <= {1}
        assert tokens == decoded(model, drafter, 0.9, **options)[1]


def test_a_draft_that_cannot_be_recorded_goes_level_by_level(recorded, pair, monkeypatch):
    def looks(*arguments, **options):
        raise RuntimeError("it looks at a value\nand a long story")

    model, small = pair
    target, draft = TransformersLM(model, compile=True), TransformersLM(small, name="draft")
    monkeypatch.setattr(compiled, "traced", looks)
    with pytest.warns(UserWarning, match=r"as a whole \(RuntimeError: it looks at a value\)"):
        _, tokens = decoded(target, SmallModel(draft, depth=2), 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert decoded(target, SmallModel(draft, depth=2), 0.9)[1] == tokens
    assert tokens == decoded(model, SmallModel(draft, depth=2), 0.9)[1]


def test_a_second_run_finds_what_the_first_compiled(recorded, pair):
    model, small = pair
    target, drafter = TransformersLM(model, compile=True), SmallModel(TransformersLM(small))
    assert decoded(target, drafter, 0.9)[0].report.compiled
    assert not decoded(target, drafter, 0.9, seed=1)[0].report.compiled
    warmer = decoded(target, drafter, 0.8)[0].report.compiled
    assert [each.steps for each in warmer] == [4]  # the temperature is a number inside


def test_keys_name_all_that_a_draft_depends_on():
    shape = specdec.drafting.shape.Shape(2)
    keys = {
        whole.WholeShape(*each).key
        for each in (
            (shape, SiblingLaw.WOR, specdec.Sampling(0.5)),
            (shape, SiblingLaw.DET, specdec.Sampling(0.0)),
            (shape, SiblingLaw.WOR, specdec.Sampling(0.5, top_k=3)),
            (specdec.drafting.shape.Shape(3), SiblingLaw.WOR, specdec.Sampling(0.5)),
        )
    }
    assert len(keys) == 4
