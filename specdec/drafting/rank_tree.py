"""Static trees: which ranks to take, whatever the tokens are. A path (0, 2) is the third best child
of the best child.

greedy: the `nodes` paths with the largest product of accuracies, where an accuracy says how often
the token of rank r at depth d is right (Medusa 2401.10774, 2.3)
cartesian: a given number of children per node at each depth
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from specdec.errors import integer
from specdec.tree import MOST_NODES

Path = tuple[int, ...]


@dataclass(frozen=True)
class RankTree:
    """Paths of ranks, sorted by depth and then by rank; each path's parent is included. The root is
    not counted.

    Raises ValueError for no paths, a path without its parent, an empty path or a negative rank.
    """

    paths: tuple[Path, ...]

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError(
                "a static tree needs at least one path of ranks, such as [0], the best token"
            )
        known = set(self.paths)
        if len(known) != len(self.paths):
            raise ValueError("a static tree names each path once")
        for path in self.paths:
            if not path or any(
                isinstance(rank, bool) or not isinstance(rank, int) or rank < 0 for rank in path
            ):
                raise ValueError(f"a path is a non-empty list of ranks >= 0, got {list(path)}")
            if len(path) > 1 and path[:-1] not in known:
                raise ValueError(
                    f"the path {list(path)} hangs below {list(path[:-1])}, which the tree does not "
                    "have"
                )

    @classmethod
    def given(cls, paths: Iterable[Sequence[int]]) -> "RankTree":
        if not isinstance(paths, Iterable) or not all(isinstance(path, Sequence) for path in paths):
            raise ValueError(
                f"a static tree is a list of rank paths such as [[0], [1], [0, 0]], got {paths!r}"
            )
        return cls(
            tuple(sorted((tuple(path) for path in paths), key=lambda path: (len(path), path)))
        )

    @classmethod
    def cartesian(cls, widths: Sequence[int]) -> "RankTree":
        """widths[d] children below every node of depth d."""
        if not isinstance(widths, Sequence):
            raise ValueError(
                "a Cartesian tree needs widths >= 1, one per depth, such as [3, 2, 1]; got "
                f"{widths!r}"
            )
        level: list[Path] = [()]
        paths: list[Path] = []
        for width in widths:
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise ValueError(
                    f"a Cartesian tree needs widths >= 1, one per depth; got {list(widths)}"
                )
            integer("the nodes of a Cartesian tree", len(paths) + len(level) * width, 1, MOST_NODES)
            level = [(*path, rank) for path in level for rank in range(width)]
            paths += level
        return cls.given(paths)

    @classmethod
    def greedy(cls, accuracies: Sequence[Sequence[float]], nodes: int) -> "RankTree":
        """accuracies[d][r] in [0, 1], falling in r: how often the token of rank r at depth d + 1 is
        the right one. A node is worth the product along its path; the best neighbour of the tree is
        added until it has `nodes`."""
        integer("nodes", nodes, 1, MOST_NODES)
        if not accuracies or not all(accuracies):
            raise ValueError("a greedy tree needs a table of accuracies, depths x ranks")
        chosen: list[Path] = []
        # Largest worth first; ties to the shallower, then the better ranked path.
        open_paths: list[tuple[float, int, Path]] = [(-float(accuracies[0][0]), 1, (0,))]
        while open_paths and len(chosen) < nodes:
            worth, depth, path = heapq.heappop(open_paths)
            if worth == 0 and chosen:  # never right; a tree has one node at least
                break
            chosen.append(path)
            rank = path[-1]
            if rank + 1 < len(accuracies[depth - 1]) and accuracies[depth - 1][rank] > 0:
                sibling = worth / accuracies[depth - 1][rank] * accuracies[depth - 1][rank + 1]
                heapq.heappush(open_paths, (sibling, depth, (*path[:-1], rank + 1)))
            if depth < len(accuracies):
                heapq.heappush(open_paths, (worth * accuracies[depth][0], depth + 1, (*path, 0)))
        return cls.given(chosen)

    def within(self, vocabulary: int) -> "RankTree":
        """Drop ranks >= vocabulary and everything below them."""
        if max(self.ranks) < vocabulary:
            return self
        kept = tuple(path for path in self.paths if max(path) < vocabulary)
        if not kept:
            raise ValueError(
                f"the tree takes no rank below {vocabulary}, and the vocabulary has {vocabulary} "
                "tokens"
            )
        return RankTree(kept)

    @property
    def depth(self) -> int:
        return max(map(len, self.paths))

    @property
    def is_chain(self) -> bool:
        return self.depth == self.nodes

    @property
    def nodes(self) -> int:
        return len(self.paths)

    @cached_property
    def depths(self) -> list[int]:
        """Of each node."""
        return [len(path) for path in self.paths]

    @cached_property
    def ranks(self) -> list[int]:
        """Of each node among its siblings' candidates."""
        return [path[-1] for path in self.paths]

    @cached_property
    def parents(self) -> list[int]:
        """Node number of each node's parent, where the root is 0 and the first path 1."""
        number = {path: index + 1 for index, path in enumerate(self.paths)}
        return [number[path[:-1]] if len(path) > 1 else 0 for path in self.paths]

    @cached_property
    def ranks_needed(self) -> list[int]:
        """Per depth, how many of the best tokens are looked at."""
        return [
            1 + max((path[-1] for path in self.paths if len(path) == depth), default=0)
            for depth in range(1, self.depth + 1)
        ]
