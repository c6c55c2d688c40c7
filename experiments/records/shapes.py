"""Which nodes of a recorded tree a smaller shape has.

Siblings that are drawn one after the other without replacement, or independently, are nested: the
first k of them, on the first d levels, are a sample of the smaller shape. So are the most probable
k, and the best n nodes of a ranked tree. Hub siblings are not: the last one depends on how many
there are.

Letters: T trees, N recorded nodes, M nodes of the shape, K children.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from specdec.drafting.by_level import Width
from specdec.drafting.rank_tree import Path, RankTree
from specdec.drafting.shape import LAWS, Shape

LEVELS = ("auto", *LAWS, "sequoia")  # draws whose trees have the same frame at every position
SETTINGS = ("depth", "branching", "draw", "nodes", "acceptance", "tree")
# Above temperature 0: recorded draw -> draws of shapes that are nested in it.
NESTED = {
    "auto": ("auto", "wor", "sequoia"),
    "wor": ("auto", "wor", "sequoia"),
    "sequoia": ("auto", "wor", "sequoia"),
    "wr": ("wr",),
    "hub": ("hub",),
    "topk": ("topk", "static"),
    "static": ("static",),
    "ranked": ("ranked",),
    "adaptive": ("adaptive",),
}


@dataclass(frozen=True, eq=False)
class Selected:
    """The nodes of a shape in T trees.

    numbers  (T, M) recorded number of each node, -1: not there
    parents  (T, M) among the M nodes, -1: the root, or not there
    frame    the same parents for all trees, if there are any
    """

    numbers: np.ndarray
    parents: np.ndarray
    frame: tuple[int, ...] | None


def described(shape: Shape) -> dict[str, Any]:
    """A shape as JSON holds it; `restored` makes it again."""
    return {
        "depth": shape.depth,
        "branching": shape.branching,
        "draw": shape.draw,
        "nodes": shape.nodes,
        "acceptance": shape.acceptance,
        "tree": None if shape.tree is None else [list(path) for path in shape.tree.paths],
    }


def restored(given: Mapping[str, Any]) -> Shape:
    tree = None if given["tree"] is None else RankTree.given(given["tree"])
    others = {name: given[name] for name in SETTINGS if name != "tree"}
    return Shape(**others, tree=tree)


def asked(given: Mapping[str, Any], recorded: Shape, greedy: bool) -> Shape:
    """The shape that settings ask for; what they leave out is as recorded. Raises ValueError for
    one that is not nested in the recorded one, and says in what."""
    known = {name: value for name, value in given.items() if value is not None}
    usual = described(recorded)
    draw = known.get("draw", recorded.draw)
    if {"draw", "tree"} & set(known) == {"tree"}:
        draw = "static"
    if known.get("acceptance") is not None and "draw" not in known:
        draw = "sequoia"
    if draw == "static" and "tree" in known:
        tree = RankTree.given(known["tree"])
        wanted = Shape(known.get("depth", tree.depth), draw="static", tree=tree)
    else:
        wanted = _filled(known, usual, draw, recorded)
    _check_draw(wanted, recorded, greedy)
    if is_framed(recorded, greedy):
        _check_frame(wanted, recorded, greedy)
    else:
        _check_by_value(wanted, recorded, greedy)
    return wanted


def _filled(known: dict[str, Any], usual: dict[str, Any], draw: str, recorded: Shape) -> Shape:
    branching = known.get("branching")
    depth = known.get("depth", len(branching) if isinstance(branching, list) else None)
    depth = recorded.depth if depth is None else depth
    if branching is None:
        branching = recorded.widths[:depth] if draw in LAWS or draw == "auto" else 1
        branching = 1 if recorded.draw == "sequoia" else branching
        if draw in ("ranked", "adaptive"):
            branching = recorded.expand if draw == "ranked" else recorded.branching
    if isinstance(branching, list) and len(branching) < depth:
        raise ValueError(_deeper(depth, recorded.depth))
    tree = RankTree.given(usual["tree"]) if draw == "static" else None
    if tree is not None:
        kept = tuple(path for path in tree.paths if len(path) <= depth)
        return Shape(depth, draw="static", tree=RankTree(kept))
    nodes = known.get("nodes")
    if nodes is None and draw in ("ranked", "adaptive", "sequoia"):
        nodes = usual["nodes"]
    acceptance = known.get("acceptance", usual["acceptance"] if draw == "sequoia" else None)
    return Shape(depth, branching, draw, nodes, acceptance=acceptance)


def is_framed(shape: Shape, greedy: bool) -> bool:
    """Whether the trees of a shape have one frame at every position."""
    return not shape.by_value


def _check_draw(wanted: Shape, recorded: Shape, greedy: bool) -> None:
    by_value = {"ranked": "ranked", "adaptive": "ranked" if greedy else "adaptive"}
    if greedy and not recorded.by_value:
        allowed: Sequence[str] = (*LEVELS, "static") if recorded.draw != "static" else ("static",)
    elif greedy:
        allowed = tuple(by_value)
    else:
        allowed = NESTED[recorded.draw]
        if all(width == 1 for width in wanted.widths) and wanted.draw in ("wr", "hub"):
            # the first child is drawn from q itself, whatever comes after it
            allowed = (*allowed, "wr") if "wor" in allowed else allowed
        if wanted.draw in ("auto", "wor") and wanted.chain and recorded.draw == "wr":
            return
    if wanted.draw not in allowed:
        raise ValueError(
            f"the record holds trees of draw={recorded.draw!r}, in which no tree of "
            f"draw={wanted.draw!r} is nested; ask for draw={' or '.join(allowed)}, or record with "
            f"drafter.draw={wanted.draw}"
        )


def _deeper(wanted: int, recorded: int) -> str:
    return (
        f"depth {wanted} is deeper than the record, whose trees have {recorded} levels; ask for "
        f"at most {recorded}, or record with drafter.depth={wanted}"
    )


def _check_frame(wanted: Shape, recorded: Shape, greedy: bool) -> None:
    if wanted.depth > recorded.depth:
        raise ValueError(_deeper(wanted.depth, recorded.depth))
    there = set(frame_of(recorded).paths)
    for path in frame_of(wanted).paths:
        if path in there:
            continue
        if len(path) > recorded.depth:
            raise ValueError(_deeper(len(path), recorded.depth))
        known = sum(other[:-1] == path[:-1] for other in there if len(other) == len(path))
        raise ValueError(
            f"a node of depth {len(path) - 1} has {path[-1] + 1} children or more in this shape "
            f"and {known} in the record (path {list(path[:-1])}); ask for a narrower shape, or "
            "record with a larger drafter.branching"
        )
    if recorded.draw == "hub" and not greedy:
        here, whole = wanted.widths, recorded.widths[: wanted.depth]
        if here != whole:
            raise ValueError(
                f"hub siblings are not nested in width: the record has {whole} children by depth, "
                f"this shape {here}; ask for the recorded widths, or record others"
            )


def _check_by_value(wanted: Shape, recorded: Shape, greedy: bool) -> None:
    if wanted.depth > recorded.depth:
        raise ValueError(_deeper(wanted.depth, recorded.depth))
    most = recorded.nodes or 0
    if (wanted.nodes or 0) > most:
        raise ValueError(
            f"nodes={wanted.nodes} is larger than the record, whose trees have {most}; ask for "
            f"fewer, or record with drafter.nodes={wanted.nodes}"
        )
    same = (wanted.nodes, wanted.depth) == (recorded.nodes, recorded.depth)
    if recorded.draw == "adaptive" and not greedy and not same:
        raise ValueError(
            f"adaptive trees are not nested; ask for depth={recorded.depth} and nodes={most}, as "
            "recorded"
        )
    if wanted.expand != recorded.expand and not (recorded.draw == "adaptive" and not greedy):
        raise ValueError(
            f"the record's ranked trees expand {recorded.expand} nodes per level, this shape "
            f"{wanted.expand}; ask for drafter.branching={recorded.expand}, or record with "
            f"drafter.branching={wanted.expand}"
        )


# ------------------------------------------------------------------------------------- selection


def frame_of(shape: Shape) -> RankTree:
    """The ranks of a shape that does not depend on values."""
    if shape.tree is not None:
        return shape.tree
    return RankTree(tuple(_paths(shape.children)))


def _paths(children: Sequence[Width]) -> list[Path]:
    found: list[Path] = []
    level: list[Path] = [()]
    for width in children:
        counts = [width] * len(level) if isinstance(width, int) else list(width)
        level = [(*path, rank) for path, k in zip(level, counts, strict=True) for rank in range(k)]
        found += level
    return found


@dataclass(frozen=True, eq=False)
class WideTrees:
    """Recorded trees of one batch: (T, N) each, -1 where there is no node."""

    columns: Mapping[str, np.ndarray]  # parent, depth, rank, token, p, q, value, law
    text: np.ndarray  # (T,)
    position: np.ndarray  # (T,)
    recorded: Shape

    @classmethod
    def of(cls, nodes: Mapping[str, np.ndarray], recorded: Shape) -> "WideTrees":
        tree, node = nodes["tree"].astype(np.int64), nodes["node"].astype(np.int64)
        trees = int(tree.max(initial=-1)) + 1
        most = int(node.max(initial=0)) + 1
        columns = {}
        for name in ("parent", "depth", "rank", "token", "p", "q", "value", "law"):
            whole = np.full((trees, most), -1, dtype=nodes[name].dtype)
            whole[tree, node] = nodes[name]
            columns[name] = whole
        if recorded.tree is not None:  # a static tree may leave ranks out
            ranks = np.array([0, *recorded.tree.ranks])[:most]
            columns["rank"] = np.where(columns["parent"] >= 0, ranks, -1)
        first = node == 0
        return cls(columns, nodes["text"][first], nodes["position"][first], recorded)

    def __len__(self) -> int:
        return len(self.text)

    @cached_property
    def children(self) -> np.ndarray:
        """(T, N, K) number of the child of each rank, -1: none."""
        parent, rank = self.columns["parent"], self.columns["rank"]
        trees, nodes = parent.shape
        found = np.full((trees, nodes, int(rank.max(initial=0)) + 1), -1, dtype=np.int16)
        tree, node = np.nonzero(parent >= 0)
        found[tree, parent[tree, node], rank[tree, node]] = node
        return found

    def select(self, shape: Shape) -> Selected:
        """Raises ValueError where a record has too few nodes for a ranked tree of this depth."""
        return self._best(shape) if shape.by_value else self._framed(frame_of(shape))

    def _framed(self, frame: RankTree) -> Selected:
        numbers = np.full((len(self), 1 + frame.nodes), -1, dtype=np.int64)
        numbers[:, 0] = 0
        rows, known = np.arange(len(self)), self.children.shape[2]
        for node, (parent, rank) in enumerate(zip(frame.parents, frame.ranks, strict=True), 1):
            above = numbers[:, parent]
            if rank < known:
                child = self.children[rows, above.clip(0), rank]
                numbers[:, node] = np.where(above >= 0, child, -1)
        whole = (-1, *frame.parents)
        parents = np.where(numbers >= 0, np.array(whole), -1)
        return Selected(numbers, parents, whole)

    def _best(self, shape: Shape) -> Selected:
        """The best nodes by value, ties to the first, as `specdec.drafting.ranked` keeps them."""
        most, parent = shape.nodes or 0, self.columns["parent"]
        drafted = parent >= 0
        fits = drafted & (self.columns["depth"] <= shape.depth)
        if shape.draw == "ranked" or self.recorded.draw == "ranked":
            self._check_enough(fits, drafted, shape)
        value = np.where(fits, self.columns["value"], -np.inf)
        order = np.argsort(-value, axis=1, kind="stable")[:, :most]
        chosen = np.sort(np.where(np.take_along_axis(fits, order, 1), order, parent.shape[1]), 1)
        there = chosen < parent.shape[1]
        numbers = np.where(there, chosen, -1)
        numbers = np.concatenate([np.zeros((len(self), 1), dtype=np.int64), numbers], 1)
        new = np.zeros((len(self), parent.shape[1] + 1), dtype=np.int64)  # the last takes padding
        np.put_along_axis(new, numbers, np.arange(numbers.shape[1])[None], 1)
        new[:, 0] = 0
        above = np.take_along_axis(parent, numbers.clip(0), 1)
        parents = np.where(numbers > 0, np.take_along_axis(new, above.clip(0), 1), -1)
        return Selected(numbers, parents, None)

    def _check_enough(self, fits: np.ndarray, drafted: np.ndarray, shape: Shape) -> None:
        """A ranked tree of fewer levels may keep nodes that a deeper one has crowded out."""
        if shape.depth == self.recorded.depth:
            return
        expand = shape.expand
        wanted = min(shape.nodes or 0, expand + (shape.depth - 1) * expand * expand)
        full = drafted.sum(1) == (self.recorded.nodes or 0)
        short = full & (fits.sum(1) < wanted)
        if short.any():
            raise ValueError(
                f"{int(short.sum())} of {len(self)} recorded trees have fewer than {wanted} nodes "
                f"on their first {shape.depth} levels, since deeper ones crowded them out; ask for "
                f"fewer nodes or depth={self.recorded.depth}, or record with more drafter.nodes"
            )
