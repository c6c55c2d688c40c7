"""The shape of the trees that a drafter with laws of its own grows, as users name it: depth, branching, draw, nodes.

Everything that drafts token by token from a model's laws (a small model, EAGLE, a part of the target) takes these settings
and grows its tree here; what differs between them is only how a level is scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from specdec.chance import Draws
from specdec.checks import MOST_NODES, drafted
from specdec.growth import Grown, Score, adaptive, levels, ranked, static
from specdec.interfaces import State
from specdec.rank_tree import RankTree
from specdec.stopping import Stop, make_stop
from specdec.tree import SiblingLaw

LAWS = {"wor": SiblingLaw.WOR, "wr": SiblingLaw.WR, "hub": SiblingLaw.HUB, "topk": SiblingLaw.DET}
BY_VALUE = ("ranked", "adaptive")
VARIANTS: tuple[Mapping[str, Any], ...] = (  # one for each kind of tree, small
    *({"depth": 2, "branching": 1, "draw": draw} for draw in LAWS),
    *({"depth": 2, "branching": [2, 1], "draw": draw} for draw in LAWS),
    {"depth": 1, "branching": 3, "draw": "wor"},
    {"depth": 1, "branching": 3, "draw": "wr"},
    {"depth": 2, "branching": 2, "draw": "ranked", "nodes": 3},
    {"depth": 2, "draw": "adaptive", "nodes": 3},
)
FEW_VARIANTS: tuple[Mapping[str, Any], ...] = (  # for drafters that grow the same trees from other laws
    {"depth": 2, "branching": 1, "draw": "wor"},
    {"depth": 2, "branching": [2, 1], "draw": "wor"},
    {"depth": 2, "branching": 2, "draw": "ranked", "nodes": 3},
)
STOPPED: tuple[Mapping[str, Any], ...] = (
    {"depth": 2, "stop": {"threshold": 0.6}},
    {"depth": 2, "stop": {"acceptance": 0.5}},
)  # chains with a stop rule


@dataclass(frozen=True)
class Shape:
    """depth      levels of the tree, or tokens of the chain
    branching  children per node, one number or one per depth; 1 everywhere is a chain
    draw       auto (= wor) | wor | wr | hub | topk | ranked (DET: the best `nodes` by cumulative probability, expanding
               `branching` nodes per level by `branching` tokens) | adaptive (WOR: decide on a site, then draw there)
    nodes      drafted nodes of ranked and adaptive trees, the root not counted
    tree       of draw="static" (DET): which ranks to take, whatever the tokens are
    stop       where a chain ends before `depth`: {length: 3} | {threshold: 0.4} | {acceptance: 0.8} (`specdec.stopping`)

    At temperature 0 there is nothing to draw: siblings are the most probable tokens, DET. Raises ValueError for settings that
    do not go together.
    """

    depth: int
    branching: int | Sequence[int] = 1
    draw: str = "auto"
    nodes: int | None = None
    tree: RankTree | None = None
    stop: Stop | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        depth, branching, draw, nodes = self.depth, self.branching, self.draw, self.nodes
        drafted("depth", depth)
        if self.tree is not None:
            if draw != "static" or self.tree.depth > depth:
                raise ValueError(
                    f"a static tree of depth {self.tree.depth} needs draw='static' and that depth, got {draw}, {depth}"
                )
            return
        if draw not in ("auto", *BY_VALUE, *LAWS):
            raise ValueError(f"draw must be auto, wor, wr, hub, topk, ranked or adaptive, got {draw!r}")
        widths = list(branching) if isinstance(branching, Sequence) else [branching] * depth
        if len(widths) != depth or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in widths):
            raise ValueError(
                f"branching must be one integer >= 1, or one for each of {depth} depths; got {branching!r}"
            )
        if nodes is not None and (isinstance(nodes, bool) or not isinstance(nodes, int)):
            raise ValueError(f"nodes must be an integer >= depth ({depth}), or null; got {nodes!r}")
        if self.by_value and (nodes is None or nodes < depth):
            raise ValueError(f"draw={draw!r} needs nodes >= depth ({depth}), the number of drafted nodes; got {nodes}")
        if not self.by_value and nodes is not None:
            raise ValueError(f"nodes is for draw='ranked' and 'adaptive'; a {draw} tree has as many as branching says")
        scored = self.width * depth if self.by_value else _grown_nodes(widths)
        if max(scored, nodes or 0) > MOST_NODES:
            raise ValueError(
                f"depth={depth}, branching={branching!r}, nodes={nodes} make a tree of more than "
                f"{MOST_NODES:,} nodes, scored and drafted; a pass takes no more"
            )
        if self.stop_rule is not None and not self.chain:
            raise ValueError(
                "stop is for chains (branching=1, no draw='ranked' or 'adaptive'); drop it or draft a chain"
            )

    @cached_property
    def stop_rule(self) -> Stop | None:
        return make_stop(self.stop)

    @property
    def by_value(self) -> bool:
        return self.draw in BY_VALUE

    @property
    def widths(self) -> list[int]:
        """Children per node at each depth."""
        return [self.branching] * self.depth if isinstance(self.branching, int) else list(self.branching)

    @property
    def width(self) -> int:
        """Nodes that a ranked tree expands per level."""
        return self.widths[0] if self.widths[0] > 1 else max(2, -(-(self.nodes or 0) // 2))

    @property
    def chain(self) -> bool:
        if self.tree is not None:
            return self.tree.is_chain
        return not self.by_value and max(self.widths) == 1

    @property
    def fixed_width(self) -> bool:
        return self.draw != "adaptive"

    @property
    def max_nodes(self) -> int:
        """Of the finished tree, the root included."""
        if self.tree is not None:
            return 1 + self.tree.nodes
        if self.by_value:
            return 1 + (self.nodes or 0)
        return 1 + _grown_nodes(self.widths)

    @property
    def slots(self) -> int:
        """What the drafter's own cache needs beyond the committed tokens: a ranked tree scores more than it keeps."""
        return max(self.max_nodes, 1 + (self.depth - 1) * self.width if self.by_value else 0)

    def law(self, greedy: bool) -> SiblingLaw:
        if greedy or self.draw in ("ranked", "static"):
            return SiblingLaw.DET
        return LAWS.get(self.draw, SiblingLaw.WOR)

    def grow(self, logits: Tensor, score: Score, state: State, chance: Draws) -> Grown:
        """One tree per row; `logits` (B, 1, V) follow the roots, `score` gives those of each further level."""
        if self.tree is not None:
            return static(logits, score, state, self.tree)
        if self.draw == "ranked" or (self.draw == "adaptive" and state.sampling.greedy):
            return ranked(logits, score, state, self.depth, self.width, self.nodes or 0)
        if self.draw == "adaptive":
            return adaptive(logits, score, state, chance, self.depth, self.nodes or 0)
        return levels(logits, score, state, chance, self.widths, self.law(state.sampling.greedy), self.stop_rule)


def _grown_nodes(widths: Sequence[int]) -> int:
    """Of a tree with so many children per node at each depth, the root not counted. Counting ends
    where there are more than a tree may have."""
    total, level = 0, 1
    for width in widths:
        level *= width
        total += level
        if total > MOST_NODES:
            break
    return total
