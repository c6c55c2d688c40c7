"""What rounds cost, and the speed-up over plain decoding that follows.

A round costs a pass of the target over the tree and its root, and a pass of the drafter per level;
plain decoding costs a pass over one node per token. Everything else is left out, as in
`experiments.sequoia`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specdec.drafting.sequoia import cost_at
from specdec.errors import number


@dataclass(frozen=True)
class Costs:
    """target: nodes of a pass, the root included -> its cost. draft: of a level, in that unit."""

    target: Mapping[int, float]
    draft: float = 0.0

    @classmethod
    def of(cls, nodes: Sequence[int], target: Sequence[float], draft: float) -> "Costs | None":
        """None where no cost is given. Raises ValueError for costs that are none."""
        if not nodes and not target:
            return None
        if len(nodes) != len(target) or len(set(nodes)) != len(nodes):
            raise ValueError(
                "costs.target has one number for each of costs.nodes, and each of those stands "
                f"there once; got {list(nodes)} and {list(target)}"
            )
        if 1 not in nodes:
            raise ValueError(
                "costs.nodes must hold 1, the pass of plain decoding, such as costs.nodes=[1,16] "
                f"costs.target=[1,1.2]; got {list(nodes)}"
            )
        number("costs.draft", draft, 0)
        return cls(dict(zip(nodes, target, strict=True)), draft)

    def target_at(self, nodes: float) -> float:
        """Of a pass over so many nodes, also between two whole numbers."""
        below = int(nodes)
        low = cost_at(self.target, below)
        if nodes == below:
            return low
        return low + (nodes - below) * (cost_at(self.target, below + 1) - low)

    def speedup(self, tau: float, drafted: float, depth: float) -> float:
        """Of rounds that keep tau tokens and draft so many nodes on so many levels, on average."""
        return tau * self.target_at(1) / (self.target_at(1 + drafted) + depth * self.draft)
