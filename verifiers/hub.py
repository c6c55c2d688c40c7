"""Lossless on HUB siblings, and the best any rule can do with that draft: the sampled child is tested first.

SpecHub 2411.05289 at two children; Hu et al. 2502.18779 (greedy draft) for more. T = the k - 1 fixed children, z drawn from
q without T. Accept z if u < p(z) / q_{-T}(z); else draw y from norm((p - q_{-T})+) and descend if y is in T. Exact for HUB with
fixed width. Expected: p(T) + sum_{x not in T} min(p, q_{-T}). Cost: O(V) per visited node.
"""

import torch

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.descent import Descent, ratio, residual


class Hub(Verifier):
    """Exact for HUB siblings."""

    laws = frozenset({SiblingLaw.HUB})
    needs_fixed_width = True

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        walk = Descent(trees, laws.state.live)
        bonus, zero_residuals = torch.zeros_like(walk.node), torch.zeros_like(walk.node)
        for level in range(trees.levels + 1):
            p = laws[walk.rows, walk.node]
            children = trees.parents == walk.node[:, None]  # (B, N)
            count = children.sum(1)
            parent = walk.open & (count > 0)
            if trees.q is None or not trees.width or level == trees.levels:
                parent = torch.zeros_like(parent)
            left, chosen, kept = p, torch.zeros_like(walk.node), torch.zeros_like(parent)
            if level < trees.levels and trees.q is not None:
                last = (children.long() * torch.arange(trees.num_nodes, device=p.device)).argmax(1)
                rest = trees.q[walk.rows, walk.node].to(p.dtype)
                for rank in range(trees.width - 1):
                    fixed = walk.child(rank)
                    inside = parent & (fixed > 0) & (fixed != last)
                    rest = torch.where(inside[:, None], rest.scatter(1, walk.token(fixed)[:, None], 0.0), rest)
                rest = rest / rest.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
                coin = walk.sites(last, live=parent)
                kept = chance.bernoulli(ratio(p, rest, walk.token(last)).clamp(max=1), coin, "accept") & parent
                chosen = torch.where(kept, last, chosen)
                remainder, empty = residual(p, rest)
                left = torch.where((parent & ~kept)[:, None], remainder, p)
                zero_residuals += (parent & ~kept & empty).long()
            drawing = walk.open & ~kept
            token = chance.categorical(left, walk.sites(live=drawing), "bonus")
            bonus = torch.where(drawing, token, bonus)
            if level < trees.levels:
                found = walk.find(token)
                chosen = torch.where(drawing & parent, found, chosen)
                walk.step(chosen, walk.open & (chosen > 0))
            if walk.over:
                break
        return walk.verdict(bonus, zero_residuals=zero_residuals)
