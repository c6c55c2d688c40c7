"""What drafters are worth that take turns, in portfolios and cascades: accepted tokens and seconds
of their rounds, as fading means. Lookups are scored in every round, chosen or not, on what was
committed.

Letters: B rows, N nodes.
"""

import copy
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from specdec.state import State
from specdec.tree import TokenTree

RECENT = 8  # rounds that the time of a model's rounds is taken from
PENDING = 4  # drafts of a row that wait for more text
FADES = 0.98  # what a draft counts, one draft later
WEIGHT = 2.0  # tokens that a member's own expectation counts as, before its drafts are corrected
MODEL_FADES = 0.95  # what a round of a model counts
WAITS = (8, 128)  # rounds until a model that was not chosen is tried again: first, and at most


class Draft(NamedTuple):
    """What a lookup offered a row, chosen or not, and the length of the text that it was for."""

    length: int
    tokens: list[int]
    parents: list[int]
    expected: float | None = None  # accepted tokens, by the member's own account

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
        self.rounds, self.seconds_in_all = 0, 0.0  # that it was chosen for
        self.wait = WAITS[0]
        self._drafted = self._accepted = 0.0  # drafts, and accepted tokens of theirs; fading
        self._hoped = self._came = 0.0  # of drafts with an expectation: it, and accepted tokens
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._since = 0  # rounds since it was chosen
        self._drafts: list[list[Draft]] = [[] for _ in range(rows)]

    def next_run(self, rows: int) -> "Odds":
        """Of a run that begins with what this one has learned."""
        odds = copy.copy(self)
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
        """Tokens that a draft is likely to bring. expected: by the member's own account, which is
        corrected by what became of its drafts."""
        if expected is None:
            return self._accepted / self._drafted if self._drafted else 0.0
        return expected * (self._came + WEIGHT) / (self._hoped + WEIGHT)

    def came(self, accepted: float, expected: float | None = None, fades: float = FADES) -> None:
        """What became of a draft."""
        self._drafted = fades * self._drafted + 1
        self._accepted = fades * self._accepted + accepted
        if expected is not None:
            self._hoped = fades * self._hoped + expected
            self._came = fades * self._came + accepted

    def went(self, chosen: bool, is_best: bool, seconds: float) -> None:
        """A round is over. is_best: whether it would be chosen by what is known now."""
        self._since += 1
        if chosen:
            self.rounds, self.seconds_in_all = self.rounds + 1, self.seconds_in_all + seconds
            self._seconds.append(seconds)
            self._since, longer = 0, min(2 * self.wait, WAITS[1])
            self.wait = WAITS[0] if is_best else longer

    # ------------------------------------------------------------------------ lookups, by the text

    def note(self, row: int, draft: Draft) -> None:
        self._drafts[row] = [*self._drafts[row], draft][-PENDING:]

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
                    self.came(accepted, draft.expected)
            self._drafts[row] = left


def drafts_of(
    tree: TokenTree, state: State, expected: Sequence[float] | None = None
) -> dict[int, Draft]:
    """What each live row was offered, on the host; rows without a draft are left out."""
    if tree.num_nodes == 1:
        return {}
    tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
    host = state.on_host
    return {
        row: Draft(
            host.lengths[row], tokens[row], parents[row], expected[row] if expected else None
        )
        for row, live in enumerate(host.live)
        if live and max(parents[row]) >= 0
    }
