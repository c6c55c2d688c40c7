"""`priced`: what is decided, when, by what, and what the inner drafter sees of it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import specdec
from drafters.priced import Priced
from drafters.small_model import SmallModel
from experiments.certificates.suite import make as made
from specdec import Costs, Drafter, Keyed, Sampling, SiblingLaw, TokenTree
from specdec.measuring.promises import reliability, why
from specdec.measuring.report import Step
from specdec.models.table import TableModel
from specdec.pricing.measure import here, label
from specdec.pricing.noted import noted_of
from tests.exact import KNOWN, TOY, Toy, exact
from tests.models import prompts, shared, similar
from tests.test_chance import recording

TREE = {"name": "small_model", "depth": 2, "branching": 2}


def priced(inner=TREE, toy=KNOWN, costs=(1.0, 0.1, 0.2), **settings) -> Priced:
    target = toy.target
    drafter = made(inner, target, toy.draft)
    table = Costs.written(here(target), label(drafter), *costs)
    return Priced(drafter, table, **settings)


def decoded(drafter, toy=KNOWN, tokens=12, **options):
    options = {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True, **options}
    return specdec.generate(toy.target, [list(toy.prompt)], drafter=drafter, **options)


def large() -> tuple:
    """A transformers model, and one that often agrees with it."""
    model = shared("llama_gqa")
    return specdec.load(model), specdec.load(similar(model))


# ------------------------------------------------------------------------------- what is decided


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_free_nodes_are_all_drafted_and_dear_ones_never(temperature):
    free = decoded(priced(costs=(1.0, 0.0, 0.0), nodes=5, depth=2), temperature=temperature)
    dear = decoded(priced(costs=(1.0, 50.0, 0.0)), temperature=temperature)
    assert max(step.num_nodes.max() for step in free.steps) >= 3
    assert all(step.num_nodes.max() == 0 for step in dear.steps)
    assert dear.report.tau == 1
    assert dear.report.why.startswith("nothing was drafted")


def test_levels_that_cost_much_are_not_drafted():
    shallow = decoded(priced(costs=(1.0, 0.0, 0.9), depth=4), tokens=30)
    deep = decoded(priced(costs=(1.0, 0.0, 0.0), depth=4), tokens=30)
    assert np.mean([step.decision.levels for step in shallow.steps]) < 2
    assert max(step.decision.levels for step in deep.steps) >= 3


def test_the_same_table_and_seed_decide_the_same():
    runs = [decoded(priced(TREE), tokens=40, seed=7) for _ in range(2)]
    first, second = ([step.decision[:5] for step in run.steps] for run in runs)
    assert first == second
    assert runs[0].tokens[0].tolist() == runs[1].tokens[0].tolist()


def test_it_learns_and_forgets():
    drafter = priced(costs=(1.0, 0.01, 0.01))
    decoded(drafter, tokens=60)
    assert drafter.learnt.first.count > 30
    drafter.forget()
    assert drafter.learnt.first.count == 0


def test_one_price_for_all_rows():
    """A row's nodes are free where another row's are drafted anyway: padding is paid for."""
    target = KNOWN.target
    drafter = priced(costs=(1.0, 0.1, 0.1))
    run = specdec.generate(
        target,
        [list(KNOWN.prompt), [1, 0]],
        drafter=drafter,
        temperature=1.0,
        max_new_tokens=10,
        ignore_eos=True,
    )
    assert {step.decision.price for step in run.steps if step.live.all()} > set()
    both = [step for step in run.steps if step.live.all()]
    assert all(step.decision.tokens >= 2 for step in both)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("branching", [1, 2])
def test_greedy_tokens_are_those_of_plain_decoding(rows, branching):
    target, draft = large()
    inner = SmallModel(draft, branching=branching)
    drafter = Priced(inner, Costs.written(here(target), label(inner), 1.0, 0.02, 0.1))
    given = prompts(9, 4, 6)[:rows]
    options = {"max_new_tokens": 24, "ignore_eos": True}
    plain = specdec.generate(target, given, drafter="none", **options)
    found = specdec.generate(target, given, drafter=drafter, **options)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in plain.tokens]
    assert found.report.tau > 1.2


# ---------------------------------------------------------------------------- finished trees


class Numbered(Drafter):
    """A finished tree; it looks at what it is shown of the verdict."""

    max_nodes, learns = 6, True

    def __init__(self):
        self.seen = []

    def propose(self, state, chance):
        if state.deepest < 2:
            self.aside = None
            return TokenTree.root(state.roots)
        tokens = torch.cat([state.roots[:, None], torch.tensor([[2, 1, 0, 1, 0]])], 1)
        self.aside = torch.tensor([[70, 71]])
        return TokenTree(tokens, [[-1, 0, 0, 0, 1, 2]])

    def observe(self, state):
        self.seen.append((state.last.verdict.path.tolist(), state.last.aside, state.last.trees))


def test_a_pruned_tree_is_shown_in_the_drafters_own_numbers():
    target = TableModel({(): [1, 9, 1]}, prompt=1)
    inner = Numbered()
    table = Costs.written(here(target), label(inner), 1.0, 0.25, 0.0)
    drafter = Priced(inner, table)
    out = specdec.generate(target, [[0]], drafter=drafter, max_new_tokens=9, temperature=0.0)
    pruned = [step for step in out.steps if 0 < step.num_nodes[0] < 5]
    assert pruned
    shown = [each for each in inner.seen if each[2] is not None and each[2].num_nodes == 6]
    assert shown
    for path, aside, tree in shown:
        assert aside is None or aside.tolist() == [[70, 71]]
        kept = [node for node in path[0] if node > 0]
        assert kept == [node for node in kept if tree.tokens[0, node] == 1]


def test_a_finished_tree_that_is_pruned_declares_det():
    drafter = priced({"name": "cascade", "first": {"name": "suffix", "tree": False}}, TOY)
    drafter.begin(TOY.target, 1, Sampling(1.0))
    assert drafter.law is SiblingLaw.DET
    assert not drafter.chain


@pytest.mark.parametrize(
    ("inner", "law", "chain"),
    [
        ({"name": "small_model", "depth": 2}, SiblingLaw.WOR, True),
        ({"name": "small_model", "depth": 2, "draw": "wr"}, SiblingLaw.WR, True),
        (TREE, SiblingLaw.WOR, False),
        ({**TREE, "draw": "wr"}, SiblingLaw.WR, False),
        ({**TREE, "draw": "topk"}, SiblingLaw.DET, False),
        ({"name": "suffix"}, SiblingLaw.DET, False),
    ],
)
def test_the_law_is_that_of_the_inner_trees(inner, law, chain):
    drafter = priced(inner)
    drafter.begin(KNOWN.target, 1, Sampling(1.0))
    assert (drafter.law, drafter.chain) == (law, chain)
    drafter = priced(inner)
    drafter.begin(KNOWN.target, 1, Sampling(0.0))
    assert drafter.law is SiblingLaw.DET


# --------------------------------------------------------------------------- what stays lossless


class ChosenAfterwards(SmallModel):
    """Fault 20: two tokens are drawn, then the length with the best expected tokens per second is
    chosen by the first token: 2 after token 0, 0 after token 1."""

    def propose(self, state, chance):
        tree = super().propose(state, chance)
        if tree.num_nodes < 2:
            return tree
        lengths = torch.where(tree.tokens[:, 1] == 0, tree.num_nodes - 1, 0)
        return TokenTree.chain(tree.tokens, lengths, tree.law, tree.q)


COIN = Toy({(): [7, 3]}, {(): [1, 1]})


def test_a_length_that_is_chosen_after_drafting_bends_the_law():
    """The negative control of DSpark, appendix A: (.85, .15) where the target has (.7, .3)."""

    def bent():
        return ChosenAfterwards(COIN.draft, depth=2)

    found = exact(COIN, bent, "token", tokens=3)
    first = sum(mass for tokens, mass in found.law.items() if tokens[0] == 0)
    assert first == pytest.approx(0.85, abs=1e-12)
    assert found.distance(COIN.plain(3)) > 0.1


@pytest.mark.parametrize("costs", [(1.0, 0.02, 0.05), (1.0, 0.1, 0.2), (1.0, 0.3, 0.1)])
def test_a_length_that_is_chosen_before_each_draw_does_not(costs):
    chain = {"name": "small_model", "depth": 2}
    found = exact(COIN, lambda: priced(chain, COIN, costs), "token", tokens=3)
    assert found.distance(COIN.plain(3)) < 1e-12
    assert found.accepted > 0


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["naive", "rrs_wor", "traversal"])
@pytest.mark.parametrize("costs", [(1.0, 0.02, 0.05), (1.0, 0.1, 0.1), (1.0, 0.2, 0.1)])
def test_trees_of_two_levels_are_exact(rule, costs):
    found = exact(KNOWN, lambda: priced(TREE, KNOWN, costs, nodes=3), rule, tokens=3)
    assert found.distance(KNOWN.plain(3)) < 1e-12


def test_decisions_differ_from_prefix_to_prefix():
    """Else the laws above would test fixed shapes."""
    shapes = set()
    for seed in range(12):
        run = decoded(priced(TREE, nodes=3, width=2), tokens=8, seed=seed)
        shapes |= {tuple(step.parents[0].tolist()) for step in run.steps}
    assert len(shapes) >= 4


# ----------------------------------------------------------------------------- what is recorded


def test_a_run_says_what_was_expected_of_it():
    out = decoded(priced(costs=(1.0, 0.02, 0.05)), tokens=60)
    report = out.report
    assert report.promises.token_ratio == pytest.approx(
        sum(1 + step.num_accepted[0] for step in out.steps)
        / sum(step.decision.tokens for step in out.steps)
    )
    for step in out.steps:
        assert step.decision.survivals.shape == step.parents.shape
        assert step.decision.seconds >= step.decision.plain
    assert 0 <= report.reliability.error < 0.5
    assert report.reliability.count.sum() == sum(step.num_nodes[0] for step in out.steps)
    assert report.why.endswith("on this machine")
    assert f"tau {report.tau:.2f} at " in report.why
    assert report.why in str(report)
    assert report.as_dict()["promises"]["rounds"] == len(out.steps)
    account = report.account["priced"]
    assert account["rounds"] == len(out.steps)
    assert account["drafted"] == sum(step.num_nodes.any() for step in out.steps) > 0
    assert 0 < account["deciding_seconds"] < report.decode_seconds
    assert account["says"] in str(report)


def test_other_drafters_say_nothing_of_costs():
    report = decoded("none").report
    assert report.why is None
    assert report.promises is None
    assert reliability(decoded("none").steps) is None


def rounds_of(*given: tuple[int, int, float, float]) -> list[Step]:
    """(drafted nodes, kept tokens, seconds of drafting, of the rest), of one row each."""
    return [
        Step(
            number,
            np.array([True]),
            np.arange(-1, nodes)[None],
            np.zeros((1, 0), int),
            np.array([kept - 1]),
            np.array([kept]),
            SimpleNamespace(seconds={"draft": draft, "score": rest}),
            {},
            np.array([0]),
        )
        for number, (nodes, kept, draft, rest) in enumerate(given)
    ]


def test_without_a_table_a_run_says_why_by_its_own_rounds():
    plain = [(0, 1, 0.0, 1.0)] * 3
    slow = why(rounds_of(*plain, *[(4, 2, 2.0, 2.0)] * 3))  # 15 s of 6 rounds for 9 tokens
    assert slow == "tau 1.50 at 2.0 nodes would need 2.50 to pay on this machine"
    fast = why(rounds_of(*plain, *[(4, 5, 0.2, 1.0)] * 3))
    assert fast == "tau 3.00 at 2.0 nodes pays: 1.10 is enough on this machine"
    few = [(4, 2, 1.0, 3.0)] * 3  # no round without drafts
    assert why(rounds_of(*few)) == (
        "tau 2.00 at 4.0 nodes needs 1.33 or more to pay, as drafting takes 25% of the time"
    )
    assert why(rounds_of(*[(4, 1, 1.0, 3.0)] * 3)).startswith("tau 1.00 at 4.0 nodes would need")
    assert why(rounds_of(*plain)) is None
    assert why([]) is None
    report = decoded(made(TREE, KNOWN.target, KNOWN.draft)).report
    assert report.why is not None
    assert report.why in str(report)


def test_the_table_is_among_the_settings_in_effect():
    drafter = priced()
    drafter.begin(KNOWN.target, 1, Sampling(1.0))
    again = Costs.of_dict(drafter.settings_in_effect()["costs"])
    assert again.rounds == drafter.costs.rounds


def test_live_times_are_announced(capsys):
    decoded(priced(live=True), tokens=20)
    assert "runs do not repeat" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"costs": 3}, "costs must be 'auto', a file"),
        ({"depth": 0}, "depth must be an integer >= 1"),
        ({"strict": "no"}, "strict must be True or False"),
        ({"learnt": "nowhere"}, "learnt names no file"),
        ({"drafter": {"name": "priced", "drafter": "suffix"}}, "its own are shaped already"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        Priced(**{"drafter": "suffix", **settings})


def test_children_of_two_kinds_are_refused():
    with pytest.raises(ValueError, match="draw='hub' has fixed children"):
        decoded(priced({**TREE, "draw": "hub"}))


def test_a_table_of_another_machine_names_both():
    drafter = made(TREE, KNOWN.target, KNOWN.draft)
    elsewhere = Costs.written(here(TOY.target), label(drafter))
    other = specdec.load(shared("llama_gqa"))
    with pytest.raises(ValueError, match=r"was measured elsewhere: .*here "):
        specdec.generate(
            other, [[1, 2]], drafter=Priced(drafter, elsewhere, strict=True), max_new_tokens=2
        )


@pytest.mark.parametrize("inner", [TREE, {"name": "small_model", "depth": 3}, {"name": "suffix"}])
def test_many_rooms(inner):
    """Rows of one batch may go on for different lengths; no tree is deeper than its row's room."""
    given = [list(KNOWN.prompt), [1, 0, 2, 0], [2]]
    for tokens in (1, 2, 3, 5):
        out = specdec.generate(
            KNOWN.target,
            given,
            drafter=priced(inner, costs=(1.0, 0.0, 0.0)),
            temperature=1.0,
            max_new_tokens=tokens,
            ignore_eos=True,
            seats=2,
        )
        assert [len(row) for row in out.tokens] == [tokens] * 3


def test_no_key_is_used_twice():
    chance, seen = recording(Keyed(3))
    decoded(priced(costs=(1.0, 0.0, 0.0), nodes=6), chance=chance, tokens=30)
    assert len(seen) > 50
    assert len(seen) == len(set(seen))


def test_outcomes_of_siblings():
    """Of drawn siblings, those behind the accepted one were not tried."""
    drafter = priced()
    drafter.begin(KNOWN.target, 1, Sampling(1.0))
    parents = np.array([[-1, 0, 0, 0, 2, 2]])
    noted = noted_of(parents, np.full((1, 5), 0.5), np.full((1, 5), 0.5), 2, drawn=True)
    drafter._policy._outcomes(noted, 0, np.array([2]))
    learnt = drafter.learnt
    assert learnt.first._y.tolist() == [False, False]  # nodes 1 and 4
    assert learnt.later._y.tolist() == [True, False]  # nodes 2 and 5, not 3
