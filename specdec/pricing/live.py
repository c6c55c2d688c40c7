"""Correcting a cost table while decoding. What is decided then depends on the moment: runs do not
repeat."""

import time
from dataclasses import replace

from specdec.pricing.costs import Curves

KEEP = 0.9  # of earlier rounds


class Live:
    """How many times longer than in the table drafting takes, and the rest of a round."""

    def __init__(self) -> None:
        self.drafting, self.rest = 1.0, 1.0
        self._began = self._proposed = 0.0
        self._expected = (0.0, 0.0)  # by the table, of this round

    def began(self) -> None:
        self._began = time.perf_counter()

    def expects(self, drafting: float, rest: float) -> None:
        """The trees are there. Seconds by the table, corrections left out."""
        self._proposed, self._expected = time.perf_counter(), (drafting, rest)

    def observed(self) -> None:
        """The round is over."""
        drafting, rest = self._expected
        if drafting > 0:
            took = self._proposed - self._began
            self.drafting = KEEP * self.drafting + (1 - KEEP) * took / drafting
        if rest > 0:
            took = time.perf_counter() - self._proposed
            self.rest = KEEP * self.rest + (1 - KEEP) * took / rest

    def corrected(self, curves: Curves) -> Curves:
        return replace(
            curves,
            score=self.rest * curves.score,
            host=self.rest * curves.host,
            first=self.drafting * curves.first,
            level=self.drafting * curves.level,
            node=self.drafting * curves.node,
            chain=self.drafting * curves.chain,
            ranked=self.drafting * curves.ranked,
        )
