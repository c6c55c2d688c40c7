"""What kind of tree a drafter grows when a policy decides its shape, and how large it may get."""

import copy
from dataclasses import dataclass

from specdec.drafting.shape import Shape, TreeDrafter
from specdec.errors import Refused, integer
from specdec.interfaces import Drafter, LanguageModel, compile_of
from specdec.pricing import at_once
from specdec.pricing.growing import Governed
from specdec.pricing.policy import Policy
from specdec.sampling import Sampling
from specdec.tree import MOST_NODES, SiblingLaw

CERTAIN = ("ranked", "static", "topk")  # draws whose trees are DET above temperature 0 too
DEEPEST, LARGEST, WIDEST = 8, 32, 6


@dataclass(frozen=True)
class Bounds:
    """The largest trees that are looked at.

    depth     levels
    nodes     drafted nodes, the root not counted
    width     nodes that a ranked tree expands per level, and children of a node
    """

    depth: int = DEEPEST
    nodes: int = LARGEST
    width: int = WIDEST

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            integer(name, value, 1, MOST_NODES)

    def of(self, drafter: TreeDrafter) -> "Bounds":
        """What `drafter` can: one of as many heads as depths goes no deeper."""
        depth = min(self.depth, drafter.deepest or self.depth)
        return Bounds(depth, max(self.nodes, depth), self.width)


def governed(
    drafter: Drafter, policy: Policy, bounds: Bounds, sampling: Sampling, target: LanguageModel
) -> tuple[Drafter, Governed | None]:
    """A copy of the drafter whose trees the policy shapes, and what grows them; None where the
    drafter makes its trees in another way. On a compiled target it may draft whole trees.

    Raises Refused for children of two kinds (hub)."""
    if not isinstance(drafter, TreeDrafter):
        return copy.copy(drafter), None
    shape, most = drafter.shape, bounds.of(drafter)
    certain = sampling.greedy or shape.draw in CERTAIN
    if shape.draw == "hub" and not certain:
        raise Refused(
            "draw='hub' has fixed children and one that is drawn, which no price separates; take "
            "draw='wor', 'wr' or 'ranked'"
        )
    law = SiblingLaw.WR if shape.draw == "wr" else SiblingLaw.WOR
    law = SiblingLaw.DET if certain else law
    draw: str | None = None
    if shape.chain and not certain:
        bound = Shape(most.depth, 1, law.value)
        grower = Governed(policy, most.depth, most.depth, 1, law, chain=True)
        draw = law.value
    else:
        # Only its bounds count: `grower` says how siblings are drawn. A chain is grown as one;
        # where whole trees are compiled, they are looked at too.
        bound = Shape(most.depth, most.width, "ranked" if certain else "adaptive", most.nodes)
        grower = Governed(policy, most.depth, most.nodes, most.width, law, shape.chain)
    if drafter.grows_whole and compile_of(target) and (certain or shape.chain):
        grower.wholes = at_once.shapes(most.depth, most.nodes, most.width, draw)
    return drafter.grown_by(grower, bound), grower
