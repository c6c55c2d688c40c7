"""A drafter that learns, small enough for enumeration."""

import torch

from specdec import Drafter, SiblingLaw, TokenTree
from specdec.chance import Sites


class Counts(Drafter):
    """Draws one token by how often each was committed so far, in any row of any run. The table is
    one: every row and every copy of the object writes to it."""

    learns = True
    law = SiblingLaw.WR
    chain = True
    fixed_width = True
    max_nodes = 2

    def __init__(self, vocabulary: int, dtype: torch.dtype = torch.float64) -> None:
        self.counts = torch.arange(1, vocabulary + 1, dtype=dtype)

    def propose(self, state, chance) -> TokenTree:
        q = (self.counts / self.counts.sum()).expand(state.rows, -1)
        rows, zeros = torch.arange(state.rows), torch.zeros(state.rows, dtype=torch.long)
        drafts = state.live & (state.room > 1)
        token = chance.categorical(q, Sites(rows, zeros, zeros, zeros, drafts), "draft")
        tokens = torch.stack([state.roots, token], 1)
        return TokenTree.chain(tokens, drafts.long(), self.law, q[:, None].expand(-1, 2, -1))

    def observe(self, state) -> None:
        for row, accepted in enumerate(state.last.num_accepted):
            for token in state.text(row)[-accepted - 1 :]:
                self.counts[token] += 1

    def forget(self) -> None:
        self.counts = torch.arange(1, len(self.counts) + 1, dtype=self.counts.dtype)
