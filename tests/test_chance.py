"""Chance: draws follow their laws, no key is used twice, rows do not know their neighbours,
outcomes are complete."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

import specdec
from experiments.certificates.suite import pairs
from specdec import Coupled, Enumerate, Keyed, Sites
from specdec.chance import KeyedDraws
from tests.exact import KNOWN, TOY, make, title

BELOW_1 = 1 - 2.0**-53  # the largest u that there is
LAW = [0.0, 0.4, 0.1, 0.0, 0.3, 0.2, 0.0]
ALMOST_NEVER = 1e-6  # size of each statistical test; all seeds are fixed


def state_of(requests: list[int], lengths: list[int]) -> SimpleNamespace:
    return SimpleNamespace(request_ids=torch.tensor(requests), lengths=torch.tensor(lengths))


def sites(count: int, node: int = 0, rank: int = 0, depth: int = 0) -> Sites:
    """One site in each of `count` rows."""
    rows = torch.arange(count)
    full = torch.full_like
    return Sites(
        rows,
        full(rows, node),
        full(rows, rank),
        full(rows, depth),
        torch.ones(count, dtype=torch.bool),
    )


def draws_of(chance, count: int):
    return chance.round(state_of(list(range(count)), [7] * count))


class Injected(KeyedDraws):
    """Draws whose every u is the same number."""

    def __init__(self, u: float) -> None:
        super().__init__(0, torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long))
        self.u = u

    def uniform(self, at: Sites, k: int, purpose: str) -> torch.Tensor:
        return torch.full((len(at.rows), k), self.u, dtype=torch.float64)


def fits(counts: Counter, law: dict, total: int) -> None:
    """Nothing of probability 0 came, and a chi-squared test finds nothing."""
    assert not [outcome for outcome in counts if law.get(outcome, 0) == 0]
    cells = [outcome for outcome, probability in law.items() if probability > 0]
    expected = [law[cell] * total for cell in cells]
    assert min(expected) > 5
    assert stats.chisquare([counts[cell] for cell in cells], expected).pvalue > ALMOST_NEVER


# -------------------------------------------------------------------------------------------- Keyed

N = 40_000


def test_uniform_numbers_are_uniform_and_below_1():
    u = draws_of(Keyed(1), N).uniform(sites(N), 3, "draft")
    assert float(u.min()) >= 0
    assert float(u.max()) <= BELOW_1
    for column in u.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > ALMOST_NEVER
    for one, other in itertools.combinations(u.T, 2):
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / math.sqrt(N)


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_coins(p):
    heads = int(
        draws_of(Keyed(2), N)
        .bernoulli(torch.full((N,), p, dtype=torch.float64), sites(N), "accept")
        .sum()
    )
    assert stats.binomtest(heads, N, p).pvalue > ALMOST_NEVER
    assert heads == N * p or 0 < p < 1


def test_categorical_draws():
    drawn = draws_of(Keyed(3), N).categorical(torch.tensor([LAW] * N), sites(N), "bonus")
    fits(Counter(drawn.tolist()), dict(enumerate(LAW)), N)


def test_weights_need_not_sum_to_one():
    heavy = torch.tensor([LAW] * 50, dtype=torch.float64)
    light = draws_of(Keyed(3), 50).categorical(heavy * 1e-9, sites(50), "bonus")
    assert torch.equal(draws_of(Keyed(3), 50).categorical(heavy, sites(50), "bonus"), light)


def test_independent_draws():
    drawn = draws_of(Keyed(4), N).independent(torch.tensor([LAW] * N), 2, sites(N), "draft")
    law = {(a, b): LAW[a] * LAW[b] for a, b in itertools.product(range(7), repeat=2)}
    fits(Counter(map(tuple, drawn.tolist())), law, N)


def test_draws_without_replacement():
    drawn = draws_of(Keyed(5), N).without_replacement(torch.tensor([LAW] * N), 2, sites(N), "draft")
    law = {(a, b): LAW[a] * LAW[b] / (1 - LAW[a]) for a, b in itertools.permutations(range(7), 2)}
    fits(Counter(map(tuple, drawn.tolist())), law, N)


def test_without_replacement_draws_the_whole_support_first():
    drawn = draws_of(Keyed(6), 300).without_replacement(
        torch.tensor([LAW] * 300), 7, sites(300), "draft"
    )
    assert all(set(row[:4]) == {1, 2, 4, 5} for row in drawn.tolist())


@pytest.mark.parametrize("u", [0.0, BELOW_1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_of_weight_0_never_come_whatever_u_is(u, dtype):
    law = torch.tensor(
        [LAW, [0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0], [0, 1e-30, 0, 0, 1e-30, 0, 0]],
        dtype=dtype,
    )
    draws, at = Injected(u), sites(4)
    for drawn in (
        draws.categorical(law, at, "bonus")[:, None],
        draws.independent(law, 3, at, "draft"),
        draws.without_replacement(law, 1, at, "draft"),
        draws.without_replacement(law, 4, at, "draft")[:1],
    ):
        assert (law[: len(drawn)].gather(1, drawn) > 0).all()


def test_coins_at_the_ends_of_the_unit_interval():
    p, at = torch.tensor([0.0, 2.0**-60, 1.0, BELOW_1], dtype=torch.float64), sites(4)
    assert Injected(0.0).bernoulli(p, at, "accept").tolist() == [False, True, True, True]
    assert Injected(BELOW_1).bernoulli(p, at, "accept").tolist() == [False, False, True, False]
    for u, expected in ((0.0, [False, True, True, True]), (BELOW_1, [False, False, True, False])):
        places = Injected(u).places(at, "accept")
        assert places.bernoulli(slice(None), p, None).tolist() == expected
        assert places.bernoulli(torch.arange(4), p, at.live).tolist() == expected


@pytest.mark.parametrize("towards", [0.0, 1.0])
def test_coins_next_to_their_threshold(towards):
    threshold = torch.tensor([0.3], dtype=torch.float64)
    u = float(torch.nextafter(threshold, torch.tensor([towards], dtype=torch.float64)))
    assert bool(Injected(u).bernoulli(threshold, sites(1), "accept")) == (towards == 0.0)
    assert not bool(Injected(0.3).bernoulli(threshold, sites(1), "accept"))
    places = Injected(0.3).places(sites(1), "accept")
    assert not bool(places.bernoulli(slice(0, 1), threshold, None))


def test_places_that_are_known_beforehand_draw_what_others_do():
    """All kinds of draws, in parts, with sites that are not live."""
    at = sites(6, node=3, rank=1)._replace(live=torch.tensor([True] * 4 + [False] * 2))
    draws, law = draws_of(Keyed(3), 6), torch.rand(6, 7, generator=torch.Generator().manual_seed(0))
    places = draws.places(at, "draft", 3)
    for part in (slice(0, 4), slice(2, 6), torch.tensor([5, 0, 3])):
        for live in (None, torch.tensor([True, False, True, True])[: len(law[part])]):
            here = Sites(*(each[part] for each in at))
            here = here if live is None else here._replace(live=live)
            for kind in ("independent", "without_replacement"):
                plain = getattr(draws, kind)(law[part], 3, here, "draft")
                known = getattr(places, kind)(part, law[part], 3, live)
                assert torch.equal(known, plain)
            p = law[part, 0]
            known = places.bernoulli(part, p, live)
            assert torch.equal(known, draws.bernoulli(p, here, "draft"))


@pytest.mark.parametrize("chance", [Keyed(0), Coupled(0)])
def test_a_dead_site_answers_0(chance):
    at = sites(2)._replace(live=torch.tensor([True, False]))
    law, draws = torch.tensor([[0, 1.0], [0, 1.0]]), draws_of(chance, 2)
    assert draws.categorical(law, at, "bonus").tolist() == [1, 0]
    assert draws.independent(law, 2, at, "draft").tolist() == [[1, 1], [0, 0]]
    if isinstance(chance, Keyed):
        assert draws.bernoulli(torch.ones(2), at, "accept").tolist() == [True, False]


def test_everything_that_names_a_place_changes_its_numbers():
    """Seed, request, length, node, rank and purpose; depth is no name, two siblings share it."""
    base = (0, 3, 7, 2, 1, "draft")
    others = [(1, 3, 7, 2, 1, "draft"), (0, 4, 7, 2, 1, "draft"), (0, 3, 8, 2, 1, "draft")]
    others += [(0, 3, 7, 3, 1, "draft"), (0, 3, 7, 2, 2, "draft"), (0, 3, 7, 2, 1, "accept")]

    def number(seed, request, length, node, rank, purpose) -> float:
        draws = Keyed(seed).round(state_of([request], [length]))
        return float(draws.uniform(sites(1, node, rank), 1, purpose))

    assert len({number(*place) for place in [base, *others]}) == 7
    assert number(*base) == number(*base)


def test_numbers_are_fixed_for_good():
    """Golden: the hash is part of what a seed means."""
    golden = [0.33138818915933144, 0.0014529011030431915, 0.11601141349891697, 0.5396533464933262]
    numbers = (
        Keyed(42).round(state_of([0, 9], [5, 6])).uniform(sites(2, node=1, rank=2), 2, "draft")
    )
    assert numbers.flatten().tolist() == golden


# ---------------------------------------------------------------------------------- no number twice


def recording(chance: Keyed) -> tuple[Keyed, list[float]]:
    """The same chance, and every number that it gives to a live site. 53 bits: two alike are one
    key used twice."""
    seen: list[float] = []
    start = chance.round

    def round(state):
        draws = start(state)
        numbers = draws.uniform

        def uniform(at: Sites, k: int, purpose: str):
            found = numbers(at, k, purpose)
            seen.extend(found[at.live].flatten().tolist())
            return found

        draws.uniform = uniform
        return draws

    chance.round = round
    return chance, seen


@pytest.mark.parametrize(("drafter", "rule"), pairs(), ids=title)
def test_no_key_is_used_twice(drafter, rule):
    chance, seen = recording(Keyed(3))
    rows = [[0], [0, 1, 0, 1], [2, 2]]
    specdec.generate(
        KNOWN.target,
        rows,
        drafter=make(drafter, KNOWN)(),
        verifier=rule,
        temperature=1.0,
        max_new_tokens=25,
        chance=chance,
        allow_lossy=True,
    )
    assert len(seen) >= 3
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("drafter", "rule"), pairs(), ids=title)
def test_a_rows_numbers_and_tokens_do_not_depend_on_its_neighbours(drafter, rule):
    toy = replace(TOY, prompt=(0,))
    if make(drafter, toy)().learns:
        pytest.skip("what it drafts depends on the requests that it has met")
    rows = {5: [0, 1, 0, 1], 8: [2, 0, 2, 2, 0, 2], 6: [1]}

    def tokens(*requests: int) -> dict[int, list[int]]:
        out = specdec.generate(
            toy.target,
            [rows[request] for request in requests],
            drafter=make(drafter, toy)(),
            verifier=rule,
            temperature=1.0,
            max_new_tokens=12,
            seed=11,
            request_ids=requests,
            allow_lossy=True,
        )
        return {request: row.tolist() for request, row in zip(requests, out.tokens, strict=True)}

    alone = {**tokens(5), **tokens(8), **tokens(6)}
    assert tokens(5, 8, 6) == alone
    assert tokens(6, 5) == {request: alone[request] for request in (6, 5)}


def test_copies_of_one_prompt_are_independent():
    out = specdec.generate(
        KNOWN.target,
        [[0]] * 400,
        drafter=make({"name": "small_model"}, KNOWN)(),
        temperature=1.0,
        max_new_tokens=2,
    )
    fits(Counter(tuple(row.tolist()) for row in out.tokens), KNOWN.plain(2), 400)


# ------------------------------------------------------------------------------------------ Coupled


@pytest.mark.parametrize("rank", [0, 1])
def test_coupled_marginals(rank):
    """The winner of a race has the law; the second one is drawn without replacement from the
    rest."""
    drawn = draws_of(Coupled(1), N).without_replacement(
        torch.tensor([LAW] * N), 2, sites(N), "draft"
    )
    second = {b: sum(LAW[a] * LAW[b] / (1 - LAW[a]) for a in range(7) if a != b) for b in range(7)}
    fits(Counter(drawn[:, rank].tolist()), second if rank else dict(enumerate(LAW)), N)


def test_coupled_races_belong_to_positions_not_to_rounds():
    law = torch.tensor([LAW] * 500)
    early = (
        Coupled(1)
        .round(state_of(list(range(500)), [7] * 500))
        .categorical(law, sites(500, node=4, depth=3), "target")
    )
    late = (
        Coupled(1)
        .round(state_of(list(range(500)), [10] * 500))
        .categorical(law, sites(500, depth=0), "draft")
    )
    assert torch.equal(early, late)
    other = (
        Coupled(1)
        .round(state_of(list(range(500)), [11] * 500))
        .categorical(law, sites(500), "draft")
    )
    assert not torch.equal(late, other)


def test_coupled_tokens_of_weight_0_never_win():
    drawn = draws_of(Coupled(1), 2000).independent(
        torch.tensor([LAW] * 2000), 6, sites(2000), "draft"
    )
    assert set(drawn.flatten().tolist()) == {1, 2, 4, 5}


def test_coupled_draft_and_target_agree_more_often_than_independent_ones():
    p, q = torch.tensor([LAW] * N), torch.tensor([LAW[::-1]] * N)
    draws = draws_of(Coupled(3), N)
    agree = float(
        (draws.categorical(p, sites(N), "target") == draws.categorical(q, sites(N), "draft"))
        .double()
        .mean()
    )
    distance = float((p[0] - q[0]).abs().sum()) / 2
    assert agree > (1 - distance) / (1 + distance) - 0.01


# ---------------------------------------------------------------------------------------- Enumerate


@pytest.mark.parametrize(
    "draw",
    [
        lambda draws, law, at: draws.categorical(law, at, "bonus"),
        lambda draws, law, at: draws.independent(law, 2, at, "draft"),
        lambda draws, law, at: draws.without_replacement(law, 3, at, "draft"),
        lambda draws, law, at: draws.bernoulli(law[:, 1], at, "accept"),
    ],
)
def test_probabilities_of_all_outcomes_sum_to_1(draw):
    law, at = torch.tensor([LAW], dtype=torch.float64), sites(1)
    found = [
        probability
        for probability, _ in Enumerate().runs(
            lambda chance: draw(chance.round(state_of([0], [1])), law, at)
        )
    ]
    assert sum(found) == pytest.approx(1, abs=1e-14)
    assert len(found) > 1
    assert min(found) > 0


@pytest.mark.parametrize("k", [1, 2, 3])
def test_enumerated_draws_are_the_laws_that_keyed_draws_follow(k):
    law, at = torch.tensor([LAW], dtype=torch.float64), sites(1)
    found: Counter = Counter()
    for probability, drawn in Enumerate().runs(
        lambda chance: chance.round(state_of([0], [1])).without_replacement(law, k, at, "")
    ):
        found[tuple(drawn[0].tolist())] += probability
    for order in itertools.permutations((1, 2, 4, 5), k):
        left, expected = 1.0, 1.0
        for token in order:
            expected *= LAW[token] / left
            left -= LAW[token]
        assert found[order] == pytest.approx(expected, abs=1e-14)


def test_what_one_outcome_decides_the_next_draw_may_depend_on():
    def program(chance):
        draws, at = chance.round(state_of([0], [1])), sites(1)
        first = draws.bernoulli(torch.tensor([0.25]), at, "first")
        return (
            "heads"
            if first
            else int(draws.categorical(torch.tensor([[0.5, 0.0, 0.5]]), at, "second"))
        )

    assert sorted(
        (out, probability) for probability, out in Enumerate().runs(program) if out != "heads"
    ) == [(0, 0.375), (2, 0.375)]


def test_enumerate_says_how_it_is_used():
    with pytest.raises(ValueError, match=r"Enumerate\(\)\.runs gives"):
        draws_of(Enumerate(), 1)
    with pytest.raises(ValueError, match="one row, this run has 2"):
        list(Enumerate().runs(lambda chance: chance.round(state_of([0, 1], [1, 1]))))
    flips = iter([True, False, False])
    with pytest.raises(ValueError, match="not a function of its draws"):
        for _ in Enumerate().runs(
            lambda chance: (
                next(flips)
                and chance.round(state_of([0], [1])).bernoulli(torch.tensor([0.5]), sites(1), "")
            )
        ):
            pass


def test_enumeration_follows_draws_that_are_certain_but_for_rounding():
    """Whether a draw has one branch or two may differ by rounding from one repeat to the next, as
    laws that were computed in other company do. The draws that come after it keep their places."""
    at, repeats = sites(1), itertools.count()

    def program(chance):
        draws = chance.round(state_of([0], [7]))
        noise = 1e-15 * (next(repeats) % 2)
        first = int(draws.categorical(torch.tensor([[noise, 1.0]], dtype=torch.float64), at, "a"))
        second = int(draws.categorical(torch.tensor([[0.25, 0.75]], dtype=torch.float64), at, "b"))
        return first, second

    law = Counter()
    for probability, out in Enumerate().runs(program):
        law[out] += probability
    assert [law[1, 0], law[1, 1]] == pytest.approx([0.25, 0.75])
