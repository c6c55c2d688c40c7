"""Lossless at temperature 0, any tree: the output is the target's own greedy continuation.

Accepts the longest path whose every token is the argmax of its parent's logits (ties to the lowest
index). Stern et al. 1811.03115; Leviathan et al. 2211.17192. Exact for DET, WOR, WR and HUB
siblings. Cost: one argmax over the scored nodes.
"""

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.walk import followed


class Greedy(Verifier):
    """Exact at temperature 0."""

    laws = frozenset(SiblingLaw)
    zero_temperature_only = True
    coupled = True

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return followed(trees, p.argmax, p.state)
