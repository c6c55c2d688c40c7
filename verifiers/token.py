"""Lossless on chains: each drafted token is accepted with probability min(1, p/q), the first
rejection emits norm((p - q)+).

Leviathan et al. 2211.17192, algorithm 1; Chen et al. 2302.01318. Exact for DET, WOR and WR (one
child per node, so they differ in q only). Expected accepted length: sum over i of E_q[prod_{j<=i}
min(1, p_j/q_j)]. Cost: O(V) per visited node.
"""

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.rejection import recursive_rejection


class Token(Verifier):
    """Exact on chains."""

    laws = frozenset({SiblingLaw.DET, SiblingLaw.WOR, SiblingLaw.WR})
    chain_only = True

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return recursive_rejection(trees, p, chance)
