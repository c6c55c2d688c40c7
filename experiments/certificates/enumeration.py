"""`specdec.Enumerate` for many outcomes in one batch: each row follows its own script.

Rows of a batch are independent, so the law of a row is the law of the code; a batch only saves
time. (Rows whose drafter learns are not independent, so those are run one at a time.) Each row's
branches are those of `specdec.chance.Trace`.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from specdec.chance import Chance, Draws, Sites, Trace

Out = TypeVar("Out")
Script = list[tuple[int, list[tuple[int, float]]]]


@dataclass
class Rounding:
    """How far laws that are not in float64 may move the law of an outcome.

    A law of V weights in a type of machine epsilon e sums to 1 only within V e / 2, but the draw,
    the rule's ratio and its residual all treat the sum as exactly 1. Each draw therefore adds a
    total variation of at most V e, to first order in e.
    """

    bound: float = 0.0


class Traces(Chance, Draws):
    """The chance of a batch whose row r follows `traces[r]`."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        self.traces = traces
        self.rounding = [0.0] * len(traces)  # of each row, see `Rounding`

    def round(self, state: Any) -> "Traces":
        return self

    def bernoulli(self, p: Tensor, at: Sites, purpose: str) -> Tensor:
        return self._each("bernoulli", p, at, purpose)

    def categorical(self, law: Tensor, at: Sites, purpose: str) -> Tensor:
        return self._each("categorical", law, at, purpose)

    def without_replacement(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self._each("without_replacement", law, at, k, purpose)

    def independent(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self._each("independent", law, at, k, purpose)

    def _each(self, kind: str, law: Tensor, at: Sites, *rest: Any) -> Tensor:
        """Each row's sites, in their order, by the row's own trace."""
        rows = at.rows.tolist()
        *size, purpose = rest
        weights, draws = law[:1].numel(), size[0] if size else 1
        each = 0.0
        if law.dtype is not torch.float64:
            each = draws * weights * torch.finfo(law.dtype).eps
        places: dict[int, list[int]] = {}
        for place in at.live.nonzero()[:, 0].tolist():
            places.setdefault(rows[place], []).append(place)
        shape = (len(rows), *size)
        drawn = torch.zeros(shape, dtype=torch.bool if kind == "bernoulli" else torch.long)
        for row, mine in places.items():
            index = torch.tensor(mine)
            sites = Sites(*(part[index] for part in at))
            self.rounding[row] += each * len(mine)
            drawn[index] = getattr(self.traces[row], kind)(law[index], *size, sites, purpose)
        return drawn


def outcomes(
    program: Callable[[Chance, int], Sequence[Out]],
    rows: int = 256,
    rounding: Rounding | None = None,
) -> Iterator[tuple[float, Out]]:
    """Every outcome of `program` with its probability; `program(chance, n)` runs n rows and returns
    what came of each. `rounding` is told the largest bound of any outcome.

    Raises ValueError for a program that is no function of its draws.
    """
    rounding = rounding or Rounding()
    waiting: list[Script] = [[]]
    while waiting:
        scripts, waiting = waiting[-rows:], waiting[:-rows]
        traces = [Trace(script) for script in scripts]
        chance = Traces(traces)
        found = program(chance, len(traces))
        rounding.bound = max(rounding.bound, *chance.rounding)
        for script, trace, out in zip(scripts, traces, found, strict=True):
            trace.check_end()
            for place in range(len(script), len(trace.script)):
                head, (_, branches) = trace.script[:place], trace.script[place]
                waiting += [[*head, (taken, branches)] for taken in range(1, len(branches))]
            yield trace.probability, out


class _Dive(Trace):
    """One run that takes every branch equally often and counts how many there were."""

    def __init__(self, source: random.Random) -> None:
        super().__init__([])
        self.source, self.branches = source, 1.0

    def choose(self, weights: list[float]) -> int:
        possible = [outcome for outcome, weight in enumerate(weights) if weight > 0]
        self.branches *= len(possible)
        return self.source.choice(possible)


def estimate(
    program: Callable[[Chance, int], Sequence[Any]], dives: int = 64, rows: int = 64
) -> float:
    """About how many outcomes `program` has: the mean product of branch counts over random dives
    (Knuth 1975), `rows` of them side by side."""
    source = random.Random(0)
    traces = [_Dive(source) for _ in range(dives)]
    for first in range(0, dives, rows):
        some = traces[first : first + rows]
        program(Traces(some), len(some))
    return sum(trace.branches for trace in traces) / dives
