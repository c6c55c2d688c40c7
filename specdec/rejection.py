"""Recursive rejection: try the children of a node one after the other, each against what earlier ones have left of p.

Chain (width 1): Leviathan et al. 2211.17192, algorithm 1. Trees: SpecInfer 2305.09781 (with replacement), RSD 2402.14160 and
Sequoia 2402.12374 (without). Stage i emits p_i: p_i ^ q_i from the child, (p_i - q_i)+ passed on.
"""

import torch

from specdec.chance import Draws
from specdec.descent import Descent, one_hot, ratio, residual, without
from specdec.interfaces import Verdict
from specdec.sampling import Laws
from specdec.tree import SiblingLaw, TokenTree


def recursive_rejection(trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
    """State p_1 = p. Child i in sampling order: accept if u < p_i(x) / q_i(x), else p_{i+1} = norm((p_i - q_i)+).

    q_i = q for WR; q without x_1 .. x_{i-1} for WOR; certain of x_i for DET. All rejected: emit from what is left of p.
    """
    walk = Descent(trees, laws.state.live)
    bonus = torch.zeros_like(walk.node)
    zero_residuals = torch.zeros_like(walk.node)
    for level in range(trees.levels + 1):
        p = laws[walk.rows, walk.node]
        undecided, chosen = walk.open, torch.zeros_like(walk.node)
        q = trees.q[walk.rows, walk.node].to(p.dtype) if trees.q is not None else None
        for rank in range(trees.width if level < trees.levels else 0):
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
            if q is not None and trees.law is SiblingLaw.WOR:
                q = without(q, token)
        bonus = torch.where(undecided, chance.categorical(p, walk.sites(live=undecided), "bonus"), bonus)
        if level < trees.levels:
            walk.step(chosen, walk.open & (chosen > 0))
        if walk.over:
            break
    return walk.verdict(bonus, zero_residuals=zero_residuals)
