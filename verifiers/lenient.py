"""Lossy: recursive acceptance of chains that takes a token where p / q reaches a share l of what
exactness asks.

Leviathan et al. 2211.17192, appendix A.5 (lenience): accept if u < p / (l q), 0 < l <= 1; on
rejection emit from norm((p - min(q, p / l))+). l = 1 is the lossless token-wise rule. For DET, WOR
and WR chains. Per judged node the law of what is emitted, averaged over the draft, is known: its
total variation and KL from p are reported. Cost: O(V) per visited node.
"""

from dataclasses import replace

import torch
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.deviation import Deviation
from specdec.verifying.walk import Judged, Walk, descend, one_hot, ratio, residual


class Lenient(Verifier):
    """Not exact: the output law leans towards the drafter's."""

    laws = frozenset({SiblingLaw.DET, SiblingLaw.WOR, SiblingLaw.WR})
    lossless = False
    chain_only = True

    def __init__(self, lenience: float = 0.8) -> None:
        if not 0 < lenience <= 1:
            raise ValueError(f"lenience must be in (0, 1], got {lenience!r}")
        self.lenience = lenience

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        deviation = Deviation(torch.arange(trees.rows, device=trees.tokens.device))

        def judge(walk: Walk, p: Tensor, q: Tensor | None, chance: Draws) -> Judged:
            child = walk.child(0)
            trying = walk.open & (child > 0)
            token = walk.token(child)
            q = one_hot(token, p) if q is None else q.to(p.dtype)
            eased = torch.minimum(q, p / self.lenience)
            left, empty = residual(p, eased)
            kept = (
                chance.bernoulli(ratio(eased, q, token), walk.sites(child, live=trying), "accept")
                & trying
            )
            deviation.add(eased + (1 - eased.sum(-1, keepdim=True)).clamp(min=0) * left, p, trying)
            return Judged(
                child * kept, torch.where(trying[:, None], left, p), trying & ~kept & empty
            )

        verdict = descend(trees, p, chance, judge)
        return replace(verdict, counts=deviation.counts)
