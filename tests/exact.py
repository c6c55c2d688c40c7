"""The exact law of the real implementation on models small enough to write down."""

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import specdec
from experiments.certificates import suite
from experiments.certificates.suite import title as title
from specdec import Enumerate
from specdec.models.table import TableModel

Table = dict[tuple[int, ...], list[int]]
Law = dict[tuple[int, ...], float]


def table(vocabulary: int, depth: int, seed: int) -> Table:
    """Small integer weights for every prefix up to `depth`, about a quarter of them 0, no two rows
    related."""
    weights = random.Random(seed)
    rows = {}
    for length in range(depth + 1):
        for prefix in itertools.product(range(vocabulary), repeat=length):
            row = [weights.choice([0, 1, 2, 3, 5]) for _ in range(vocabulary)]
            row[weights.randrange(vocabulary)] += 1
            rows[prefix] = row
    return rows


@dataclass(frozen=True)
class Toy:
    """A target and a draft model as tables, and the prompt that both continue. Its repetitions give
    n-grams something."""

    p: Table
    q: Table
    prompt: tuple[int, ...] = (0,)

    @property
    def target(self) -> TableModel:
        return TableModel(self.p, prompt=len(self.prompt))

    @property
    def draft(self) -> TableModel:
        return TableModel(self.q, prompt=len(self.prompt))

    def plain(self, tokens: int) -> Law:
        """The joint law of plain sampling."""
        return dict(self.completions((), 1.0, tokens))

    def completions(
        self, prefix: tuple[int, ...], probability: float, tokens: int
    ) -> Iterator[tuple[tuple[int, ...], float]]:
        """Every way in which plain sampling goes on from `prefix` to `tokens` tokens."""
        if len(prefix) == tokens:
            yield prefix, probability
            return
        row = self.p.get(prefix, self.p[()])
        for token, weight in enumerate(row):
            if weight:
                yield from self.completions(
                    (*prefix, token), probability * weight / sum(row), tokens
                )


TOY = Toy(table(3, 3, 1), table(3, 3, 2), (0, 1, 0, 2, 0))
COINS = Toy({(): [1, 2]}, {(): [2, 1]})
# A context-dependent target and draft model over three tokens, for which the expected accepted
# lengths are known.
KNOWN = Toy(
    p={
        (): [5, 3, 2],
        (0,): [1, 6, 3],
        (1,): [4, 4, 2],
        (2,): [2, 1, 7],
        (0, 0): [1, 1, 2],
        (0, 1): [3, 1, 1],
        (0, 2): [1, 2, 2],
        (1, 0): [2, 2, 1],
        (1, 1): [1, 5, 4],
        (1, 2): [6, 1, 3],
        (2, 0): [1, 1, 8],
        (2, 1): [3, 3, 4],
        (2, 2): [7, 2, 1],
    },
    q={(): [6, 1, 3], (0,): [2, 3, 5], (1,): [7, 2, 1], (2,): [4, 3, 3]},
)


@dataclass
class Result:
    """What enumeration found: the law of the tokens, the expected accepted length of the first
    round, how many outcomes."""

    law: Law = field(default_factory=lambda: defaultdict(float))
    accepted: float = 0.0
    outcomes: int = 0

    def distance(self, other: Law) -> float:
        """Total variation."""
        return (
            sum(abs(self.law.get(key, 0.0) - other.get(key, 0.0)) for key in {*self.law, *other})
            / 2
        )


def exact(
    toy: Toy,
    drafter: Callable[[], Any],
    verifier: Any,
    tokens: int,
    rounds: int | None = 1,
    **options: Any,
) -> Result:
    """The law of `tokens` tokens when `rounds` rounds are run for real (None: all) and the rest is
    plain sampling."""
    found, target = Result(), toy.target
    options = {"temperature": 1.0, **options}

    def program(chance: Any) -> list[specdec.Event]:
        events = specdec.stream(
            target,
            [list(toy.prompt)],
            drafter=drafter(),
            verifier=verifier,
            max_new_tokens=tokens,
            chance=chance,
            **options,
        )
        return list(itertools.islice(events, rounds))

    for probability, events in Enumerate().runs(program):
        found.outcomes += 1
        found.accepted += probability * events[0].num_accepted
        emitted = tuple(token for event in events for token in event.tokens)
        for key, mass in toy.completions(emitted, probability, tokens):
            found.law[key] += mass
    return found


def make(drafter: dict[str, Any], toy: Toy) -> Callable[[], Any]:
    """One object for all outcomes: what a run remembers is the run's own. One that learns remembers
    more than that, so it is made anew."""
    made = suite.make(drafter, toy.target, toy.draft)
    return (lambda: suite.make(drafter, toy.target, toy.draft)) if made.learns else (lambda: made)
