"""Lookup first, a model else: which rows go where, the law of the mixture, and what each drafter
keeps when it sits out rounds."""

import copy
from dataclasses import replace

import pytest
import torch

import specdec
from drafters.cascade import Cascade
from drafters.medusa import Medusa
from drafters.recycle import Recycle
from drafters.small_model import SmallModel
from drafters.suffix import Suffix
from specdec import Costs, Sampling, SiblingLaw, State, TokenTree
from specdec.drafting.turns import FEW, Turns
from specdec.plugins import build
from specdec.pricing.measure import here, label
from tests.models import head, prompts, shared, similar

MODEL = "llama_gqa"


def target():
    return specdec.load(shared(MODEL, torch.float64))


def draft():
    return specdec.load(similar(shared(MODEL, torch.float64)))


def cascade(threshold: float | str, tree: bool = False, **shape) -> Cascade:
    shape = {"depth": 3, **shape}
    return Cascade(Suffix(nodes=4, tree=tree), SmallModel(draft(), **shape), threshold)


def run(drafter, model=None, **options):
    rows = [*prompts(9, 4), [5, 6, 7, 5, 6, 7, 5, 6]]
    given = {"temperature": 1.0, "max_new_tokens": 16, "seed": 2, **options}
    return specdec.generate(model or target(), rows, drafter=drafter, **given)


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


def test_by_auto_a_round_of_one_drafter_keeps_its_law():
    """Lookup trees beside sampled chains: each is judged by the rule for its law; rounds that mix
    rows are DET."""
    made = cascade("auto", tree=True)
    out = run(made)
    assert (out.report.verifier, out.report.lossless) == ("auto", True)
    assert run(cascade(0.4, tree=True)).report.verifier == "naive"
    seen = set()

    class Watched(Cascade):
        def _merged(self, first, then, second):
            merged = super()._merged(first, then, second)
            if merged.num_nodes > 1:
                mixed = any(second) and second != self._live
                seen.add((any(second), mixed, merged.law))
            return merged

    run(Watched(made.first, made.then, "auto"), max_new_tokens=48)
    assert (True, False, SiblingLaw.WOR) in seen
    assert {law for by_then, mixed, law in seen if mixed or not by_then} <= {SiblingLaw.DET}


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
    assert not Cascade("suffix", "none", 1.0).learns


def test_parts_that_cannot_be():
    with pytest.raises(ValueError, match=r"first=Recycle does not say.*take suffix"):
        Cascade("recycle", "none")
    heads = head("medusa", specdec.load(shared(MODEL)))
    with pytest.raises(ValueError, match=r"Medusa reads the target's hidden states"):
        Cascade("suffix", Medusa(heads))
    with pytest.raises(ValueError, match="threshold must be a number >= 0"):
        Cascade("suffix", "none", -1)
    with pytest.raises(ValueError, match="threshold must be a number >= 0, got 'atuo'"):
        Cascade("suffix", "none", "atuo")
    with pytest.raises(ValueError, match="costs are for threshold=auto, and it is 2"):
        Cascade("suffix", "none", 2, "auto")
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


# ---------------------------------------------------------------------------------- threshold=auto


def turns(model: float, seconds: tuple[float, float], lookup: float = 1.0, rows: int = 1) -> Turns:
    """After rounds of both kinds. model: tokens that its drafts bring; seconds: of a round with the
    model, and without; lookup: accepted / expected; rows: among which a round brings a token every
    two seconds."""
    made = Turns(3)
    made.model.came(model)
    for _ in range(1000):  # so that what is assumed before does not show
        made.lookup.came(100 * lookup, 100.0, fades=1.0)
    for _ in range(FEW):
        made.model.went(True, True, seconds[0])
        made.lookup.went(True, True, seconds[1])
        made.rounds.pace.went(0, seconds[1])
        made.rounds.ahead.went(0, 1.0, 2.0 * rows)  # seconds per token of every row
    return made


def rows_of(made: Turns, expected: list[float], live: tuple[bool, ...] = (True, True, True)):
    state = State.of([[1, 2]] * len(expected), Sampling(0.0))
    state = replace(state, on_host=state.on_host._replace(live=list(live[: len(expected)])))
    return made.choose(TokenTree.root(state.roots), expected, state)


def test_the_model_is_asked_where_its_tokens_are_worth_their_seconds():
    made = turns(2.5, (5.0, 2.0))  # it takes 3 s more, which are worth 1.5 tokens
    assert made.threshold == pytest.approx(1.0)
    assert rows_of(made, [0.9]) == [True]
    assert rows_of(made, [1.1]) == [False]
    assert turns(1.4, (5.0, 2.0)).threshold == 0.0
    trusted = turns(2.5, (5.0, 2.0), lookup=0.5)  # half of what is expected is accepted
    assert rows_of(trusted, [1.9]) == [True]
    assert rows_of(trusted, [2.1]) == [False]


def test_rows_share_the_models_passes():
    made = turns(2.5, (5.0, 2.0), rows=3)
    assert rows_of(made, [1.8, 1.8, 1.8]) == [True] * 3  # 3 x 0.7 tokens, of one alone too few
    assert rows_of(made, [1.8, 1.8, 3.0]) == [False] * 3
    assert rows_of(made, [0.5, 2.4, 3.0]) == [True, True, False]
    made = turns(2.5, (5.0, 2.0), rows=2)
    assert rows_of(made, [1.8, 1.8, 1.8], (True, True, False)) == [False] * 3


def test_both_are_tried_before_they_are_compared_and_a_model_now_and_then():
    made = Turns(1)
    assert made.threshold is None
    state = State.of([[1, 2]], Sampling(0.0))
    asked = []
    for _ in range(40):
        second = rows_of(made, [1.0])
        asked.append(second[0])
        # the model's drafts bring nothing
        made.went(second, 2, 9.0 if second[0] else 1.0, 0, state)
    assert asked[: 2 * FEW] == [True] * FEW + [False] * FEW
    later = [round for round, one in enumerate(asked) if one][FEW:]
    assert len(later) in (1, 2)  # after 8 rounds, and after twice as many


def by_table(levels: float) -> Cascade:
    """level: seconds of a pass of the model; a plain round takes one."""
    first, then = Suffix(nodes=4, tree=False), SmallModel(draft(), depth=3)
    about = here(target())
    tables = [Costs.written(about, label(first), 1.0, 0.0, 0.0)]
    tables.append(Costs.written(about, label(then), 1.0, 0.0, levels))
    return Cascade(first, then, costs=tables[0].joined(tables[1:]))


def test_by_a_table_dear_models_are_left_out_and_runs_repeat():
    found = {}
    for levels in (0.0, 3.0):
        outs = [run(by_table(levels), max_new_tokens=24, seats=1) for _ in range(2)]
        one, other = ([step.parents.tolist() for step in out.steps] for out in outs)
        assert one == other
        found[levels] = outs[0].report.account["cascade"]
        assert f"{found[levels]['asked']} rounds asked" in found[levels]["says"]
    assert found[3.0]["asked"] < found[0.0]["asked"]
    assert found[3.0]["looked_up"] > found[3.0]["asked"]


def test_by_the_clock_a_run_begins_with_what_earlier_ones_have_learned():
    drafter, model = cascade("auto"), target()
    assert drafter.learns

    def rounds_before(temperature=1.0):
        begun = copy.copy(drafter)
        begun.begin(model, 3, Sampling(temperature))
        return begun._turns.model.rounds + begun._turns.lookup.rounds

    assert rounds_before() == 0
    out = run(drafter, model, seats=3)
    assert rounds_before() == len(out.steps)
    run(drafter, model, seats=3)
    assert rounds_before() > len(out.steps)
    assert rounds_before(temperature=0.6) == 0
    drafter.forget()
    assert rounds_before() == 0


def test_a_report_counts_the_rounds_of_its_own_run():
    drafter = cascade("auto")
    for _ in range(3):
        out = run(drafter, seats=3)
        counted = out.report.account["cascade"]
        assert counted["asked"] + counted["looked_up"] == len(out.steps)


def test_recycle_may_be_asked_second():
    """It gets the best tokens after each node, of its own trees and of those looked up."""
    alone = run({"name": "recycle", "nodes": 3})
    ours = run(Cascade(Suffix(nodes=2), Recycle(nodes=3), 1e9))
    assert alone.report.tau > 1
    assert [s.parents.tolist() for s in ours.steps] == [s.parents.tolist() for s in alone.steps]
    plain, mixed = (
        run(each, temperature=0.0) for each in ("none", Cascade(Suffix(nodes=2), Recycle(), 0.5))
    )
    assert [row.tolist() for row in mixed.tokens] == [row.tolist() for row in plain.tokens]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_by_the_clock_the_text_is_the_targets_own(temperature):
    """Whatever the times: under coupled chance, with a rule that is exact under it."""
    options = {"temperature": temperature, "seed": None, "chance": specdec.Coupled(4)}
    plain, ours = (run(each, **options) for each in ("none", cascade("auto", draw="topk")))
    assert [row.tolist() for row in ours.tokens] == [row.tolist() for row in plain.tokens]


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
