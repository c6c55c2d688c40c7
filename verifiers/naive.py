"""Lossless, any tree: draws the target's own token at each node and descends while the tree has it.

SpecInfer 2305.09781, "naive sampling"; token matching. Exact for DET, WOR, WR and HUB siblings, also under coupled chance
(Daliri et al. 2408.07978). For a DET tree it is optimal, and it is the point-mass rule of EAGLE-2/3: accepting sibling x with
probability p(x), else removing it and renormalising, has the same law. Cost: one law and one draw per visited node.
"""

import torch

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.descent import Descent


class Naive(Verifier):
    """Exact for every tree."""

    laws = frozenset(SiblingLaw)
    coupled = True

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        walk = Descent(trees, laws.state.live)
        bonus = torch.zeros_like(walk.node)
        for level in range(trees.levels + 1):
            token = chance.categorical(laws[walk.rows, walk.node], walk.sites(), "target")
            bonus = torch.where(walk.open, token, bonus)
            if level < trees.levels:
                child = walk.find(token)
                walk.step(child, walk.open & (child > 0))
            if walk.over:
                break
        return walk.verdict(bonus)
