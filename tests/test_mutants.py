"""Deliberately broken variants of faults that published decoders have had, each caught by the check
that guards the real code.

Every test first runs the sound rule through the same check. The exact effects are known from the
faults' rules as written.
"""

from collections import Counter

import pytest
import torch

import specdec
from specdec import Drafter, Keyed, Laws, SiblingLaw, TokenTree, chance
from specdec.chance import KeyedDraws, Trace
from specdec.models.table import TableModel
from specdec.output import Emission
from specdec.verifying import rejection
from specdec.verifying.walk import Walk, drawn_out, ratio, residual
from tests.exact import COINS, KNOWN, Toy, exact, make
from tests.test_chance import BELOW_1, Injected, recording
from verifiers.block import Block
from verifiers.naive import Naive
from verifiers.rrs_wor import RecursiveRejectionWithoutReplacement

EXACT = 1e-12
FOUR = Toy(
    p={
        (): [4, 3, 2, 1],
        (0,): [1, 5, 2, 2],
        (1,): [3, 1, 3, 3],
        (2,): [2, 2, 5, 1],
        (3,): [4, 1, 1, 4],
    },
    q={
        (): [1, 2, 3, 4],
        (0,): [3, 2, 1, 4],
        (1,): [1, 4, 4, 1],
        (2,): [3, 3, 2, 2],
        (3,): [1, 2, 3, 4],
    },
)
FAIR = Toy({(): [1, 1]}, {(): [3, 2]})
CHAIN = {"name": "small_model", "depth": 2}
TREE = {"name": "small_model", "depth": 2, "branching": [2, 1]}


class Fixed(Drafter):
    """Proposes one tree, always: parents and tokens without the root."""

    def __init__(self, parents, tokens, law=SiblingLaw.DET, q=None):
        self.parents, self.drafted, self.law, self.q = [-1, *parents], tokens, law, q
        self.max_nodes, self.chain = len(self.parents), parents == list(range(len(parents)))

    def propose(self, state, chance) -> TokenTree:
        if state.deepest < 2:
            return TokenTree.root(state.roots, self.law)
        tokens = torch.cat(
            [state.roots[:, None], torch.tensor([self.drafted] * len(state.roots))], 1
        )
        return TokenTree(tokens, torch.tensor([self.parents] * len(tokens)), self.law, self.q)


def first_token(law) -> dict[int, float]:
    found: Counter = Counter()
    for tokens, probability in law.items():
        found[tokens[0]] += probability
    return dict(found)


# --------------------------------------------------------------------------- 1: a bonus unprocessed


class BonusFromRawLogits(Naive):
    """The bonus comes from softmax(logits), without the temperature."""

    def verify(self, trees: TokenTree, laws: Laws, chance) -> specdec.Verdict:
        walk = Walk(trees, laws.state.live)
        raw = laws.scores[walk.rows, walk.node].softmax(-1)
        return walk.verdict(chance.categorical(raw, walk.sites(), "bonus"))


def test_fault_1_bonus_without_temperature():
    toy = Toy({(): [7, 3]}, {(): [1, 1]})
    none, options = make({"name": "none"}, toy), {"tokens": 1, "temperature": 0.5}
    right = {(0,): 0.49 / 0.58, (1,): 0.09 / 0.58}
    assert exact(toy, none, "naive", **options).distance(right) < EXACT
    wrong = exact(toy, none, BonusFromRawLogits(), **options)
    assert dict(wrong.law) == pytest.approx({(0,): 0.7, (1,): 0.3})


# ---------------------------------------------------------------------- 2: no residual on rejection


def test_fault_2_rejection_samples_p(monkeypatch):
    assert exact(FOUR, make(CHAIN, FOUR), "token", 3).distance(FOUR.plain(3)) < EXACT
    monkeypatch.setattr(
        rejection, "residual", lambda p, q: (p, torch.zeros(len(p), dtype=torch.bool))
    )
    wrong = exact(FOUR, make(CHAIN, FOUR), "token", 3)
    assert wrong.distance(FOUR.plain(3)) == pytest.approx(81 / 500, abs=1e-12)
    # the accepted length is as it should be
    assert wrong.accepted == pytest.approx(99 / 100, abs=1e-12)


# -------------------------------------------------------------- 3: the target's draw is thrown away


class DrawsAgain(Naive):
    """On a mismatch the target's token is thrown away and another one drawn."""

    def verify(self, trees: TokenTree, laws: Laws, chance) -> specdec.Verdict:
        walk = Walk(trees, laws.state.live)
        for _ in range(trees.depth):
            child = walk.find(
                chance.categorical(laws[walk.rows, walk.node], walk.sites(), "target")
            )
            walk.step(child, walk.open & (child > 0))
        return walk.verdict(
            chance.categorical(
                laws[walk.rows, walk.node], walk.sites(live=laws.state.live), "again"
            )
        )


def test_fault_3_token_matching_draws_again():
    def drafter() -> Drafter:
        return Fixed([0, 1], [0, 0])

    assert exact(FAIR, drafter, "naive", 3).distance(FAIR.plain(3)) < EXACT
    wrong = exact(FAIR, drafter, DrawsAgain(), 3)
    assert first_token(wrong.law) == pytest.approx({0: 3 / 4, 1: 1 / 4})


# ------------------------------------------------------ 5: argmax drafts verified against softmax q


def test_fault_5_argmax_drafts_claim_to_be_samples():
    q = torch.tensor([0.6, 0.4], dtype=torch.float64).expand(1, 3, 2)
    right = exact(FAIR, lambda: Fixed([0, 1], [0, 0]), "token", 3)
    wrong = exact(FAIR, lambda: Fixed([0, 1], [0, 0], SiblingLaw.WR, q), "token", 3)
    assert right.distance(FAIR.plain(3)) < EXACT
    assert first_token(wrong.law) == pytest.approx({0: 5 / 6, 1: 1 / 6})


def test_fault_5_top_k_siblings_claim_to_be_samples(monkeypatch):
    top_k = {**TREE, "draw": "topk"}
    assert exact(FOUR, make(top_k, FOUR), "rrs_wor", 3).distance(FOUR.plain(3)) < EXACT
    monkeypatch.setattr(
        Trace, "without_replacement", lambda self, law, k, at, purpose: law.topk(k).indices
    )
    wrong = exact(FOUR, make({**TREE, "draw": "wor"}, FOUR), "rrs_wor", 3)
    assert wrong.distance(FOUR.plain(3)) > 0.2


# ----------------------------------------------- 14: temperature 0 judged by an unsharpened softmax


class UnsharpenedAtZero(Naive):
    """Accepts by p / q of the unsharpened softmax, then emits an argmax."""

    q = torch.tensor([[0.30, 0.25, 0.25, 0.20]], dtype=torch.float64)

    def verify(self, trees: TokenTree, laws: Laws, chance) -> specdec.Verdict:
        walk = Walk(trees, laws.state.live)
        for _ in range(trees.depth):
            child, p = walk.child(0), laws.scores[walk.rows, walk.node].softmax(-1)
            accepted = chance.bernoulli(
                ratio(p, self.q, walk.token(child)).clamp(max=1), walk.sites(child), "accept"
            )
            walk.step(child, walk.open & accepted & (child > 0))
        return walk.verdict(laws.argmax[walk.rows, walk.node])


def test_fault_14_temperature_0_with_an_unsharpened_test():
    toy = Toy({(): [35, 60, 3, 2]}, {(): [30, 25, 25, 20]})
    options = {"tokens": 3, "rounds": None, "temperature": 0.0}
    assert dict(exact(toy, make(CHAIN, toy), "greedy", **options).law) == {(1, 1, 1): 1.0}
    wrong = exact(toy, make(CHAIN, toy), UnsharpenedAtZero(), **options)
    assert first_token(wrong.law) == {0: 1.0}


# ------------------------------------------------------------------------------ 15: edited in place


def test_fault_15_p_edited_in_place_by_a_sibling(monkeypatch):
    """Right in what it returns; but a node with fewer siblings than another never had that residual
    taken."""

    def drafter() -> Drafter:
        return Fixed([0, 0, 1], [0, 1, 2])

    def in_place(p, q):
        left, empty = residual(p, q)
        p.copy_(left)
        return left, empty

    assert exact(FOUR, drafter, "rrs_wor", 3).distance(FOUR.plain(3)) < EXACT
    monkeypatch.setattr(rejection, "residual", in_place)
    assert exact(FOUR, drafter, "rrs_wor", 3).distance(FOUR.plain(3)) > 0.05


def test_fault_15_q_edited_in_place_while_drawing(monkeypatch):
    """Drawn tokens lose their weight in the very tensor that the tree records."""
    once = Trace.without_replacement

    def in_place(self, law, k, at, purpose):
        drawn = once(self, law, k, at, purpose)
        law.scatter_(1, drawn[:, :1], 0.0)
        return drawn

    assert exact(KNOWN, make(TREE, KNOWN), "rrs_wor", 3).distance(KNOWN.plain(3)) < EXACT
    monkeypatch.setattr(Trace, "without_replacement", in_place)
    with pytest.raises(ValueError, match="q gives a drawn token probability 0"):
        exact(KNOWN, make(TREE, KNOWN), "rrs_wor", 3)


class ShrinksSharedQ(RecursiveRejectionWithoutReplacement):
    """Takes rejected siblings out of the tree's q, which a drafter may share between nodes."""

    def verify(self, trees: TokenTree, laws: Laws, chance) -> specdec.Verdict:
        walk = Walk(trees, laws.state.live)
        bonus = torch.zeros_like(walk.node)
        for level in range(trees.depth + 1):
            p, undecided, chosen = (
                laws[walk.rows, walk.node],
                walk.open,
                torch.zeros_like(walk.node),
            )
            for rank in range(trees.width if level < trees.depth else 0):
                child = walk.child(rank)
                trying, token, q = undecided & (child > 0), walk.token(child), trees.q[:, 0]
                accepted = chance.bernoulli(
                    ratio(p, q, token).clamp(max=1), walk.sites(child, live=trying), "accept"
                )
                chosen, undecided = torch.where(accepted, child, chosen), undecided & ~accepted
                p = torch.where((trying & ~accepted)[:, None], residual(p, q)[0], p)
                q.copy_(drawn_out(q, token))  # in place
            bonus = torch.where(
                undecided, chance.categorical(p, walk.sites(live=undecided), "bonus"), bonus
            )
            if level < trees.depth:
                walk.step(chosen, walk.open & (chosen > 0))
        return walk.verdict(bonus)


def test_fault_15_q_edited_in_place_by_the_rule():
    toy = Toy(KNOWN.p, {(): [6, 1, 3]})  # one law for all nodes

    class Sharing(type(make(TREE, toy)())):
        def propose(self, state, chance) -> TokenTree:
            tree = super().propose(state, chance)
            q = None if tree.q is None else tree.q[:, :1].clone().expand(-1, tree.num_nodes, -1)
            return TokenTree(tree.tokens, tree.parents, tree.law, q)

    def drafter() -> Drafter:
        return Sharing(toy.draft, depth=2, branching=[2, 1])

    assert exact(toy, drafter, "rrs_wor", 3).distance(toy.plain(3)) < EXACT
    with pytest.raises(ValueError, match="q gives a drawn token probability 0"):
        exact(toy, drafter, ShrinksSharedQ(), 3)


# --------------------------------------------------------------------------- 11: correlated numbers


class OnePurpose(KeyedDraws):
    """The draft, its coin and the residual share their noise."""

    def uniform(self, at, k, purpose):
        return super().uniform(at, k, "any")


class NoRank(KeyedDraws):
    """Siblings share one number: re-seeded inside the loop."""

    def uniform(self, at, k, purpose):
        return (
            super().uniform(at._replace(ranks=torch.zeros_like(at.ranks)), 1, purpose).expand(-1, k)
        )


class ByPosition(KeyedDraws):
    """Keyed by the position alone, which the next round comes back to after a partial
    acceptance."""

    @property
    def rows(self):
        return chance._mix(self.request_ids + self.seed)

    def uniform(self, at, k, purpose):
        position = self.lengths[at.rows] + at.depths
        return super().uniform(at._replace(nodes=position, ranks=at.ranks * 0), k, purpose)


class Mutant(Keyed):
    """Keyed chance whose rounds hand out a broken kind of draws."""

    def __init__(self, draws: type[KeyedDraws], seed: int = 0) -> None:
        super().__init__(seed)
        self.draws = draws

    def round(self, state) -> KeyedDraws:
        return self.draws(self.seed, state.request_ids, state.lengths)


def repeats(source: Keyed, drafter: dict, rule: str) -> int:
    """How many numbers of one run were given out before."""
    watched, seen = recording(source)
    specdec.generate(
        FOUR.target,
        [[0], [1, 2]],
        drafter=make(drafter, FOUR)(),
        verifier=rule,
        temperature=1.0,
        max_new_tokens=40,
        chance=watched,
    )
    assert len(seen) > 100
    return len(seen) - len(set(seen))


@pytest.mark.parametrize(
    ("draws", "drafter", "rule"),
    [
        (OnePurpose, CHAIN, "naive"),
        (OnePurpose, CHAIN, "block"),
        (NoRank, TREE, "rrs_wor"),
        (ByPosition, CHAIN, "block"),
        (ByPosition, CHAIN, "token"),
        (ByPosition, TREE, "rrs_wor"),
    ],
)
def test_fault_11_reused_keys_are_seen_by_the_recording(draws, drafter, rule):
    assert repeats(Keyed(0), drafter, rule) == 0
    assert repeats(Mutant(draws), drafter, rule) > 0


def distance_over_rounds(source: Keyed, tokens: int, copies: int) -> float:
    """Total variation of sampled token counts (how many 1s) from plain sampling, over several
    rounds of block verification."""
    target = TableModel(COINS.p)
    out = specdec.generate(
        target,
        [[0]] * copies,
        drafter=make({"name": "small_model", "depth": 2}, COINS)(),
        verifier=Block(),
        temperature=1.0,
        max_new_tokens=tokens,
        chance=source,
    )
    found = Counter(tuple(row.tolist()) for row in out.tokens)
    plain = COINS.plain(tokens)
    return sum(abs(found[key] / copies - plain[key]) for key in plain) / 2


def test_keys_by_position_alone_bend_the_law_of_several_rounds():
    """One round would not show it: the coins of a position are known to have failed when the next
    round meets them."""
    tokens, copies = 4, 3000
    noise = distance_over_rounds(Keyed(1), tokens, copies)
    assert noise < 0.035
    assert distance_over_rounds(Mutant(ByPosition, 1), tokens, copies) > 0.05


# ---------------------------------------------------------------- 12: the ends of the unit interval


class ConstantChance(Keyed):
    """Every u is one number, clamped below 1 or not."""

    def __init__(self, u: float, closed: bool = False) -> None:
        super().__init__(0)
        self.u, self.closed = u, closed

    def round(self, state) -> Injected:
        draws = Injected(self.u)
        if self.closed:
            draws.bernoulli = lambda p, at, purpose: (
                (draws.uniform(at, 1, purpose)[:, 0] <= p) & at.live
            )
        return draws


IMPOSSIBLE = Toy({(): [0, 1, 1, 0]}, {(): [1, 0, 0, 1]})  # q draws only what p forbids


def tokens_at(source: Keyed, rule, drafter=CHAIN) -> set[int]:
    out = specdec.generate(
        IMPOSSIBLE.target,
        [[1]],
        drafter=make(drafter, IMPOSSIBLE)(),
        verifier=rule,
        temperature=1.0,
        max_new_tokens=8,
        chance=source,
    )
    return set(out.tokens[0].tolist())


@pytest.mark.parametrize("u", [0.0, BELOW_1])
@pytest.mark.parametrize(
    ("drafter", "rule"),
    [
        (CHAIN, "token"),
        (CHAIN, "block"),
        (CHAIN, "naive"),
        (TREE, "rrs_wor"),
        ({**TREE, "draw": "wr"}, "rrs_wr"),
    ],
)
def test_nothing_of_probability_0_is_emitted_at_the_ends(drafter, rule, u):
    assert tokens_at(ConstantChance(u), rule, drafter) <= {1, 2}


def test_fault_12_less_or_equal_accepts_probability_0():
    assert not tokens_at(ConstantChance(0.0, closed=True), "token") <= {1, 2}


def test_fault_12_a_coin_of_exactly_1():
    assert not tokens_at(ConstantChance(1.0), "naive") <= {1, 2}
    # 64 bits of 1: the largest number there is
    assert float(chance._unit(torch.tensor([-1]))) == BELOW_1


# ---------------------------------------------------------------------------- 13: nothing left of p


class Rejecting(Keyed):
    """Every coin fails, as rounding can make it fail where p and q are the same."""

    def round(self, state) -> KeyedDraws:
        draws = super().round(state)
        draws.bernoulli = lambda p, at, purpose: torch.zeros_like(at.live)
        return draws


SAME = Toy({(): [0, 3, 1, 0]}, {(): [0, 3, 1, 0]})


def rejected_everywhere(rule) -> specdec.Output:
    return specdec.generate(
        SAME.target,
        [[1]],
        drafter=make(CHAIN, SAME)(),
        verifier=rule,
        temperature=1.0,
        max_new_tokens=40,
        chance=Rejecting(0),
    )


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_zero_residual_emits_from_the_target_and_is_counted(rule):
    out = rejected_everywhere(rule)
    counts = Counter(out.tokens[0].tolist())
    assert set(counts) == {1, 2}
    assert counts[1] > counts[2]
    assert out.report.counts["zero_residuals"] > 30


def test_fault_13_a_zero_residual_without_a_guard(monkeypatch):
    def unguarded(p, q):
        left = (p - q).clamp(min=0)
        return left / left.sum(-1, keepdim=True), torch.zeros(len(p), dtype=torch.bool)

    monkeypatch.setattr(rejection, "residual", unguarded)
    out = rejected_everywhere("token")
    assert not (set(out.tokens[0].tolist()) == {1, 2} and out.report.counts["zero_residuals"] > 30)


@pytest.mark.parametrize("u", [0.0, BELOW_1])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_p_equal_to_q_is_accepted_whatever_u_is(rule, u):
    out = specdec.generate(
        SAME.target,
        [[1]],
        drafter=make(CHAIN, SAME)(),
        verifier=rule,
        temperature=1.0,
        max_new_tokens=9,
        chance=ConstantChance(u),
    )
    assert out.report.tau == 3
    assert out.report.counts["zero_residuals"] == 0


# --------------------------------------------------------------------------------- 17: past the end


class WithEnd(TableModel):
    eos_ids = frozenset({2})


ENDS = Toy({(): [1, 8, 1], (1,): [1, 8, 1], (1, 1): [0, 0, 1]}, {(): [1, 8, 1]})


def ends_well() -> bool:
    """An accepted path runs past EOS, and past the length: neither shows in what comes out."""
    past_end = Fixed([0, 1, 2, 3], [1, 1, 2, 1])
    past_end_too = Fixed([0, 1, 2, 3], [1, 1, 2, 1])
    ended = specdec.generate(WithEnd(ENDS.p), [[0]], drafter=past_end, max_new_tokens=12)
    cut = specdec.generate(
        WithEnd(ENDS.p), [[0]], drafter=past_end_too, max_new_tokens=5, ignore_eos=True
    )
    eos = (
        ended.tokens[0].tolist() == [1, 1, 2]
        and ended.finish_reasons == ["eos"]
        and ended.report.num_tokens == 3
    )
    return eos and len(cut.tokens[0]) == 5 and cut.finish_reasons == ["length"]


def test_fault_17_accepted_past_the_end(monkeypatch):
    assert ends_well()

    def keeps_everything(self, tokens):
        self.tokens += tokens
        if self.eos_ids & set(tokens) or len(self.tokens) >= self.room:
            self.finish_reason = "eos"
        return tokens

    monkeypatch.setattr(Emission, "add", keeps_everything)
    assert not ends_well()
