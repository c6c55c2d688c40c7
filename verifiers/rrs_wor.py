"""Lossless on trees drawn without replacement: recursive rejection, q shrinking with every rejected
sibling.

RSD 2402.14160, Sequoia 2402.12374, EAGLE-1. Exact for WOR and (with q certain of the token) DET
siblings, adaptive width included. Cost: O(V) per tried child.
"""

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.rejection import recursive_rejection


class RecursiveRejectionWithoutReplacement(Verifier):
    """Exact for WOR and DET siblings."""

    laws = frozenset({SiblingLaw.WOR, SiblingLaw.DET})

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return recursive_rejection(trees, p, chance)
