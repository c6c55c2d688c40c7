"""Lookup first, a model else: which rows go where, the law of the mixture, and what each drafter
keeps when it sits out rounds."""

import pytest
import torch

import specdec
from drafters.cascade import Cascade
from drafters.medusa import Medusa
from drafters.small_model import SmallModel
from drafters.suffix import Suffix
from specdec import Sampling, SiblingLaw
from specdec.plugins import build
from tests.models import head, prompts, shared, similar

MODEL = "llama_gqa"


def target():
    return specdec.load(shared(MODEL, torch.float64))


def draft():
    return specdec.load(similar(shared(MODEL, torch.float64)))


def cascade(threshold: float, tree: bool = False, **shape) -> Cascade:
    shape = {"depth": 3, **shape}
    return Cascade(Suffix(nodes=4, tree=tree), SmallModel(draft(), **shape), threshold)


def run(drafter, **options):
    rows = [*prompts(9, 4), [5, 6, 7, 5, 6, 7, 5, 6]]
    given = {"temperature": 1.0, "max_new_tokens": 16, "seed": 2, **options}
    return specdec.generate(target(), rows, drafter=drafter, **given)


@pytest.mark.parametrize(
    ("tree", "shape", "temperature", "law", "chain"),
    [
        (False, {}, 1.0, SiblingLaw.WOR, True),
        (False, {"draw": "wr"}, 1.0, SiblingLaw.WR, True),
        (False, {"draw": "topk"}, 1.0, SiblingLaw.DET, True),
        (False, {}, 0.0, SiblingLaw.DET, True),
        (True, {}, 1.0, SiblingLaw.DET, False),
        (False, {"branching": [2, 1, 1]}, 1.0, SiblingLaw.DET, False),
    ],
)
def test_the_law_of_a_mixture(tree, shape, temperature, law, chain):
    drafter = cascade(1.0, tree, **shape)
    drafter.begin(target(), 2, Sampling(temperature))
    assert (drafter.law, drafter.chain) == (law, chain)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("shape", [{}, {"draw": "ranked", "nodes": 5, "depth": 2}])
def test_each_row_has_the_tree_of_the_one_that_drafted_it(tree, shape):
    seen = {True: 0, False: 0}

    class Watched(Cascade):
        def _merged(self, first, then, second):
            merged = super()._merged(first, then, second)
            for row, by_then in enumerate(second):
                own = then if by_then else first
                count = own.num_nodes
                used = own.used[row]
                assert torch.equal(merged.used[row, :count], used)
                assert not merged.used[row, count:].any()
                assert torch.equal(merged.tokens[row, :count][used], own.tokens[row][used])
                assert torch.equal(merged.parents[row, :count][used], own.parents[row][used])
                assert torch.equal(merged.depths[row, :count][used], own.depths[row][used])
                seen[by_then] += int(used.sum()) > 1
                if merged.q is not None and by_then and own.q is not None:
                    places = used.nonzero()[:-1, 0]
                    assert torch.equal(merged.q[row, places], own.q[row, places])
            return merged

    made = cascade(0.4, tree, **shape)
    run(Watched(made.first, made.then, 0.4))
    assert min(seen.values()) > 1


@pytest.mark.parametrize(("threshold", "alone"), [(1e9, "then"), (0.0, "first")])
@pytest.mark.parametrize("shape", [{}, {"stop": {"acceptance": 0.6}}])
def test_a_threshold_that_one_of_them_always_meets_leaves_the_other_out(threshold, alone, shape):
    """At temperature 0, where the rule of acceptance is the same."""
    made = cascade(threshold, **shape)
    mixed = run(made, temperature=0.0)
    single = run(getattr(made, alone), temperature=0.0)
    assert mixed.report.tau == pytest.approx(single.report.tau)
    assert [row.tolist() for row in mixed.tokens] == [row.tolist() for row in single.tokens]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_catches_up_with_rounds_that_it_sat_out(temperature):
    """Its laws are those of a plain pass over the committed text."""
    checked = []

    class Checked(SmallModel):
        def grow(self, logits, score, state, chance):
            for row, live in enumerate(state.on_host.live):
                if live:
                    plain = self.model.model(torch.tensor([state.text(row)])).logits[0, -1]
                    assert torch.allclose(logits[row, 0], plain, atol=1e-9)
                    checked.append(row)
            return super().grow(logits, score, state, chance)

    drafter = Cascade(Suffix(nodes=4), Checked(draft(), depth=2), 0.4)
    run(drafter, temperature=temperature, max_new_tokens=24)
    assert len(checked) > 5


def test_a_cascade_learns_and_forgets_with_its_parts():
    drafter = Cascade(Suffix(store="memory"), "none", 0.0)
    assert drafter.learns
    run(drafter)
    assert drafter.first.store.tokens == 3 * 16
    drafter.forget()
    assert drafter.first.store.tokens == 0
    assert not Cascade("suffix", "none").learns


def test_parts_that_cannot_be():
    with pytest.raises(ValueError, match=r"first=NGram does not say.*take suffix"):
        Cascade("ngram", "none")
    heads = head("medusa", specdec.load(shared(MODEL)))
    with pytest.raises(ValueError, match=r"Medusa reads the target's hidden states"):
        Cascade("suffix", Medusa(heads))
    with pytest.raises(ValueError, match="threshold must be a number >= 0"):
        Cascade("suffix", "none", -1)
    with pytest.raises(ValueError, match="unknown drafter 'sufix'; did you mean 'suffix'"):
        Cascade("sufix", "none")
    sampled = Cascade("suffix", "none")
    sampled.first = SmallModel(draft())
    with pytest.raises(ValueError, match=r"looks up what it drafts.*put it second"):
        sampled.begin(target(), 1, Sampling(1.0))


def test_by_settings_alone():
    made = build(
        "drafter", {"name": "cascade", "first": {"name": "suffix", "nodes": 3}, "then": "none"}
    )
    assert made.first.max_nodes == 4


# ----------------------------------------------------------------- a model that is helped by lookup


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", [{}, {"draw": "wr"}, {"stop": {"threshold": 0.02}}], ids=str)
@pytest.mark.parametrize("seats", [1, 3])
def test_guesses_leave_the_draft_as_it_is_and_save_passes(temperature, shape, seats):
    trees: dict[bool, list] = {False: [], True: []}
    passes = {False: 0, True: 0}

    class Watched(SmallModel):
        def _score(self, tree, start):
            passes[self.lookup] += 1
            return super()._score(tree, start)

        def propose(self, state, chance):
            tree = super().propose(state, chance)
            for row, live in enumerate(state.on_host.live):
                if live:
                    used = tree.used[row]
                    q = None if tree.q is None else tree.q[row][used][:-1]
                    trees[self.lookup].append((tree.tokens[row][used].tolist(), q))
            return tree

    found = [
        run(
            Watched(draft(), lookup, **{"depth": 5, **shape}),
            temperature=temperature,
            max_new_tokens=30,
            seats=seats,
        )
        for lookup in (False, True)
    ]
    plain, helped = ([row.tolist() for row in out.tokens] for out in found)
    assert helped == plain
    for (ours, our_q), (theirs, their_q) in zip(trees[True], trees[False], strict=True):
        assert ours == theirs
        assert our_q is None or torch.allclose(our_q, their_q)
    if seats == 1:
        assert passes[True] < passes[False]


def test_guesses_are_for_chains():
    with pytest.raises(ValueError, match="lookup is for chains"):
        SmallModel(draft(), True, depth=2, branching=2)
