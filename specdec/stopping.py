"""When a chain stops being drafted. A rule is asked at a node, with the law q that stands there, before anything is drawn from it,
so that every token that is drawn still comes fresh from its q: the sibling law survives.

Letters: B rows, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from specdec.interfaces import State


class Stop(ABC):
    """A rule of one run. Rows don't know each other: a row stops where it would stop alone."""

    def round(self, state: State) -> None:
        """A round begins: look at the last one. In the first round of a request there is none, and what was learnt is forgotten."""

    @abstractmethod
    def __call__(self, q: Tensor, depth: int) -> Tensor:
        """(B,) bool: whether to draft nothing below the nodes at `depth`, where q (B, V) stands. At temperature 0, q is the law
        of temperature 1: the one-hot law would say nothing."""


class FixedLength(Stop):
    """Stops after `length` tokens."""

    def __init__(self, length: int) -> None:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"stop: length must be an integer >= 1, got {length!r}")
        self.length = length

    def __call__(self, q: Tensor, depth: int) -> Tensor:
        return torch.full((len(q),), depth >= self.length, device=q.device)


class Threshold(Stop):
    """Stops where the most probable token has less than `threshold` (Kangaroo 2404.18911 uses 0.6)."""

    def __init__(self, threshold: float) -> None:
        self.threshold = _share("threshold", threshold)

    def __call__(self, q: Tensor, depth: int) -> Tensor:
        return q.amax(-1) < self.threshold


class Adaptive(Stop):
    """A threshold per row that moves until the wanted share of drafted tokens is accepted (Draft & Verify 2309.08168, equation 2).

    acceptance  the wanted share
    threshold   where it starts
    Each round with a draft: r <- 0.5 r + 0.5 accepted / drafted; the threshold moves by 0.01 up where r is below what is wanted,
    else down, and is smoothed, so that it moves by 0.1 of that. What was learnt belongs to a request.
    """

    STEP, KEEP_RATE, KEEP_THRESHOLD = 0.01, 0.5, 0.9  # epsilon, beta_1, beta_2 of the paper

    def __init__(self, acceptance: float, threshold: float = 0.6) -> None:
        self.acceptance, self.start = _share("acceptance", acceptance), _share("threshold", threshold)
        self.thresholds = self.rates = torch.empty(0)  # (B,)

    def round(self, state: State) -> None:
        last = state.last
        if last.trees is None or last.verdict is None:
            self.thresholds = torch.full((len(state.on_host.live),), self.start, dtype=torch.float64)
            self.rates = torch.full_like(self.thresholds, self.acceptance)
            return
        drafted = (last.trees.parents >= 0).sum(1).cpu()
        seen = drafted > 0
        rate = torch.where(seen, last.verdict.num_accepted / drafted.clamp(min=1), self.rates)
        self.rates = torch.where(seen, self.KEEP_RATE * self.rates + (1 - self.KEEP_RATE) * rate, self.rates)
        moved = self.thresholds + torch.where(self.rates < self.acceptance, self.STEP, -self.STEP)
        smoothed = self.KEEP_THRESHOLD * self.thresholds + (1 - self.KEEP_THRESHOLD) * moved
        # With no draft there is nothing to learn, and nothing would ever be again: such a row loosens.
        loosened = self.thresholds - (1 - self.KEEP_THRESHOLD) * self.STEP
        self.thresholds = torch.where(seen, smoothed, loosened).clamp(0, 1)

    def __call__(self, q: Tensor, depth: int) -> Tensor:
        return q.amax(-1) < self.thresholds.to(q.device)


def make_stop(settings: Stop | Mapping[str, float] | None) -> Stop | None:
    """A rule from `{length: 3}`, `{threshold: 0.4}`, or `{acceptance: 0.8}` (optionally with the threshold to start from)."""
    if settings is None or isinstance(settings, Stop):
        return settings
    if isinstance(settings, Mapping):
        given = dict(settings)
        if set(given) == {"length"}:
            return FixedLength(given["length"])  # type: ignore[arg-type]
        if set(given) == {"threshold"}:
            return Threshold(**given)
        if "acceptance" in given and set(given) <= {"acceptance", "threshold"}:
            return Adaptive(**given)
    raise ValueError(
        "stop must be {length: 3}, {threshold: 0.4}, {acceptance: 0.8} (with a threshold to start from, if you like), a "
        f"specdec.stopping.Stop or null; got {settings!r}"
    )


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"stop: {name} must be a number between 0 and 1, got {value!r}")
    return float(value)
