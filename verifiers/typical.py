"""Lossy: accepts what the target finds typical enough, without a draw: p(x) > min(epsilon, delta
exp(-entropy(p))).

Medusa 2401.10774, section 2.3.1. The longest path whose every token passes is accepted (of equally
long ones the most likely), then the target adds a token of its own. For every sibling law. Given
the tree, a node with a passing child on the path emits that child with certainty: its total
variation from p is 1 - p(x), its KL -log p(x). Cost: one law per node with children.
"""

import torch

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws, Sites
from specdec.verifying.deviation import Deviation
from specdec.verifying.walk import verdict_at


class Typical(Verifier):
    """Not exact: improbable tokens are never accepted, probable ones always."""

    laws = frozenset(SiblingLaw)
    lossless = False

    def __init__(self, epsilon: float = 0.3, delta: float = 0.09) -> None:
        if not (0 < epsilon <= 1 and delta > 0):
            raise ValueError(
                f"epsilon must be in (0, 1] and delta > 0, got {epsilon!r} and {delta!r}"
            )
        self.epsilon, self.delta = epsilon, delta

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        rows, live, law = p.rows, p.state.live, p.everywhere
        drafted, parents = trees.parents >= 0, trees.parents.clamp(min=0)
        entropy = -(law.clamp(min=1e-30).log_().mul_(law)).sum(-1)
        threshold = (self.delta * (-entropy).exp()).clamp(max=self.epsilon).gather(1, parents)
        chances = law[rows[:, None], parents, trees.tokens]
        passes = (chances > threshold) | ~drafted
        # A node stands if all its ancestors pass; the deepest wins, of equally deep ones the most
        # likely.
        stands = ~(trees.ancestors & ~passes[:, None, :]).any(2) & trees.used
        certain = chances.double()
        logs = torch.where(drafted, certain.clamp(min=1e-300).log(), 0.0)
        likelihood = (trees.ancestors * logs[:, None, :]).sum(-1)
        merit = torch.where(stands, trees.depths * 1e6 + likelihood, -torch.inf)
        leaf = merit.argmax(1) * live
        deviation = Deviation(rows)
        on_path = trees.ancestors[rows, leaf] & drafted & live[:, None]
        deviation.note(
            torch.where(on_path, 1 - certain, 0.0).sum(1),
            torch.where(on_path, -certain.clamp(min=1e-300).log(), 0.0).sum(1),
            on_path.sum(1),
        )
        at = Sites(rows, leaf, torch.zeros_like(leaf), trees.depths[rows, leaf], live)
        bonus = chance.categorical(law[rows, leaf], at, "bonus")
        return verdict_at(trees, leaf, bonus, **deviation.counts)
