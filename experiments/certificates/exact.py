"""The exact certificate: the real drafter and the real verifier, outcome by outcome, in float64.

The first round (or two) runs for real and what is missing to `tokens` tokens is plain decoding, so
that the joint law of a round and of what follows it is compared with the target's. The total
variation has to be below 1e-12.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import specdec
from experiments.certificates.enumeration import estimate, outcomes
from experiments.certificates.tables import Law, Prefix, Tables, distance
from specdec import Drafter
from specdec.chance import Chance

LOSSLESS = 1e-12
OUTCOMES = 200_000  # enumeration gives up after as many
TWO_ROUNDS = 100  # two rounds run for real where one has at most as many outcomes
DEPTHS = (1, 2, 3)

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

    @property
    def lossless(self) -> bool:
        return self.tv is not None and self.tv < LOSSLESS

    def __str__(self) -> str:
        if not self.complete:
            return (
                f"{self.tables}: gave up after {self.outcomes} outcomes, which cover "
                f"{self.covered:.1%} of the probability; nothing is certified (outcomes=N raises "
                "the limit)"
            )
        return (
            f"{self.tables}: {self.rounds} round(s), {self.outcomes} outcomes, TV {self.tv:.2e}, "
            f"accepted {self.accepted:.4f}"
        )


def program(
    tables: Tables, drafter: Callable[[Tables], Drafter], verifier: Any, tokens: int, rounds: int
) -> Callable[[Chance, int], Sequence[Round]]:
    """`rounds` rounds of decoding as a function of its draws: a drafter that learns is cold."""
    target, made = tables.target(), drafter(tables)

    def run(chance: Chance, rows: int) -> Sequence[Round]:
        made.forget()
        events = specdec.stream(
            target,
            [list(tables.prompt)] * rows,
            drafter=made,
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
    rows: int = 256,
) -> Exact:
    """The joint law of `tokens` tokens, of which the first `rounds` rounds run for real. `advance`
    hears of every outcome; `rows` of them are run side by side, or one where rows may learn from
    one another."""
    rows = 1 if drafter(tables).learns else rows
    law: Law = defaultdict(float)
    shares: list[float] = []
    lengths: list[float] = []
    for probability, (emitted, accepted) in outcomes(
        program(tables, drafter, verifier, tokens, rounds), rows
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
    return Exact(tables.name, tokens, rounds, len(shares), covered, True, tv, math.fsum(lengths))


def suite(
    drafter: Callable[[Tables], Drafter],
    verifier: Any,
    sets: Sequence[Tables],
    size: int,
    limit: int = OUTCOMES,
    advance: Callable[[int], None] = lambda outcomes: None,
) -> tuple[list[Exact], list[str]]:
    """A pair on a set of tables, and what was left out and why.

    On each, one round at every depth whose outcomes are estimated beforehand at `size` or fewer,
    depth 1 always; two rounds where one has at most 100. Raises specdec.Refused for a pair that the
    contract does not allow.
    """
    found: list[Exact] = []
    left_out: list[str] = []
    for tables in sets:
        shallower: Exact | None = None

        def too_many(what: str, tokens: int, rounds: int, tables: Tables = tables) -> bool:
            estimated = estimate(program(tables, drafter, verifier, tokens, rounds))
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
