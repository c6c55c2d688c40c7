"""What a token is worth that a round brings: the seconds that it saves later.

With one price for all rounds (`specdec.pricing.price`) every token is worth the average. But texts
have easy and hard stretches. In a hard one, where no lookup finds anything, the next tokens take
long, so a token more saves more than the average; where a text repeats itself, it saves next to
nothing. So the worth of a token is learnt by kinds of rounds: the mean of

    seconds / tokens of the round that follows

after rounds of this kind. A round is best spent on the draft with the largest
tokens x worth - seconds. Kinds are what is known before anything is drawn.
"""

from collections import defaultdict
from math import log2

KEEP = 0.98  # of what earlier rounds count, one round later
WEIGHT = 4.0  # rounds that the mean over all kinds counts as, in that of one
MOST = 4  # kinds of rounds in which something is expected


def kind_of(expected: float) -> int:
    """The kind of a round, by the accepted tokens that lookups expect of a row."""
    return 0 if expected <= 0 else min(MOST, 1 + int(log2(1 + expected)))


class Ahead:
    """Seconds per token in the round after one of each kind; fading means."""

    def __init__(self) -> None:
        self._sums: defaultdict[int, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        self._all = (0.0, 0.0)
        self._before: int | None = None  # the kind of the round before

    def __call__(self, kind: int) -> float:
        """0 before the first round has followed another."""
        if not self._all[1]:
            return 0.0
        (own, rounds), usual = self._sums[kind], self._all[0] / self._all[1]
        return (own + WEIGHT * usual) / (rounds + WEIGHT)

    def went(self, kind: int, tokens: float, seconds: float) -> None:
        """A round of this kind is over. tokens: of a row."""
        if self._before is not None and tokens > 0:
            each = seconds / tokens
            self._sums[self._before] = _faded(self._sums[self._before], each)
            self._all = _faded(self._all, each)
        self._before = kind

    def next_run(self) -> "Ahead":
        """Of a run that begins with what this one has learned."""
        ahead = Ahead()
        ahead._sums.update(self._sums)
        ahead._all = self._all
        return ahead


def _faded(sums: tuple[float, float], value: float) -> tuple[float, float]:
    return KEEP * sums[0] + value, KEEP * sums[1] + 1
