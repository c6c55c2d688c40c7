"""When drafting pays, as arithmetic on measured times.

A round costs R seconds, of which D go into drafting; it keeps tau tokens. Plain decoding takes t
seconds a token. Drafting pays where tau t > R.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.report.prediction import expected_tokens


@dataclass(frozen=True)
class Times:
    """Seconds, and tokens per round."""

    plain: float  # of a token in plain decoding
    round: float
    drafting: float  # of a round, a part of it
    score: float  # the target's pass in a round, a part of it
    tau: float
    depth: float  # of the trees

    @property
    def speedup(self) -> float:
        return self.tau * self.plain / self.round

    @property
    def tau_needed(self) -> float:
        return self.round / self.plain

    @property
    def rate_needed(self) -> float | None:
        """The acceptance rate at which this depth breaks even (Leviathan et al., equation 1). None
        where no rate is enough."""
        if self.tau_needed > expected_tokens(1.0, round(self.depth)):
            return None
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            enough = expected_tokens(middle, round(self.depth)) >= self.tau_needed
            low, high = (low, middle) if enough else (middle, high)
        return high

    @property
    def drafting_needed(self) -> float:
        """Seconds that drafting may take in a round; below 0 not even free drafts pay."""
        return self.tau * self.plain - (self.round - self.drafting)

    @property
    def slower_target_needed(self) -> float | None:
        """How many times slower the target's passes must be for these drafts to pay; None where
        that does not help."""
        gained = self.tau * self.plain - self.score
        return (self.round - self.score) / gained if gained > 0 else None

    def best_depth(self, rates: Sequence[float]) -> tuple[int, float]:
        """The depth, and its predicted speed-up, at these acceptance rates per depth. Drafting
        takes the same time at every depth; the rest of a round stays as it is."""
        kept = reached = 1.0
        found = (0, 1.0)
        for depth, rate in enumerate(rates, 1):
            reached *= rate
            kept += reached
            seconds = self.round - self.drafting * (1 - depth / max(self.depth, depth))
            if kept * self.plain / seconds > found[1]:
                found = depth, kept * self.plain / seconds
        return found
