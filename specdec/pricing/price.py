"""One price for time: lambda, the tokens that a second brings in the long run.

The tokens still to come are fixed, so what is minimised is time. By the average-reward argument
each round then takes the choice with the largest tokens - lambda x seconds, and lambda is the
long-run rate that this brings (Dinkelbach's iteration). Taking the largest tokens / seconds of each
round is not optimal: a round whose best choices are poor takes too long for what it brings.
"""

from collections.abc import Sequence
from typing import NamedTuple

KEEP = 0.995  # of what earlier rounds count
FIRST = 4  # rounds of plain decoding that lambda starts from


class Choice(NamedTuple):
    """Of a round: tokens that it brings on average, and the seconds that it takes."""

    tokens: float
    seconds: float


def rate(kinds: Sequence[tuple[float, Choice]]) -> float:
    """Tokens per second in the long run. kinds: how frequent a kind of round is, and what is chosen
    in it."""
    tokens = sum(share * choice.tokens for share, choice in kinds)
    return tokens / sum(share * choice.seconds for share, choice in kinds)


def rate_under_ratio(kinds: Sequence[tuple[float, Sequence[Choice]]]) -> float:
    """Where each kind of round takes its own best tokens / seconds."""
    best = [
        (share, max(options, key=lambda one: one.tokens / one.seconds)) for share, options in kinds
    ]
    return rate(best)


def rate_under_price(kinds: Sequence[tuple[float, Sequence[Choice]]]) -> float:
    """Where each kind of round takes the largest tokens - lambda x seconds; the largest rate that
    any choice reaches. Dinkelbach: each pass raises lambda until it stays."""
    price = 0.0
    while True:
        best = [
            (share, max(options, key=lambda one: one.tokens - price * one.seconds))
            for share, options in kinds
        ]
        after = rate(best)
        if after <= price:
            return price
        price = after


class Price:
    """Lambda of a run, by the number of live rows: a smaller batch has another rate."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._sums: dict[int, tuple[float, float]] = {}  # rows -> tokens, seconds

    def __call__(self, rows: int, plain: float) -> float:
        """plain: seconds of a round of plain decoding with so many rows."""
        tokens, seconds = self._sums.get(rows, (FIRST * rows, FIRST * plain))
        return tokens / seconds

    def learn(self, rows: int, plain: float, tokens: float, seconds: float) -> None:
        """A round is over."""
        before = self._sums.get(rows, (FIRST * rows, FIRST * plain))
        self._sums[rows] = KEEP * before[0] + tokens, KEEP * before[1] + seconds
