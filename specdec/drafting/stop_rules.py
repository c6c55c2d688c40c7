"""When to stop drafting a chain. A rule is asked at a node, with the law q there, before anything
is drawn from q. Every token is therefore still drawn fresh from its q, and the sibling law holds.

Letters: B rows, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from specdec.errors import integer
from specdec.state import State


class StopRule(ABC):
    """Rows are independent: a row stops where it would stop alone."""

    most: int = 1 << 30  # tokens that a chain may have, known in advance
    looks_at_q: bool = True  # if not, `most` alone decides

    def begin(self, rows: int) -> None:
        """A run begins, on a copy of the rule that is the run's own."""

    def round(self, state: State) -> None:
        """A round begins: look at the last one. In a row's first round there is none, and what was
        learnt in its seat is forgotten."""

    @abstractmethod
    def __call__(self, q: Tensor, depth: int) -> Tensor:
        """(B,) bool: whether to draft nothing below the nodes at `depth`, whose law is q (B, V). At
        temperature 0, q is the law of temperature 1: the one-hot law would say nothing."""


class FixedLength(StopRule):
    """Stops after `length` tokens."""

    def __init__(self, length: int) -> None:
        self.length = self.most = integer("stop: length", length, 1)

    looks_at_q = False

    def __call__(self, q: Tensor, depth: int) -> Tensor:
        return torch.full((len(q),), depth >= self.length, device=q.device)


class Threshold(StopRule):
    """Stops where the most probable token has less than `threshold` (Kangaroo 2404.18911 uses
    0.6)."""

    def __init__(self, threshold: float) -> None:
        self.threshold = share("threshold", threshold)

    def __call__(self, q: Tensor, depth: int) -> Tensor:
        return q.amax(-1) < self.threshold


class AdaptiveThreshold(StopRule):
    """A threshold per row that moves until the wanted share of drafted tokens is accepted (Draft &
    Verify 2309.08168, equation 2).

    acceptance  the wanted share
    threshold   where it starts
    In each round with a draft, r <- 0.5 r + 0.5 accepted / drafted. The threshold aims 0.01 higher
    if r is below the wanted share, else 0.01 lower; smoothing moves it by 0.1 of that. Each request
    has its own threshold.
    """

    STEP, KEEP_RATE, KEEP_THRESHOLD = 0.01, 0.5, 0.9  # epsilon, beta_1, beta_2 of the paper

    def __init__(self, acceptance: float, threshold: float = 0.6) -> None:
        self.acceptance, self.start = (
            share("acceptance", acceptance),
            share("threshold", threshold),
        )

    def begin(self, rows: int) -> None:
        self.thresholds = np.full(rows, self.start)
        self.rates = np.full(rows, self.acceptance)

    def round(self, state: State) -> None:
        fresh, last = np.array(state.on_host.fresh), state.last
        self.thresholds[fresh], self.rates[fresh] = self.start, self.acceptance
        if last.drafted is None:
            return
        drafted, accepted = np.array(last.drafted), np.array(last.num_accepted)
        seen, old = (drafted > 0) & ~fresh, ~fresh
        rate = accepted / drafted.clip(min=1)
        mixed = self.KEEP_RATE * self.rates + (1 - self.KEEP_RATE) * rate
        self.rates = np.where(seen, mixed, self.rates)
        moved = self.thresholds + np.where(self.rates < self.acceptance, self.STEP, -self.STEP)
        smoothed = self.KEEP_THRESHOLD * self.thresholds + (1 - self.KEEP_THRESHOLD) * moved
        # Without a draft nothing is learnt, and that would last forever: loosen the threshold.
        loosened = self.thresholds - (1 - self.KEEP_THRESHOLD) * self.STEP
        after = np.where(seen, smoothed, loosened).clip(0, 1)
        self.thresholds = np.where(old, after, self.thresholds)

    def __call__(self, q: Tensor, depth: int) -> Tensor:
        return q.amax(-1) < torch.from_numpy(self.thresholds).to(q.device)


def make_stop(settings: StopRule | Mapping[str, float] | None) -> StopRule | None:
    """A rule from `{length: 3}`, `{threshold: 0.4}`, or `{acceptance: 0.8}` (optionally with the
    threshold to start from)."""
    if settings is None or isinstance(settings, StopRule):
        return settings
    if isinstance(settings, Mapping):
        given = dict(settings)
        if set(given) == {"length"}:
            return FixedLength(integer("stop: length", given["length"], 1))
        if set(given) == {"threshold"}:
            return Threshold(**given)
        if "acceptance" in given and set(given) <= {"acceptance", "threshold"}:
            return AdaptiveThreshold(**given)
    raise ValueError(
        f"stop must be {{length: 3}}, {{threshold: 0.4}}, {{acceptance: 0.8}} (with a threshold to "
        "start from, if you like), a specdec.drafting.stop_rules.StopRule or null; got "
        f"{settings!r}"
    )


def share(name: str, value: float) -> float:
    """Raises ValueError for anything but a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"stop: {name} must be a number between 0 and 1, got {value!r}")
    return float(value)
