"""No drafter: plain decoding in the same loop, so that baseline and method are timed alike."""

from specdec import Drafter, State, TokenTree
from specdec.chance import Draws


class NoDrafter(Drafter):
    """The empty tree, always. tau = 1."""

    chain = True
    fixed_width = True
    max_nodes = 1

    def propose(self, state: State, chance: Draws) -> TokenTree:
        return TokenTree.root(state.roots)
