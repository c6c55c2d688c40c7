"""What decides the shape of a tree while it grows (`specdec.pricing.growing`): `ByPrice` does so by
costs, `Forced` grows what is to be measured.

Letters: B rows, M nodes of a level, S sites, C candidates, k children.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from specdec.drafting.shape import Shape


class Policy(ABC):
    """What decides. It sees survivals (s, the chance that a node is accepted) and counts."""

    @abstractmethod
    def conditional(self, q: np.ndarray, depth: int | np.ndarray, drawn: bool) -> np.ndarray:
        """(..., k) the chance that a child is accepted, given that its parent is and no sibling
        before it. q (..., k): probabilities of the law's best tokens, best first. drawn: the
        children will be drawn; else they are those tokens."""

    @abstractmethod
    def goes_on(self, depth: int, nodes: int, frontier: np.ndarray) -> bool:
        """Whether a pass over the frontier pays. nodes: drafted so far, of the longest row;
        frontier (B, M): survivals."""

    @abstractmethod
    def draws(self, nodes: int, sites: np.ndarray) -> int:
        """How many of a level's sites to draw at, the same number in every row. sites (B, S):
        their survivals, best first."""

    @abstractmethod
    def keep(self, candidates: np.ndarray) -> int:
        """How many candidates a finished tree keeps. (B, C) survivals, best first."""

    @abstractmethod
    def choose(self, shapes: Sequence[Shape]) -> Shape | None:
        """Which of these shapes to draft in one compiled call, before anything of the draft is
        known. None: the tree is grown level by level."""

    @abstractmethod
    def before(self, shape: Shape) -> np.ndarray:
        """(B, depth) the chance that a row accepts so many levels of a shape, before it is
        drafted."""
