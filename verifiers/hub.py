"""Lossless on HUB siblings, and the best any rule can do with that draft: the sampled child is
tested first.

SpecHub 2411.05289 at two children; Hu et al. 2502.18779 (greedy draft) for more. T = the k - 1
fixed children, z drawn from q without T. Accept z if u < p(z) / q_{-T}(z); else draw y from norm((p
- q_{-T})+) and descend if y is in T. Exact for HUB with fixed width. Expected: p(T) + sum_{x not in
T} min(p, q_{-T}). Cost: O(V) per visited node.
"""

import torch
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.walk import Judged, Walk, descend, ratio, residual


class Hub(Verifier):
    """Exact for HUB siblings."""

    laws = frozenset({SiblingLaw.HUB})
    needs_fixed_width = True

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return descend(trees, p, chance, judge, matching=True)


def judge(walk: Walk, p: Tensor, q: Tensor | None, chance: Draws) -> Judged:
    """Of the sampled child; the fixed ones are found by the token that the target then draws."""
    assert q is not None
    children = walk.trees.parents == walk.node[:, None]  # (B, N)
    parent = walk.open & children.any(1)
    last = (children.long() * torch.arange(walk.trees.num_nodes, device=p.device)).argmax(1)
    rest = q.to(p.dtype)
    for rank in range(walk.trees.width - 1):
        fixed = walk.child(rank)
        inside = parent & (fixed > 0) & (fixed != last)
        rest = torch.where(inside[:, None], rest.scatter(1, walk.token(fixed)[:, None], 0.0), rest)
    rest = rest / rest.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
    coin = walk.sites(last, live=parent)
    kept = chance.bernoulli(ratio(p, rest, walk.token(last)).clamp(max=1), coin, "accept") & parent
    remainder, empty = residual(p, rest)
    rejected = parent & ~kept
    return Judged(last * kept, torch.where(rejected[:, None], remainder, p), rejected & empty)
