"""The shape of the trees that a drafter grows from its own laws, as users specify it: depth,
branching, draw, nodes.

Every drafter that drafts token by token from a model's laws (a small model, EAGLE, a part of the
target) takes these settings and grows its tree here. They differ only in how a level is scored.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self, TypedDict

from torch import Tensor

from specdec.chance import Draws
from specdec.drafting.adaptive import adaptive
from specdec.drafting.by_level import Grown, Score, Width, by_level
from specdec.drafting.rank_tree import RankTree
from specdec.drafting.ranked import ranked
from specdec.drafting.sequoia import DEFAULT_ACCEPTANCE, best_tree
from specdec.drafting.static import static
from specdec.drafting.stop_rules import StopRule, make_stop
from specdec.errors import integer
from specdec.interfaces import Drafter, LanguageModel
from specdec.sampling import Sampling
from specdec.state import State
from specdec.tree import MOST_NODES, SiblingLaw

LAWS = {"wor": SiblingLaw.WOR, "wr": SiblingLaw.WR, "hub": SiblingLaw.HUB, "topk": SiblingLaw.DET}
BY_VALUE = ("ranked", "adaptive")
BY_NODES = (*BY_VALUE, "sequoia")  # trees whose size is `nodes`
DRAWS = ("auto", *LAWS, *BY_NODES)
Acceptance = Sequence[float] | Sequence[Sequence[float]]
VARIANTS: tuple[Mapping[str, Any], ...] = (  # one for each kind of tree, small
    *({"depth": 2, "branching": 1, "draw": draw} for draw in LAWS),
    *({"depth": 2, "branching": [2, 1], "draw": draw} for draw in LAWS),
    {"depth": 1, "branching": 3, "draw": "wor"},
    {"depth": 1, "branching": 3, "draw": "wr"},
    {"depth": 2, "branching": 2, "draw": "ranked", "nodes": 3},
    {"depth": 2, "draw": "adaptive", "nodes": 3},
    # The root's two children have one child and none.
    {"depth": 2, "draw": "sequoia", "nodes": 3, "acceptance": [0.6, 0.3]},
)
FEW_VARIANTS: tuple[Mapping[str, Any], ...] = (  # for drafters that grow the same from other laws
    {"depth": 2, "branching": 1, "draw": "wor"},
    {"depth": 2, "branching": [2, 1], "draw": "wor"},
    {"depth": 2, "branching": 2, "draw": "ranked", "nodes": 3},
)
STOPPED: tuple[Mapping[str, Any], ...] = (  # chains with a stop rule
    {"depth": 2, "stop": {"threshold": 0.6}},
    {"depth": 2, "stop": {"acceptance": 0.5}},
)


class ShapeArguments(TypedDict, total=False):
    """Arguments of a drafter that grows trees, besides its own; see `Shape`."""

    depth: int
    branching: int | Sequence[int]
    draw: str
    nodes: int | None
    acceptance: Acceptance | None
    stop: StopRule | Mapping[str, float] | None


class HeadShapeArguments(ShapeArguments, total=False):
    """The same for trained heads, whose trees may be static. branching None: 6 for trees by value,
    else 1."""

    tree: Sequence[Sequence[int]] | None  # rank paths


@dataclass(frozen=True)
class Shape:
    """depth      levels of the tree, or tokens of the chain
    branching  children per node, one number or one per depth; 1 everywhere is a chain
    draw       auto (= wor) | wor | wr | hub | topk | ranked (DET: the best `nodes` by cumulative
               probability, expanding `branching` nodes per level by as many tokens) | adaptive
               (WOR: decide on a site, then draw there) | sequoia (WOR: the best static tree of
               `nodes` and at most `depth` levels for `acceptance`, which says how many children
               each node has) | static (DET: `tree`)
    nodes      drafted nodes of ranked, adaptive and sequoia trees, the root not counted
    acceptance  of sequoia trees: the probability that the first, second ... child of an accepted
               node is the accepted one, or a list of those for each depth
               (`specdec.drafting.sequoia`, which also has the default)
    tree       of draw="static": which ranks to take, whatever the tokens are
    stop       where a chain ends before `depth`: {length: 3} | {threshold: 0.4} | {acceptance: 0.8}
               (`specdec.drafting.stop_rules`)

    At temperature 0 there is nothing to draw: siblings are the most probable tokens, DET. Raises
    ValueError for settings that do not go together.
    """

    depth: int
    branching: int | Sequence[int] = 1
    draw: str = "auto"
    nodes: int | None = None
    tree: RankTree | None = None
    acceptance: Acceptance | None = None
    stop: StopRule | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        depth, branching, draw, nodes = self.depth, self.branching, self.draw, self.nodes
        integer("depth", depth, 1, MOST_NODES)
        if self.acceptance is not None and draw != "sequoia":
            raise ValueError(
                f"acceptance is for draw='sequoia', which shapes its trees by it; got draw={draw!r}"
            )
        if self.tree is not None:
            if draw != "static" or self.tree.depth > depth:
                raise ValueError(
                    f"a static tree of depth {self.tree.depth} needs draw='static' and that depth, "
                    f"got {draw}, {depth}"
                )
            return
        if draw not in DRAWS:
            raise ValueError(f"draw must be {', '.join(DRAWS[:-1])} or {DRAWS[-1]}, got {draw!r}")
        widths = self.widths
        whole = all(isinstance(k, int) and not isinstance(k, bool) and k >= 1 for k in widths)
        if len(widths) != depth or not whole:
            raise ValueError(
                f"branching must be one integer >= 1, or one for each of {depth} depths; got "
                f"{branching!r}"
            )
        if draw == "sequoia" and branching != 1:
            raise ValueError(
                "branching is not for draw='sequoia', where each node has a number of children of "
                f"its own, up to as many as `acceptance` has entries; got {branching!r}"
            )
        least = 1 if draw == "sequoia" else depth
        if nodes is not None and (isinstance(nodes, bool) or not isinstance(nodes, int)):
            raise ValueError(f"nodes must be an integer >= depth ({depth}), or null; got {nodes!r}")
        if draw in BY_NODES and (nodes is None or nodes < least):
            bound = f"depth ({depth})" if draw in BY_VALUE else "1"
            raise ValueError(
                f"draw={draw!r} needs nodes >= {bound}, the number of drafted nodes; got {nodes}"
            )
        if draw not in BY_NODES and nodes is not None:
            raise ValueError(
                f"nodes is for draw='ranked', 'adaptive' and 'sequoia'; a {draw} tree has as many "
                "as branching says"
            )
        if self.slots > MOST_NODES:
            raise ValueError(
                f"depth={depth}, branching={branching!r} and nodes={nodes!r} make trees of "
                f"{self.slots} nodes or more; at most {MOST_NODES} are drafted"
            )
        stop, chain = self.stop_rule, self.chain  # each refuses settings that are wrong
        if stop is not None and not chain:
            raise ValueError(
                "stop is for chains (branching=1, no draw='ranked' or 'adaptive'); drop it or "
                "draft a chain"
            )

    @classmethod
    def asked(cls, given: ShapeArguments, depth: int) -> "Shape":
        """The shape that a drafter's arguments ask for; `depth` is the default."""
        return cls(
            given.get("depth", depth),
            given.get("branching", 1),
            given.get("draw", "auto"),
            given.get("nodes"),
            acceptance=given.get("acceptance"),
            stop=given.get("stop"),
        )

    @cached_property
    def stop_rule(self) -> StopRule | None:
        return make_stop(self.stop)

    @property
    def by_value(self) -> bool:
        return self.draw in BY_VALUE

    @cached_property
    def widths(self) -> list[int]:
        """Children per node at each depth, as `branching` says."""
        if isinstance(self.branching, Sequence):
            return list(self.branching)
        return [self.branching] * self.depth

    @cached_property
    def children(self) -> Sequence[Width]:
        """Children of every node of a depth, or of each. Raises ValueError for an `acceptance` that
        is none, and where `depth` is too small for `nodes`."""
        if self.draw != "sequoia":
            return self.widths
        given = DEFAULT_ACCEPTANCE if self.acceptance is None else self.acceptance
        tree = best_tree(given, 1 + (self.nodes or 0), self.depth)
        return [each[0] if len(set(each)) == 1 else each for each in tree.children[:-1]]

    @property
    def expand(self) -> int:
        """Nodes that a ranked tree expands per level."""
        return self.widths[0] if self.widths[0] > 1 else max(2, -(-(self.nodes or 0) // 2))

    @property
    def chain(self) -> bool:
        if self.tree is not None:
            return self.tree.is_chain
        return not self.by_value and all(width == 1 for width in self.children)

    @property
    def fixed_width(self) -> bool:
        """Whether all nodes of a depth have as many children, known before the first is drawn."""
        if self.draw == "sequoia":
            return all(isinstance(width, int) for width in self.children)
        return self.draw != "adaptive"

    @cached_property
    def max_nodes(self) -> int:
        """Of the finished tree, the root included."""
        if self.tree is not None:
            return 1 + self.tree.nodes
        if self.nodes is not None:
            return 1 + self.nodes
        total, level = 1, 1
        for k in self.widths:
            level *= k
            total += level
            if total > MOST_NODES:
                break
        return total

    @property
    def slots(self) -> int:
        """What the drafter's memory needs beyond the committed tokens: a ranked tree scores more
        than it keeps."""
        return max(self.max_nodes, 1 + (self.depth - 1) * self.expand if self.by_value else 0)

    def law(self, greedy: bool) -> SiblingLaw:
        if greedy or self.draw in ("ranked", "static"):
            return SiblingLaw.DET
        return LAWS.get(self.draw, SiblingLaw.WOR)


def grow(
    shape: Shape,
    law: SiblingLaw,
    logits: Tensor,
    score: Score,
    state: State,
    chance: Draws,
    stop: StopRule | None = None,
) -> Grown:
    """One tree of this shape per row; `logits` (B, 1, V) follow the roots, `score` gives those of
    each further level."""
    greedy = state.sampling.greedy
    if shape.tree is not None:
        return static(logits, score, state, shape.tree)
    if shape.draw == "ranked" or (shape.draw == "adaptive" and greedy):
        return ranked(logits, score, state, shape.depth, shape.expand, shape.nodes or 0)
    if shape.draw == "adaptive":
        return adaptive(logits, score, state, chance, shape.depth, shape.nodes or 0)
    return by_level(logits, score, state, chance, shape.children, law, stop)


class Grower(Protocol):
    """Grows one tree per row instead of a drafter's own shape; see `TreeDrafter.grow`."""

    @property
    def law(self) -> SiblingLaw: ...

    @property
    def chain(self) -> bool: ...

    @property
    def wholes(self) -> Sequence[Shape]:
        """Shapes that `chosen` may choose."""
        ...

    def chosen(self, state: State) -> Shape | None:
        """The shape to draft in one compiled call, chosen before anything is drafted. None: the
        tree is grown level by level."""
        ...

    def finished(self, grown: Grown, state: State, shape: Shape) -> Grown:
        """What becomes of a tree that was drafted in one call."""
        ...

    def __call__(self, logits: Tensor, score: Score, state: State, chance: Draws) -> Grown: ...


class TreeDrafter(Drafter):
    """A drafter that grows a `Shape` from its own laws."""

    deepest: int | None = None  # levels that it can draft, if its weights limit them

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.chain, self.fixed_width = shape.chain, shape.fixed_width
        self.max_nodes = shape.max_nodes
        self.grower: Grower | None = None
        self._stop: StopRule | None = None

    @property
    def grows_whole(self) -> bool:
        """Whether a `grower` may ask for drafts in one compiled call."""
        return False

    def grown_by(self, grower: Grower, shape: Shape) -> Self:
        """A copy whose trees `grower` grows; `shape` bounds their depth and size."""
        governed = copy.copy(self)
        governed.shape, governed.grower = shape, grower
        governed.chain, governed.fixed_width = grower.chain and shape.chain, False
        # A tree by value may score more nodes than it keeps, some in the target's own memory.
        governed.max_nodes = shape.max_nodes + (shape.slots if shape.by_value else 0)
        return governed

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        self.law = self.grower.law if self.grower else self.shape.law(sampling.greedy)
        self._stop = copy.copy(self.shape.stop_rule)
        if self._stop is not None:
            self._stop.begin(rows)

    def grow(self, logits: Tensor, score: Score, state: State, chance: Draws) -> Grown:
        """One tree per row; `logits` (B, 1, V) follow the roots, `score` gives those of each
        further level."""
        if self.grower is not None:
            return self.grower(logits, score, state, chance)
        return grow(self.shape, self.law, logits, score, state, chance, self._stop)

    def settings_in_effect(self) -> dict[str, Any]:
        shape = self.shape
        static = {} if shape.tree is None else {"tree": [list(path) for path in shape.tree.paths]}
        return {
            "depth": shape.depth,
            "branching": shape.expand if shape.by_value else shape.children,
            "draw": {"auto": "wor"}.get(shape.draw, shape.draw),
            "nodes": shape.max_nodes - 1,
            **static,
        }
