"""Which rows of a round look up and which ask a model: what saves more seconds than it takes.

A round in which the model drafts for any row is longer by the model's passes, for however many rows
it drafts. So the model is asked if

    sum over rows of max(0, model - lookup) x worth / rows  >  seconds with the model - without

and then drafts for the rows that gain. worth: the seconds that a token of every row saves later
(`specdec.pricing.ahead`). lookup: tokens that the lookup expects, corrected by how its drafts came
out; model: what its drafts brought lately. All of it is known before anything is drawn.
"""

import copy
from collections.abc import Sequence
from statistics import fmean

from specdec.drafting.odds import MODEL_FADES, Odds, Pace, drafts_of
from specdec.pricing.ahead import Ahead, kind_of
from specdec.state import State
from specdec.tree import TokenTree

FEW = 2  # rounds of either kind before they are compared


class Turns:
    """Of one run."""

    def __init__(self, rows: int) -> None:
        self.lookup, self.model = Odds(rows), Odds(rows)
        self.ahead, self.pace = Ahead(), Pace()
        self._kind = 0

    def next_run(self, rows: int) -> "Turns":
        """Of a run that begins with what this one has learned, with as many rows."""
        turns = copy.deepcopy(self)
        turns.ahead = self.ahead.next_run()
        for row in range(rows):
            turns.lookup.forget(row)
        return turns

    @property
    def threshold(self) -> float | None:
        """Tokens that a single row's lookup must expect, or else the model is asked. None: not
        known yet."""
        worth = self.ahead(self._kind)
        if self.model.seconds is None or self.lookup.seconds is None or not worth:
            return None
        extra = self.model.seconds - self.lookup.seconds
        return max(0.0, self.model.worth() - extra / worth)

    def choose(self, looked_up: TokenTree, expected: Sequence[float], state: State) -> list[bool]:
        """The rows that the model drafts for. expected: tokens of each row's lookup, by its own
        account."""
        live = self._live = state.on_host.live
        self._expected = [self.lookup.worth(each) for each in expected]
        self._nodes = looked_up.num_nodes - 1
        alive = [each for each, alive in zip(self._expected, live, strict=True) if alive]
        self._kind = kind_of(fmean(alive) if alive else 0.0)
        for row, draft in drafts_of(looked_up, state, expected).items():
            self.lookup.note(row, draft)
        if self.model.rounds < FEW or self.model.is_due:
            return list(live)
        if self.lookup.rounds < FEW:
            offers = any(each > 0 for each in alive)
            return [alive and not offers for alive in live]
        return self._by_worth()

    def _by_worth(self) -> list[bool]:
        model = self.model.worth()
        gains = [
            max(0.0, model - expected) if alive else 0.0
            for expected, alive in zip(self._expected, self._live, strict=True)
        ]
        extra = (self.model.seconds or 0.0) - (self.pace(self._nodes) or 0.0)
        asks = sum(gains) * self.ahead(self._kind) > extra * max(1, sum(self._live))
        return [asks and gain > 0 for gain in gains]

    def went(
        self, second: Sequence[bool], tokens: int, seconds: float, nodes: int, state: State
    ) -> None:
        """A round is over, in which the model drafted for the rows `second`. tokens: of all rows;
        nodes: that were drafted."""
        self.lookup.read(state)
        for mine, accepted in zip(second, state.last.num_accepted, strict=True):
            if mine:
                self.model.came(accepted, fades=MODEL_FADES)
        self.ahead.went(self._kind, tokens / max(1, sum(self._live)), seconds)
        asked = any(second)
        if not asked:
            self.pace.went(nodes, seconds)
        # Before both were tried nothing speaks against the model.
        is_best = self.lookup.rounds < FEW or any(self._by_worth())
        self.model.went(asked, is_best, seconds)
        self.lookup.went(not asked, not is_best, seconds)
