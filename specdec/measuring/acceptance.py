"""What became of every drafted node: depth, sibling rank, whether it was reached, whether it was
accepted.

Letters: R live row-rounds, N nodes, D depth. Node 0 is the root, which nobody drafted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts at one depth and sibling rank. A rate has no meaning where nothing was reached."""

    offered: int  # nodes that stood in a tree there
    reached: int  # of these, whose parent was accepted
    accepted: int


@dataclass(frozen=True)
class Drafted:
    """The nodes of R trees, all arrays (R, N)."""

    offered: np.ndarray  # bool: the node is there, and no root
    depth: np.ndarray  # from 1; 0 where nothing is offered
    rank: np.ndarray  # among its siblings, from 0 in the order of their numbers
    reached: np.ndarray  # bool: its parent was accepted, or is the root
    accepted: np.ndarray  # bool

    @classmethod
    def of(cls, parents: np.ndarray, path: np.ndarray) -> "Drafted":
        """parents (R, N), -1 at the root and at padding; path (R, D) accepted node numbers, padded
        with values < 1."""
        rows = np.arange(len(parents))[:, None]
        parents, path = parents.astype(np.int64), path.astype(np.int64)
        offered = parents >= 0
        # the last column takes the padding
        on_path = np.zeros((len(parents), parents.shape[1] + 1), dtype=bool)
        on_path[rows, np.where(path > 0, path, -1)] = True
        accepted = on_path[:, :-1] & offered
        above = parents.clip(0)
        reached = offered & ((parents == 0) | accepted[rows, above])
        depth, node = np.zeros_like(parents), np.where(offered, np.arange(parents.shape[1]), 0)
        while node.any():  # one step up for all nodes at once
            depth += node > 0
            node = above[rows, node]
        return cls(offered, depth, _ranks(parents), reached, accepted)

    @property
    def by_place(self) -> dict[tuple[int, int], Acceptance]:
        """By (depth, sibling rank)."""
        if not self.offered.any():
            return {}
        size = int(self.rank.max()) + 1
        place = self.depth * size + self.rank
        counts = [np.bincount(place[which], minlength=place.max() + 1) for which in self._stages]
        return {
            divmod(int(p), size): Acceptance(*(int(count[p]) for count in counts))
            for p in np.flatnonzero(counts[0])
        }

    @property
    def _stages(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.offered, self.reached, self.accepted

    @property
    def per_depth(self) -> dict[int, tuple[int, int]]:
        """depth -> (groups of siblings that were reached, groups of which one was accepted)."""
        found = {}
        for depth in range(1, int(self.depth.max(initial=0)) + 1):
            here = self.depth == depth
            groups = int((here & self.reached).any(1).sum())
            if groups:
                found[depth] = groups, int((here & self.accepted).any(1).sum())
        return found


def stacked(parents: Sequence[np.ndarray], paths: Sequence[np.ndarray]) -> Drafted:
    """From rounds of different widths: parents [(b, N_i)], paths [(b, D_i)], live rows only."""
    return Drafted.of(_padded(parents), _padded(paths))


def _padded(parts: Sequence[np.ndarray]) -> np.ndarray:
    widest = max((part.shape[1] for part in parts), default=0)
    whole = np.full((sum(map(len, parts)), widest), -1, dtype=np.int32)
    first = 0
    for part in parts:
        whole[first : first + len(part), : part.shape[1]] = part
        first += len(part)
    return whole


def _ranks(parents: np.ndarray) -> np.ndarray:
    """How many siblings come before each node: its place in its run of equal parents, once
    sorted."""
    order = np.argsort(parents, 1, kind="stable")
    ordered = np.take_along_axis(parents, order, 1)
    index = np.broadcast_to(np.arange(parents.shape[1]), parents.shape)
    begins = np.ones_like(ordered, dtype=bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(begins, index, 0), 1)
    ranks = np.empty_like(parents)
    np.put_along_axis(ranks, order, index - first, 1)
    return np.where(parents >= 0, ranks, 0)
