"""The exact certificate: the real drafter and the real verifier, outcome by outcome, in float64.

The first round (or two) runs for real, and plain decoding fills up to `tokens` tokens. This
compares the joint law of a round and of what follows it with the target's. The total variation must
be below 1e-12; for laws in float32 a bound on their rounding is added and reported.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import specdec
from experiments.certificates.enumeration import Rounding, estimate, outcomes
from experiments.certificates.tables import Law, Prefix, Tables, distance
from specdec import Drafter
from specdec.chance import Chance

LOSSLESS = 1e-12
OUTCOMES = 200_000  # enumeration gives up after this many
TWO_ROUNDS = 100  # two rounds run for real if one round has at most this many outcomes
DEPTHS = (1, 2, 3)
ROWS = 256  # outcomes side by side

# tokens that a row emitted so far, drafted tokens accepted in its first round
Round = tuple[Prefix, int]


@dataclass(frozen=True)
class Exact:
    """What enumeration found on one pair of tables."""

    tables: str
    tokens: int  # whose joint law was compared
    rounds: int  # that ran for real
    outcomes: int
    covered: float  # probability of the outcomes enumerated; below 1 where the enumeration gave up
    complete: bool
    tv: float | None  # None where it gave up
    accepted: float | None  # expected drafted tokens accepted in the first round
    rounding: float = 0.0  # what laws that are not in float64 may add to `tv`, at most

    @property
    def lossless(self) -> bool:
        return self.tv is not None and self.tv < LOSSLESS + self.rounding

    def __str__(self) -> str:
        if not self.complete:
            return (
                f"{self.tables}: gave up after {self.outcomes} outcomes, which cover "
                f"{self.covered:.1%} of the probability; nothing is certified (outcomes=N raises "
                "the limit)"
            )
        return (
            f"{self.tables}: {self.rounds} round(s), {self.outcomes} outcomes, TV {self.tv:.2e}"
            f"{rounding(self.rounding)}, accepted {self.accepted:.4f}"
        )


def rounding(bound: float) -> str:
    """The remark on a total variation when laws were not in float64."""
    return f" (rounding of laws in less than float64: at most {bound:.2g})" if bound else ""


def side_by_side(learns: bool, rows: int = ROWS) -> int:
    """How many outcomes may be rows of one batch. If the drafter learns, rows would share what it
    learns, so each outcome is a separate run."""
    return 1 if learns else rows


def program(
    tables: Tables, drafter: Callable[[Tables], Drafter], verifier: Any, tokens: int, rounds: int
) -> Callable[[Chance, int], Sequence[Round]]:
    """`rounds` rounds of decoding as a function of its draws. A drafter that learns is made anew
    for each run, and takes one row."""
    target, made = tables.target(), drafter(tables)

    def run(chance: Chance, rows: int) -> Sequence[Round]:
        assert rows == side_by_side(made.learns, rows)
        events = specdec.stream(
            target,
            [list(tables.prompt)] * rows,
            drafter=drafter(tables) if made.learns else made,
            verifier=verifier,
            max_new_tokens=tokens,
            chance=chance,
            allow_lossy=True,
            **tables.sampling,
        )
        emitted: list[list[int]] = [[] for _ in range(rows)]
        accepted, left = [0] * rows, [rounds] * rows
        for event in events:
            row = event.row
            if left[row] == rounds:
                accepted[row] = event.num_accepted
            emitted[row] += event.tokens
            left[row] = 0 if event.finish_reason else left[row] - 1
            if not any(left):
                break
        return list(zip(map(tuple, emitted), accepted, strict=True))

    return run


def exact(
    tables: Tables,
    drafter: Callable[[Tables], Drafter],
    verifier: Any,
    tokens: int,
    rounds: int = 1,
    limit: int = OUTCOMES,
    advance: Callable[[int], None] = lambda outcomes: None,
    rows: int = ROWS,
) -> Exact:
    """The joint law of `tokens` tokens, of which the first `rounds` rounds run for real. `advance`
    hears of every outcome; at most `rows` of them are run side by side."""
    law: Law = defaultdict(float)
    shares: list[float] = []
    lengths: list[float] = []
    rounded = Rounding()
    rows = side_by_side(drafter(tables).learns, rows)
    for probability, (emitted, accepted) in outcomes(
        program(tables, drafter, verifier, tokens, rounds), rows, rounded
    ):
        if len(shares) == limit:
            return Exact(tables.name, tokens, rounds, limit, math.fsum(shares), False, None, None)
        shares.append(probability)
        lengths.append(probability * accepted)
        law[emitted] += probability
        advance(1)
    joint: Law = defaultdict(float)
    for emitted, probability in law.items():
        for key, mass in tables.completions(emitted, probability, tokens):
            joint[key] += mass
    covered, tv = math.fsum(shares), distance(joint, tables.plain(tokens))
    accepted = math.fsum(lengths)
    return Exact(
        tables.name, tokens, rounds, len(shares), covered, True, tv, accepted, rounded.bound
    )


def suite(
    drafter: Callable[[Tables], Drafter],
    verifier: Any,
    sets: Sequence[Tables],
    size: int,
    limit: int = OUTCOMES,
    advance: Callable[[int], None] = lambda outcomes: None,
) -> tuple[list[Exact], list[str]]:
    """A pair on a set of tables, and what was left out and why.

    On each table: one round at depth 1, and at every further depth with an estimated `size`
    outcomes or fewer; two rounds if one round has at most 100. Raises specdec.Refused for a pair
    that the contract does not allow.
    """
    found: list[Exact] = []
    left_out: list[str] = []
    for tables in sets:
        shallower: Exact | None = None

        def too_many(what: str, tokens: int, rounds: int, tables: Tables = tables) -> bool:
            estimated = estimate(
                program(tables, drafter, verifier, tokens, rounds),
                rows=side_by_side(drafter(tables).learns),
            )
            if estimated > size:
                left_out.append(
                    f"{tables.name}: {what}: about {estimated:.3g} outcomes, more than size={size}"
                )
            return estimated > size

        try:
            for depth in DEPTHS:
                if depth > 1 and too_many(f"depth {depth}", depth + 1, 1):
                    break
                one = exact(tables, drafter, verifier, depth + 1, 1, limit, advance)
                if shallower and (one.outcomes, one.accepted) == (
                    shallower.outcomes,
                    shallower.accepted,
                ):
                    break  # the drafter goes no deeper
                shallower = one
                found.append(one)
                title, twice = f"two rounds at depth {depth}", 2 * (depth + 1)
                if one.outcomes > TWO_ROUNDS:
                    left_out.append(
                        f"{tables.name}: {title}: one round has more than {TWO_ROUNDS} outcomes"
                    )
                elif one.complete and not too_many(title, twice, 2):
                    found.append(exact(tables, drafter, verifier, twice, 2, limit, advance))
        except specdec.Refused:
            raise
        except ValueError as error:
            left_out.append(f"{tables.name}: {error}")
    return found, left_out
