"""Which rows of a round look up and which ask a model: what brings more tokens at what the round
takes.

A round in which the model drafts for any row is longer by the model's passes, for however many rows
it drafts. So the model is asked if

    sum over rows of max(0, model - lookup)  >  price x (seconds with the model - without)

and then drafts for the rows that gain. price: tokens per second so far, the long-run rate, as in
`specdec.pricing`. lookup: tokens that the lookup expects, corrected by how its drafts came out;
model: what its drafts brought lately. All of it is known before anything is drawn.
"""

import copy
from collections.abc import Sequence

from specdec.drafting.odds import FADES, Odds, drafts_of
from specdec.state import State
from specdec.tree import TokenTree

FEW = 2  # rounds of either kind before they are compared


class Turns:
    """Of one run."""

    def __init__(self, rows: int) -> None:
        self.lookup, self.model = Odds(rows), Odds(rows)
        self._tokens = self._seconds = 0.0  # recent rounds count more

    def next_run(self, rows: int) -> "Turns":
        """Of a run that begins with what this one has learned, with as many rows."""
        turns = copy.deepcopy(self)
        for row in range(rows):
            turns.lookup.forget(row)
        return turns

    @property
    def price(self) -> float:
        """Tokens of all rows per second."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def threshold(self) -> float | None:
        """Tokens that a single row's lookup must expect, or else the model is asked. None: not
        known yet."""
        if self.model.seconds is None or self.lookup.seconds is None:
            return None
        extra = self.price * (self.model.seconds - self.lookup.seconds)
        return max(0.0, self.model.worth() - extra)

    def choose(self, looked_up: TokenTree, expected: Sequence[float], state: State) -> list[bool]:
        """The rows that the model drafts for. expected: tokens of each row's lookup, by its own
        account."""
        live = self._live = state.on_host.live
        self._expected = expected
        for row, draft in drafts_of(looked_up, state).items():
            self.lookup.note(row, draft, expected[row])
        if self.model.rounds < FEW or self.model.is_due:
            return list(live)
        if self.lookup.rounds < FEW:
            offers = any(each > 0 for each, alive in zip(expected, live, strict=True) if alive)
            return [alive and not offers for alive in live]
        return self._by_price()

    def _by_price(self) -> list[bool]:
        model = self.model.worth()
        gains = [
            max(0.0, model - self.lookup.worth(each)) if alive else 0.0
            for each, alive in zip(self._expected, self._live, strict=True)
        ]
        extra = (self.model.seconds or 0.0) - (self.lookup.seconds or 0.0)
        asks = sum(gains) > self.price * extra
        return [asks and gain > 0 for gain in gains]

    def went(self, second: Sequence[bool], tokens: int, seconds: float, state: State) -> None:
        """A round is over, in which the model drafted for the rows `second`. tokens: of all
        rows."""
        self.lookup.read(state)
        for mine, accepted in zip(second, state.last.num_accepted, strict=True):
            if mine:
                self.model.accepted.add(accepted)
        self._tokens = FADES * self._tokens + tokens
        self._seconds = FADES * self._seconds + seconds
        # Before both were tried nothing speaks against the model.
        is_best = self.lookup.rounds < FEW or any(self._by_price())
        asked = any(second)
        self.model.went(asked, is_best, seconds)
        self.lookup.went(not asked, not is_best, seconds)
