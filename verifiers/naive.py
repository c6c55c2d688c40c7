"""Lossless, any tree: draws the target's own token at each node and descends while the tree has it.

SpecInfer 2305.09781, "naive sampling"; token matching. Exact for DET, WOR, WR and HUB siblings,
also under coupled chance (Daliri et al. 2408.07978). For a DET tree it is optimal, and it is the
point-mass rule of EAGLE-2/3: accepting sibling x with probability p(x), else removing it and
renormalising, has the same law. Cost: one law and one draw per node.
"""

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.walk import matched


class Naive(Verifier):
    """Exact for every tree."""

    laws = frozenset(SiblingLaw)
    coupled = True

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return matched(trees, p, chance)
