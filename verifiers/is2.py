"""Lossless on independently drawn siblings, an oracle for small vocabularies: importance-weighted
choice, then one exact test.

Khisti et al. 2410.18234. One of the k drafted slots is picked with weights w = p / q per slot (ties
and zeros: evenly); the marginal p_I of the picked token is computed exactly over all V^k tuples;
then the single-draft rule with proposal p_I: accept if u < p / p_I, else emit from norm((p -
p_I)+). Exact for WR with fixed width, whatever the weights. Expected at one node: sum(min(p, p_I)).
Cost: O(k V^k) per visited node, hence the limit on the vocabulary.
"""

import torch
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.walk import Judged, Walk, descend, ratio, residual


class ImportanceSampling(Verifier):
    """Exact for WR siblings of fixed width; V at most 16."""

    laws = frozenset({SiblingLaw.WR})
    needs_fixed_width = True
    max_vocabulary = 16

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return descend(trees, p, chance, judge)


def judge(walk: Walk, p: Tensor, q: Tensor | None, chance: Draws) -> Judged:
    assert q is not None
    p, q = p.double(), q.double()
    children = torch.stack([walk.child(rank) for rank in range(walk.trees.width)], 1)  # (B, k)
    there = children > 0
    count = there.sum(1)
    parent = walk.open & (count > 0)
    weights = slot_weights(p, q)
    slots = torch.where(there, weights.gather(1, walk.trees.tokens.gather(1, children)), 0.0)
    slots = torch.where((slots.sum(1, keepdim=True) > 0), slots, there.double())
    slots = torch.where(parent[:, None], slots, 1.0)  # a row at rest draws nothing
    pick = chance.categorical(slots, walk.sites(live=parent), "pick")
    picked = children.gather(1, pick[:, None])[:, 0]
    proposal = torch.stack(
        [picked_law(w, law, int(k)) for w, law, k in zip(weights, q, count, strict=True)]
    )
    odds = ratio(p, proposal, walk.token(picked)).clamp(max=1)
    kept = chance.bernoulli(odds, walk.sites(picked, live=parent), "accept") & parent
    remainder, empty = residual(p, proposal)
    return Judged(picked * kept, torch.where(parent[:, None], remainder, p), parent & ~kept & empty)


def slot_weights(p: Tensor, q: Tensor) -> Tensor:
    """(B, V) p / q; 0 where q never drafts."""
    return torch.where(q > 0, p / q.clamp(min=1e-300), 0.0)


def picked_law(weights: Tensor, q: Tensor, k: int) -> Tensor:
    """(V,) the law of the picked token over all k-tuples from q (V,)."""
    if k == 0:
        return q
    vocabulary = len(q)
    tuples = torch.cartesian_prod(*[torch.arange(vocabulary)] * k).view(-1, k)
    chances = q[tuples].prod(1)
    slots = weights[tuples]
    total = slots.sum(1, keepdim=True)
    share = torch.where(total > 0, slots / total.clamp(min=1e-300), 1.0 / k)
    return torch.zeros_like(q).index_add_(0, tuples.flatten(), (share * chances[:, None]).flatten())
