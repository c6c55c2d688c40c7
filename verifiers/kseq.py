"""Lossless on independently drawn siblings: k-sequential selection, each child tested against p /
(gamma q).

SpecTr 2310.15141, algorithm 3. beta(gamma) = sum(min(p / gamma, q)); gamma is the root in [1, k] of
1 - (1 - beta)^k = gamma beta, rounded up (any larger gamma is exact too). The first child with u <
p / (gamma q) is accepted; else emit from norm(p - min(p / gamma, q) (1 - (1 - beta)^k) / beta).
Exact for WR with fixed width. Expected at one node: 1 - (1 - beta)^k. Cost: O(V) times about 22
bisections per visited node.
"""

import torch
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.walk import Judged, Walk, descend, ratio, residual

STEP = 1e-6  # gamma is a multiple of this


class KSeq(Verifier):
    """Exact for WR siblings of fixed width."""

    laws = frozenset({SiblingLaw.WR})
    needs_fixed_width = True

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return descend(trees, p, chance, judge)


def judge(walk: Walk, p: Tensor, q: Tensor | None, chance: Draws) -> Judged:
    assert q is not None
    p, q = p.double(), q.double()
    count = (walk.trees.parents == walk.node[:, None]).sum(1)
    gamma = smallest_gamma(p, q, count.clamp(min=1))
    scaled = p / gamma[:, None]
    undecided, chosen = walk.open, torch.zeros_like(walk.node)
    for rank in range(walk.trees.width):
        child = walk.child(rank)
        trying = undecided & (child > 0)
        odds = ratio(scaled, q, walk.token(child)).clamp(max=1)
        accepted = chance.bernoulli(odds, walk.sites(child, live=trying), "accept") & trying
        chosen = torch.where(accepted, child, chosen)
        undecided = undecided & ~accepted
    overlap = torch.minimum(scaled, q)
    beta = overlap.sum(-1)
    some = torch.where(beta > 0, (1 - (1 - beta) ** count) / beta.clamp(min=1e-300), 0.0)
    remainder, empty = residual(p, overlap * some[:, None])
    rejected = undecided & (count > 0)
    return Judged(chosen, torch.where(rejected[:, None], remainder, p), rejected & empty)


def smallest_gamma(p: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """(n,) the smallest multiple of STEP at or above the root, for p, q (n, V) and k (n,)
    siblings."""
    low = torch.full_like(k, round(1 / STEP))
    high = k * round(1 / STEP)
    for _ in range(int(round(1 / STEP) * 64).bit_length()):
        middle = (low + high) // 2
        gamma = middle.double() * STEP
        beta = torch.minimum(p / gamma[:, None], q).sum(-1)
        enough = 1 - (1 - beta) ** k <= gamma * beta + 1e-13
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, torch.minimum(middle + 1, high))
    return high.double() * STEP
