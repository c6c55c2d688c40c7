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

from specdec.drafting.odds import MODEL_FADES, Odds, drafts_of
from specdec.pricing.rounds import Rounds
from specdec.state import State
from specdec.tree import TokenTree

FEW = 2  # rounds of either kind before they are compared


class Turns:
    """Of one run."""

    def __init__(self, rows: int) -> None:
        self.lookup, self.model = Odds(rows), Odds(rows)
        self.rounds = Rounds()
        self._nodes = 0  # of the lookups of the round that is under way

    def next_run(self, rows: int) -> "Turns":
        """Of a run that begins with what this one has learned, with as many rows."""
        turns = copy.deepcopy(self)
        turns.rounds = self.rounds.next_run()
        for row in range(rows):
            turns.lookup.forget(row)
        return turns

    @property
    def threshold(self) -> float | None:
        """Tokens that a single row's lookup must expect, or else the model is asked. None: not
        known yet."""
        worth, without = self.rounds.worth, self.rounds.pace(self._nodes)
        if self.model.seconds is None or without is None or not worth:
            return None
        return max(0.0, self.model.worth() - (self.model.seconds - without) / worth)

    def choose(self, looked_up: TokenTree, expected: Sequence[float], state: State) -> list[bool]:
        """The rows that the model drafts for. expected: tokens of each row's lookup, by its own
        account."""
        live = self._live = state.on_host.live
        self._expected = [self.lookup.worth(each) for each in expected]
        self._nodes = looked_up.num_nodes - 1
        alive = [each for each, alive in zip(self._expected, live, strict=True) if alive]
        self.rounds.begin(fmean(alive) if alive else 0.0)
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
        extra = (self.model.seconds or 0.0) - (self.rounds.pace(self._nodes) or 0.0)
        asks = sum(gains) * self.rounds.worth > extra * max(1, sum(self._live))
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
        asked = any(second)
        self.rounds.went(tokens / max(1, sum(self._live)), seconds, None if asked else nodes)
        # Before both were tried nothing speaks against the model.
        is_best = self.lookup.rounds < FEW or any(self._by_worth())
        self.model.went(asked, is_best, seconds)
        self.lookup.went(not asked, not is_best, seconds)
