"""Lossy: accepts what the target finds typical enough, without a draw: p(x) > min(epsilon, delta exp(-entropy(p))).

Medusa 2401.10774, section 2.3.1. The longest path whose every token passes is accepted (of equally long ones the most likely),
then the target adds a token of its own. For every sibling law. Given the tree, a node with a passing child on the path emits
that child with certainty: its total variation from p is 1 - p(x), its KL -log p(x). Cost: one law per node with children.
"""

import torch

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws, Sites
from specdec.descent import verdict_at
from specdec.deviation import Deviation


class Typical(Verifier):
    """Not exact: improbable tokens are never accepted, probable ones always."""

    laws = frozenset(SiblingLaw)
    lossless = False

    def __init__(self, epsilon: float = 0.3, delta: float = 0.09) -> None:
        if not (0 < epsilon <= 1 and delta > 0):
            raise ValueError(f"epsilon must be in (0, 1] and delta > 0, got {epsilon!r} and {delta!r}")
        self.epsilon, self.delta = epsilon, delta

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        rows = torch.arange(trees.rows, device=trees.tokens.device)
        live = laws.state.live
        column = rows[:, None].expand_as(trees.tokens).flatten()
        parents = trees.parents.clamp(min=0)
        # One law per node with children; siblings share it.
        inner, shared = (column * trees.num_nodes + parents.flatten()).unique(return_inverse=True)
        p = laws[inner // trees.num_nodes, inner % trees.num_nodes]
        entropy = -(p.clamp(min=1e-30).log_().mul_(p)).sum(-1)
        threshold = (self.delta * (-entropy).exp()).clamp(max=self.epsilon)[shared]
        chances = p[shared, trees.tokens.flatten()]
        passes = ((chances > threshold).view_as(parents) & (trees.parents >= 0)) | ~(trees.parents >= 0)
        # A node stands if all its ancestors pass; the deepest one wins, of equally deep ones the most likely.
        stands = ~(trees.ancestors & ~passes[:, None, :]).any(2) & trees.used
        drafted = (trees.parents >= 0) & trees.used
        logs = torch.where(drafted, chances.view_as(parents).double().clamp(min=1e-300).log(), 0.0)
        likelihood = (trees.ancestors * logs[:, None, :]).sum(-1)
        merit = torch.where(stands, trees.depths * 1e6 + likelihood, -torch.inf)
        leaf = merit.argmax(1) * live
        deviation = Deviation(rows)
        on_path = trees.ancestors[rows, leaf] & drafted & live[:, None]
        certain = chances.view_as(parents).double()
        deviation.note(
            torch.where(on_path, 1 - certain, 0.0).sum(1),
            torch.where(on_path, -certain.clamp(min=1e-300).log(), 0.0).sum(1),
            on_path.sum(1),
        )
        at = Sites(rows, leaf, torch.zeros_like(leaf), trees.depths[rows, leaf], live)
        return verdict_at(trees, leaf, chance.categorical(laws[rows, leaf], at, "bonus"), **deviation.counts)
