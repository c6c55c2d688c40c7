"""Recursive rejection: try the children of a node one after the other, each against what earlier
ones have left of p.

Chain (width 1): Leviathan et al. 2211.17192, algorithm 1. Trees: SpecInfer 2305.09781 (with
replacement), RSD 2402.14160 and Sequoia 2402.12374 (without). Stage i emits p_i: p_i ^ q_i from the
child, (p_i - q_i)+ passed on.
"""

import torch
from torch import Tensor

from specdec.chance import Draws
from specdec.probs import Laws
from specdec.state import Verdict
from specdec.tree import SiblingLaw, TokenTree
from specdec.verifying.walk import Judged, Walk, descend, drawn_out, one_hot, ratio, residual


def recursive_rejection(trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
    """State p_1 = p. Child i in sampling order: accept if u < p_i(x) / q_i(x), else p_{i+1} =
    norm((p_i - q_i)+).

    q_i = q for WR; q without x_1 .. x_{i-1} for WOR; certain of x_i for DET. All rejected: emit
    from what is left of p.
    """
    return descend(trees, laws, chance, judge)


def judge(walk: Walk, p: Tensor, q: Tensor | None, chance: Draws) -> Judged:
    """One node's children in every row."""
    q = None if q is None else q.to(p.dtype)
    undecided, chosen = walk.open, torch.zeros_like(walk.node)
    zero_residuals = torch.zeros_like(chosen)
    for rank in range(walk.trees.width):
        child = walk.child(rank)
        trying = undecided & (child > 0)
        token = walk.token(child)
        proposal = one_hot(token, p) if q is None else q
        coin = walk.sites(child, live=trying)
        accepted = chance.bernoulli(ratio(p, proposal, token).clamp(max=1), coin, "accept") & trying
        chosen = torch.where(accepted, child, chosen)
        undecided = undecided & ~accepted
        rejected = trying & ~accepted
        left, empty = residual(p, proposal)
        p = torch.where(rejected[:, None], left, p)
        zero_residuals += rejected & empty
        if q is not None and walk.trees.law is SiblingLaw.WOR:
            q = drawn_out(q, token)
    return Judged(chosen, p, zero_residuals)
