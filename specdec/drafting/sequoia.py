"""The best static tree for given rates of acceptance (Sequoia, Chen et al. 2402.12374).

p_k is the probability that the k-th child of an accepted node is the accepted one (the "acceptance
vector"; at most one child is accepted, so the p_k add up to 1 at most). A round of a tree then
keeps, on average, the sum over its nodes of the product of the p_k on the node's path; the root's
product is 1, the token that the target adds. Which tree of m nodes has the largest sum is found by
dynamic programming:

    T[1][l][0] = 1                                    a node without children
    T[m][l][b] = max over y < m of T[y][l][b - 1] + p_b G(m - y, l - 1)
    G(m, l) = max over b of T[m][l][b]

T[m][l][b]: the best tree of m nodes whose root has b children and which has at most l levels below
the root. The first b - 1 children and what is below them take y nodes with the root, the b-th child
takes the rest. (The paper's first equation for b = 1 is the second one with y = 1.) Nodes count the
root here, as a pass of the target does; levels do not, since each costs one pass of the drafter.

For M nodes, L levels and B children at most, G takes O(M^2 L B) time and O(M L B) memory. Where p
depends on the depth, each limit on the levels has tables of its own: O(M^2 L^2 B).

Letters: M nodes, L levels, B children.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from specdec.errors import integer, number
from specdec.tree import MOST_NODES

Vector = tuple[float, ...]  # p_1, p_2 ... at one depth
Children = tuple[tuple[int, ...], ...]

# The demo draft model under `rrs_wor` at temperature 1, rounded.
DEFAULT_ACCEPTANCE: Vector = (0.7, 0.1, 0.04, 0.025, 0.02, 0.015)


@dataclass(frozen=True)
class StaticTree:
    """children[d]: how many each node of depth d has, breadth first, the root being depth 0; the
    last level has none. expected_tokens: of a round, the token that the target adds included."""

    children: Children
    expected_tokens: float

    @property
    def nodes(self) -> int:
        """The root included."""
        return sum(map(len, self.children))

    @property
    def levels(self) -> int:
        """Below the root: the drafter's passes."""
        return len(self.children) - 1


@dataclass(frozen=True)
class Priced:
    """The best tree of one size, with its cost: a pass of the target and the drafter's passes."""

    tree: StaticTree
    cost: float

    @property
    def tokens_per_cost(self) -> float:
        return self.tree.expected_tokens / self.cost


def best_tree(acceptance: Any, nodes: int, depth: int) -> StaticTree:
    """The tree of `nodes` (the root included) and at most `depth` levels that keeps most tokens.

    acceptance: p_1, p_2 ..., or a list of those for each depth, whose last also holds below. A node
    has at most as many children as the list has entries. Of trees that keep as many tokens, the one
    with fewer children, and more nodes below the first ones. Raises ValueError for what is no list
    of probabilities, and for trees that need more children or levels than there may be.
    """
    integer("nodes", nodes, 1, MOST_NODES + 1)
    return _best(vectors(acceptance, depth), nodes)


@lru_cache(256)
def _best(vectors_by_depth: tuple[Vector, ...], nodes: int) -> StaticTree:
    return _Tables(nodes).best(vectors_by_depth[: max(nodes - 1, 0)], nodes)


def best_by_cost(
    acceptance: Any,
    sizes: Sequence[int],
    depth: int,
    target_cost: Mapping[int, float],
    draft_cost: float = 0.0,
) -> list[Priced]:
    """For each number of nodes in `sizes`, the tree of at most `depth` levels with most expected
    tokens per cost: G(n, l) / (C(n) + l D), the paper's hardware-aware choice.

    target_cost   C: nodes of a pass, the root included -> its cost. Sizes between two of these
                  cost what a straight line says; others are refused
    draft_cost    D: of a level, in the same unit

    Raises ValueError for what `best_tree` refuses, and for sizes and costs that are none.
    """
    if not sizes:
        raise ValueError("there are no sizes: give at least one number of nodes, such as [1, 8]")
    for size in sizes:
        integer("a number of nodes", size, 1, MOST_NODES + 1)
    every_level, tables = vectors(acceptance, depth), _Tables(max(sizes))
    costs = [cost_at(target_cost, size) for size in sizes]
    number("draft_cost", draft_cost, 0)
    found = []
    for size, cost in zip(sizes, costs, strict=True):
        most = min(depth, size - 1)
        priced = [
            Priced(tables.best(every_level[:levels], size), cost + levels * draft_cost)
            for levels in range(most + 1)
            if tables.has(every_level[:levels], size)
        ]
        if not priced:
            tables.best(every_level[:most], size)  # says what is in the way
        found.append(max(priced, key=lambda one: one.tokens_per_cost))
    return found


def cost_at(target_cost: Mapping[int, float], nodes: int) -> float:
    """Raises ValueError for costs that are none, and for nodes that lie outside of them."""
    if not target_cost:
        raise ValueError("target_cost is empty: give the cost of a pass for at least one size")
    known = sorted(target_cost)
    for size in known:
        if number(f"target_cost of {size} nodes", target_cost[size], 0) == 0:
            raise ValueError(f"target_cost of {size} nodes must be more than 0")
    if not known[0] <= nodes <= known[-1]:
        raise ValueError(
            f"target_cost is known from {known[0]} to {known[-1]} nodes, not for {nodes}; measure "
            "it there too"
        )
    return float(np.interp(nodes, known, [target_cost[size] for size in known]))


def vectors(acceptance: Any, depth: int) -> tuple[Vector, ...]:
    """p_1, p_2 ... at each of `depth` depths. Raises ValueError for what `best_tree` refuses."""
    integer("depth", depth, 1, MOST_NODES)
    if not _is_list(acceptance):
        raise ValueError(
            "acceptance must be a list of the probabilities that the first, second ... child is "
            f"accepted, or a list of those for each depth; got {acceptance!r}"
        )
    nested = [_is_list(each) for each in acceptance]
    if any(nested) and not all(nested):
        raise ValueError("acceptance must be a list of numbers or a list of lists, not a mixture")
    given = list(acceptance) if any(nested) else [acceptance]
    if not all(len(vector) for vector in given):
        raise ValueError("acceptance has an empty list; it needs at least one probability")
    found = [
        tuple(
            number(f"acceptance of child {rank} at depth {level}", p, 0, 1)
            for rank, p in enumerate(vector, 1)
        )
        for level, vector in enumerate(given, 1)
    ]
    return tuple(found[min(level, len(found) - 1)] for level in range(depth))


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


class _Table(NamedTuple):
    """Of trees that may have so many levels below their root, for 0 .. M nodes."""

    tokens: np.ndarray  # (M + 1,) float64: G, -inf where there is no such tree
    width: np.ndarray  # (M + 1,) children of its root
    last: np.ndarray  # (B + 1, M + 1) nodes that the b-th child and what is below it take


class _Tables:
    """Tables for trees of up to `nodes` nodes, by the acceptance vectors of their levels: where
    those are the same at every depth, each table serves all limits on the levels."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._known: dict[tuple[Vector, ...], _Table] = {}

    def has(self, levels: tuple[Vector, ...], nodes: int) -> bool:
        return bool(np.isfinite(self._table(levels).tokens[nodes]))

    def best(self, levels: tuple[Vector, ...], nodes: int) -> StaticTree:
        table = self._table(levels)
        if not self.has(levels, nodes):
            most = int(np.flatnonzero(np.isfinite(table.tokens)).max())
            raise ValueError(
                f"there is no tree of {nodes} nodes, the root included: of depth {len(levels)} and "
                f"with as many children as `acceptance` has entries, it has {most} at most; ask "
                "for fewer nodes, more depth or a longer list"
            )
        level, children = [nodes], []
        for depth in range(len(levels) + 1):
            below = [self._split(levels[depth:], size) for size in level]
            children.append(tuple(map(len, below)))
            level = [size for sizes in below for size in sizes]
            if not level:
                break
        return StaticTree(tuple(children), float(table.tokens[nodes]))

    def _split(self, levels: tuple[Vector, ...], nodes: int) -> list[int]:
        """The nodes that each child of the root takes, in the best tree of `nodes`."""
        table = self._table(levels)
        sizes: list[int] = []
        for child in range(int(table.width[nodes]), 0, -1):
            sizes.append(int(table.last[child, nodes]))
            nodes -= sizes[-1]
        return sizes[::-1]

    def _table(self, levels: tuple[Vector, ...]) -> _Table:
        if levels not in self._known:
            for first in range(len(levels), -1, -1):  # from the deepest up; no recursion
                part = levels[first:]
                if part not in self._known:
                    below = self._known[part[1:]].tokens if part else None
                    self._known[part] = self._made(part[0] if part else (), below)
        return self._known[levels]

    def _made(self, vector: Vector, below: np.ndarray | None) -> _Table:
        """The recurrence for a root whose children are the roots of the best trees `below`."""
        nodes, vector = self.nodes, vector[: self.nodes - 1]
        tokens = np.full((len(vector) + 1, nodes + 1), -np.inf)
        last = np.zeros((len(vector) + 1, nodes + 1), dtype=np.int64)
        tokens[0, 1] = 1.0
        sizes = [] if below is None else np.flatnonzero(np.isfinite(below)).tolist()
        for child, p in enumerate(vector, 1):
            for size in sizes:  # only those that exist: 0 times infinity would be no number
                assert below is not None
                whole = slice(1 + size, nodes + 1)
                gained = tokens[child - 1, 1 : nodes + 1 - size] + p * below[size]
                better = gained > tokens[child, whole]
                tokens[child, whole][better] = gained[better]
                last[child, whole][better] = size
        width = tokens.argmax(0)
        return _Table(tokens.max(0), width, last)
