"""What was expected of a round when its trees were made."""

from typing import NamedTuple

import numpy as np


class Decision(NamedTuple):
    tokens: float  # of all rows: those that will be accepted, and one each that the target adds
    seconds: float  # of the whole round, by the cost table
    plain: float  # seconds of a round of plain decoding, by the same table
    price: float  # lambda: tokens per second that a second has to bring
    levels: int  # passes of the drafter
    survivals: np.ndarray | None = None
    """(B, N) the chance that each node of the tree is accepted; 0 at unused nodes."""
