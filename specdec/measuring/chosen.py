"""Whose drafts a round has, and why."""

from typing import NamedTuple


class Chosen(NamedTuple):
    """What came of it is in the round's step. None: not known, or nobody has asked."""

    drafter: str | None  # whose drafts the round has; None: nobody's, it is a plain round
    tokens: float | None = None  # expected of each row, the target's own included
    seconds: float | None = None  # expected of the round
    balance: float | None = None  # of the bank before the round: seconds gained so far
