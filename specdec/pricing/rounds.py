"""What the rounds of a run have shown: the seconds that a token saves later, and those that a round
without a model takes.

Drafters that choose between others in each round (`drafters.portfolio`, `drafters.cascade`)
decide by both.
"""

import copy

import numpy as np

from specdec.pricing.ahead import Ahead, kind_of

KEEP = 0.98  # of what earlier rounds count for the pace, one round later


class Pace:
    """Seconds of rounds without a model, by the number of nodes: a line, fitted to recent
    rounds."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, nodes, seconds, nodes^2, nodes x seconds; fading

    def __call__(self, nodes: float) -> float | None:
        """None before the first round."""
        weight, x, y, xx, xy = self._sums
        if not weight:
            return None
        spread = xx - x * x / weight
        slope = max(0.0, (xy - x * y / weight) / spread) if spread > 1e-6 * weight else 0.0
        return float(max(0.0, (y - slope * x) / weight) + slope * nodes)

    def went(self, nodes: float, seconds: float) -> None:
        """A round is over. It counts as at most twice what was expected of it: the machine may have
        been busy."""
        usual = self(nodes)
        if usual:
            seconds = min(seconds, 2 * usual)
        new = np.array([1, nodes, seconds, nodes * nodes, nodes * seconds])
        self._sums = KEEP * self._sums + new

    def next_run(self) -> "Pace":
        """Of a run that begins with what this one has learned."""
        return copy.copy(self)


class Rounds:
    """Of one run."""

    def __init__(self) -> None:
        self.ahead, self.pace = Ahead(), Pace()
        self._kind = 0

    def next_run(self) -> "Rounds":
        """Of a run that begins with what this one has learned."""
        rounds = Rounds()
        rounds.ahead, rounds.pace = self.ahead.next_run(), self.pace.next_run()
        return rounds

    def begin(self, expected: float) -> None:
        """A round begins. expected: accepted tokens of a row by its lookup, the mean over live
        rows; of several lookups, the largest."""
        self._kind = kind_of(expected)

    @property
    def worth(self) -> float:
        """Seconds that a token of every row saves later; 0: not known yet."""
        return self.ahead(self._kind)

    def went(self, tokens: float, seconds: float, nodes: int | None) -> None:
        """The round is over. tokens: of a row; nodes: that were drafted, or None if a model did."""
        self.ahead.went(self._kind, tokens, seconds)
        if nodes is not None:
            self.pace.went(nodes, seconds)
