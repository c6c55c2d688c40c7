"""Lossless on trees drawn independently: recursive rejection against the same q for every sibling.

SpecInfer 2305.09781, multi-step speculative sampling. Exact for WR and DET siblings, adaptive width
included; a duplicate sibling is processed like any other (merging duplicates first would bend the
law). Cost: O(V) per tried child.
"""

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.rejection import recursive_rejection


class RecursiveRejectionWithReplacement(Verifier):
    """Exact for WR and DET siblings."""

    laws = frozenset({SiblingLaw.WR, SiblingLaw.DET})

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return recursive_rejection(trees, p, chance)
