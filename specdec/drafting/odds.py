"""What the members of a portfolio are worth: accepted tokens and seconds of their rounds, as
running means. Lookups are scored in every round, chosen or not, on what was committed.

Letters: B rows, N nodes.
"""

import copy
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from specdec.state import State
from specdec.tree import TokenTree

RECENT = 8  # rounds that the running means look back on
PENDING = 4  # drafts of a row that wait for more text
FADES = 0.98  # what a round counts in a price, one round later
WAITS = (8, 128)  # rounds until a model that was not chosen is tried again: first, and at most


class Mean:
    """An exponential average; before the first value there is none."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.value = value if self.value is None else self.value + (value - self.value) / RECENT


class Draft(NamedTuple):
    """A tree that was not judged, and the length of the text that it was for."""

    length: int
    tokens: list[int]
    parents: list[int]

    def accepted(self, text: Sequence[int]) -> int | None:
        """How many drafted tokens the text takes. None: it ends too early to say."""
        node, depth = 0, 0
        for token in text:
            below = [
                child for child in range(node + 1, len(self.tokens)) if self.parents[child] == node
            ]
            if not below:
                return depth
            node = next((child for child in below if self.tokens[child] == token), -1)
            if node < 0:
                return depth
            depth += 1
        return None if node in self.parents[node + 1 :] else depth


class Odds:
    """Of one member."""

    def __init__(self, rows: int) -> None:
        self.accepted = Mean()  # of a row's draft
        self.expected = Mean()  # likewise, what the member itself expected
        self.rounds, self.seconds_in_all = 0, 0.0  # that it was chosen for
        self.wait = WAITS[0]
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._since = 0  # rounds since it was chosen
        self._drafts: list[list[Draft]] = [[] for _ in range(rows)]

    def next_run(self, rows: int) -> "Odds":
        """Of a run that begins with what this one has learned."""
        odds = copy.copy(self)
        odds.accepted, odds.expected = copy.copy(self.accepted), copy.copy(self.expected)
        odds._seconds = self._seconds.copy()
        odds.rounds, odds.seconds_in_all = 0, 0.0
        odds._drafts = [[] for _ in range(rows)]
        return odds

    @property
    def seconds(self) -> float | None:
        """Of its rounds; None before the first."""
        return median(self._seconds) if self._seconds else None

    @property
    def is_due(self) -> bool:
        """Whether it was left out for so long that it should be tried."""
        return self._since >= self.wait

    def worth(self, expected: float | None = None) -> float:
        """Tokens that a draft is likely to bring. expected: by the member's own account of it."""
        accepted, usual = self.accepted.value or 0.0, self.expected.value
        return accepted if expected is None or not usual else accepted * expected / usual

    def went(self, chosen: bool, is_best: bool, seconds: float) -> None:
        """A round is over. is_best: whether it would be chosen by what is known now."""
        self._since += 1
        if chosen:
            self.rounds, self.seconds_in_all = self.rounds + 1, self.seconds_in_all + seconds
            self._seconds.append(seconds)
            self._since, longer = 0, min(2 * self.wait, WAITS[1])
            self.wait = WAITS[0] if is_best else longer

    # ------------------------------------------------------------------------ lookups, by the text

    def note(self, row: int, draft: Draft, expected: float | None) -> None:
        self._drafts[row] = [*self._drafts[row], draft][-PENDING:]
        if expected is not None:
            self.expected.add(expected)

    def forget(self, row: int) -> None:
        self._drafts[row] = []

    def read(self, state: State) -> None:
        """Score the drafts that the text has come to decide."""
        for row, drafts in enumerate(self._drafts):
            left = []
            for draft in drafts:
                accepted = draft.accepted(state.text(row, draft.length))
                if accepted is None:
                    left.append(draft)
                else:
                    self.accepted.add(accepted)
            self._drafts[row] = left


def drafts_of(tree: TokenTree, state: State) -> dict[int, Draft]:
    """What each live row was offered, on the host; rows without a draft are left out."""
    if tree.num_nodes == 1:
        return {}
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    host = state.on_host
    return {
        row: Draft(host.lengths[row], tokens[row], parents[row])
        for row, live in enumerate(host.live)
        if live and max(parents[row]) >= 0
    }
