"""A draft as one function gives the tree that passes and draws one by one give: tokens, q, parents.

The compiler is replaced by the function itself; what is tested is the recorded function.
`tests/test_compiled.py` runs every drafter's golden record through the same code, and compiles.
"""

import warnings

import pytest
import torch

import specdec
from drafters.priced import Priced
from drafters.small_model import SmallModel
from specdec import verdicts
from specdec.drafting import whole
from specdec.heads.block_drafter import BlockDrafter
from specdec.interfaces import KV
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
PAGED = KV("paged", page=5)


@pytest.fixture
def recorded(monkeypatch):
    """Passes of fixed shape and whole drafts, recorded, without a compiler."""
    monkeypatch.setattr(compiled, "built", lambda function, options: function)
    monkeypatch.setattr(verdicts, "_made", {})


@pytest.fixture(scope="module")
def pair():
    model = models.build("llama_gqa", torch.float64)
    return model, models.similar(model)


def decoded(target, drafter, temperature, prompts=PROMPTS, **options):
    options = {"max_new_tokens": 9, "seats": 2, "ignore_eos": True, **options}
    out = specdec.generate(target, prompts, drafter=drafter, temperature=temperature, **options)
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


@pytest.mark.parametrize("kv", [KV(), PAGED], ids=["contiguous", "paged"])
@pytest.mark.parametrize("shape", [{}, {"draw": "wor"}], ids=str)
def test_heads_draft_the_same(shape, kv, recorded, pair):
    model = pair[0]
    target, plain = TransformersLM(model, compile=True, kv=kv), TransformersLM(model)
    head = models.head("eagle", plain)
    make = specdec.plugins.find("drafter", "eagle").make
    one, tokens = decoded(plain, make(head, depth=2, **shape), 0.9)
    other, same = decoded(target, make(head, depth=2, **shape), 0.9)
    assert same == tokens
    assert rounds(other) == rounds(one)
    assert {each.steps for each in other.report.compiled if each.model == "eagle"} == {2}


BLOCKS = [({"draw": "wor"}, 0.9), ({"nodes": 5, "branching": 2}, 0.0)]
MORE_BLOCKS = [
    ({"draw": "wor"}, 0.0),
    ({"nodes": 5, "branching": 2}, 0.9),
    ({"depth": 2, "branching": [2, 2], "draw": "wr"}, 0.9),
    ({"depth": 2, "draw": "sequoia", "nodes": 3, "acceptance": [0.6, 0.3]}, 0.9),
    ({"depth": 2, "draw": "static", "tree": [[0], [1], [0, 0]]}, 0.9),
]


@pytest.mark.parametrize("kind", ["dflash", "dspark"])
@pytest.mark.parametrize(
    ("shape", "temperature"),
    [*BLOCKS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_BLOCKS)],
    ids=str,
)
def test_block_heads_draft_the_same(kind, shape, temperature, recorded, pair, monkeypatch):
    """One function a draft, rows of unlike lengths, and a prompt without a state before its
    root."""
    model = pair[0]
    target, plain = TransformersLM(model, compile=True), TransformersLM(model)
    head, prompts = models.head(kind, plain), models.prompts(1, 9, 5)
    make = specdec.plugins.find("drafter", kind).make
    one, tokens = decoded(plain, make(head, **shape), temperature, prompts)
    monkeypatch.setattr(BlockDrafter, "_guess", None)  # the pass alone
    other, same = decoded(target, make(head, **shape), temperature, prompts)
    assert same == tokens
    assert rounds(other) == rounds(one)
    assert [each.nodes for each in other.report.compiled if each.model == kind] == [head.places]


def test_a_block_too_long_for_a_compiled_pass_is_read_as_it_is(recorded, pair, monkeypatch):
    model = pair[0]
    target, plain = TransformersLM(model, compile=True), TransformersLM(model)
    head, make = models.head("dflash", plain), specdec.plugins.find("drafter", "dflash").make
    tokens = decoded(plain, make(head, draw="wor"), 0.9)[1]
    monkeypatch.setattr("specdec.heads.block_drafter.WIDEST", head.places + head.block)
    assert decoded(target, make(head, draw="wor"), 0.9)[1] == tokens
    monkeypatch.setattr(BlockDrafter, "_guess", None)
    with pytest.raises(TypeError):  # there was a pass outside
        decoded(target, make(head, draw="wor"), 0.9)


@pytest.mark.parametrize("page", [4, 16])
def test_pages_draft_the_same(page, recorded, pair):
    """The nodes that a whole draft has stored are there when the round keeps some of them."""
    model, small = pair
    draft, kv = TransformersLM(small, name="draft"), KV("paged", page=page)
    target = TransformersLM(model, compile=True, kv=kv)
    for shape, temperature in (({"depth": 3}, 0.9), ({"depth": 2, "branching": [2, 2]}, 0.9)):
        one, tokens = decoded(model, SmallModel(draft, **shape), temperature)
        other, same = decoded(target, SmallModel(draft, **shape), temperature)
        assert same == tokens
        assert rounds(other) == rounds(one)
        steps = {each.steps for each in other.report.compiled if each.model == "draft"}
        assert steps == {shape["depth"]}


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
    with (
        pytest.warns(UserWarning, match=r"as a whole \(RuntimeError: it looks at a value\)"),
        pytest.warns(UserWarning, match="verdicts of Block cannot be compiled"),
    ):
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
    # The temperature is a number inside.
    assert [each.steps for each in warmer if each.model != "verdict"] == [4]


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


def tables(target, drafter):
    """Whole drafts cost next to nothing: chains a little more than trees, or a little less."""
    label = specdec.pricing.measure.label(drafter)
    flat = specdec.Costs.written(specdec.pricing.measure.here(target), label, 1.0, 0.02, 0.2)
    one = flat.rounds[-1]._replace(compiled=True)
    return flat, [
        specdec.Costs(
            flat.measuring,
            tuple(
                each._replace(compiled=True, sampled=sampled)
                for each in flat.rounds
                for sampled in (False, True)
            )
            + tuple(
                one._replace(levels=depth, draft=cost * depth, at_once=kind, sampled=sampled)
                for kind, cost in costs.items()
                for depth in range(1, 7)
                for sampled in (False, True)
            ),
        )
        for costs in ({"chain": 0.01, "ranked": 0.02}, {"chain": 0.4, "ranked": 0.01})
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["small_model", "eagle"])
def test_priced_shapes_are_chosen_before_they_are_drafted(kind, temperature, recorded, pair):
    """Whole drafts of several lengths: chains at temperature 0.9, as fixed ones would draw them;
    chains and pruned trees at 0, with the tokens of plain decoding."""
    model, small = pair
    target, plain = TransformersLM(model, compile=True), TransformersLM(model)
    draft = TransformersLM(small, name="draft")
    make = specdec.plugins.find("drafter", kind).make
    inner = make(draft) if kind == "small_model" else make(models.head("eagle", plain), draw="wor")
    name, seen = "draft" if kind == "small_model" else "eagle", set()
    for table in tables(target, inner)[1]:
        drafter = Priced(inner, table, nodes=8, width=2)
        out, tokens = decoded(target, drafter, temperature, max_new_tokens=24)
        steps = {each.steps for each in out.report.compiled if each.model == name}
        drafted = [step for step in out.steps if step.decision.levels]
        assert max(steps | seen) > 1
        seen |= steps
        deepest = 8 if temperature == 0.0 else 6  # what is drawn has whole drafts to choose from
        assert {step.decision.levels for step in drafted} <= set(range(1, deepest + 1))
        if temperature == 0.0:
            assert tokens == decoded(plain, "none", 0.0, max_new_tokens=24)[1]
            assert any((step.parents[:, 1:] == 0).sum(1).max() > 1 for step in drafted)
        for step in drafted:
            assert step.decision.survivals.shape == step.parents.shape
            assert ((step.decision.survivals > 0)[:, 1:] <= (step.parents >= 0)[:, 1:]).all()


def test_a_measured_table_has_the_whole_drafts(recorded, pair):
    """Trees are looked at only where nothing is drawn."""
    model, small = pair
    target, draft = TransformersLM(model, compile=True), TransformersLM(small, name="draft")
    costs = specdec.pricing.measure.measure(
        target, SmallModel(draft), contexts=(8,), sizes=((1, 1),), repeats=1, temperatures=(0, 0.9)
    )
    found = {(one.sampled, one.at_once, one.levels) for one in costs.rounds if one.at_once}
    chains = {(sampled, "chain", levels) for sampled in (False, True) for levels in (3, 5)}
    assert found == chains | {(False, "ranked", 5)}


def test_a_table_without_whole_drafts_goes_level_by_level(recorded, pair):
    model, small = pair
    target, draft = TransformersLM(model, compile=True), TransformersLM(small, name="draft")
    inner = SmallModel(draft)
    out, _ = decoded(target, Priced(inner, tables(target, inner)[0]), 0.9)
    assert {each.steps for each in out.report.compiled if each.model == "draft"} == {1}


def test_priced_chains_of_one_length_are_those_of_fixed_ones(recorded, pair):
    """The same draws, whoever has chosen the length."""
    model, small = pair
    target, draft = TransformersLM(model, compile=True), TransformersLM(small, name="draft")
    inner = SmallModel(draft, depth=2)
    drafter = Priced(inner, tables(target, inner)[1][0], depth=2)
    found, tokens = decoded(target, drafter, 0.9)
    fixed, same = decoded(model, inner, 0.9)
    assert tokens == same
    assert rounds(found) == rounds(fixed)
