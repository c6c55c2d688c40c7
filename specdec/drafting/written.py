"""Chains from the text that a draft model writes in its own tokens (string-level drafts, Timor et
al. 2502.05202): it writes its most probable tokens, and the text is tokenized for the target.

What is drafted is a function of the committed text, so the chain is DET, whatever the tokenizers
make of it.

Letters: B rows, W tokens of the draft model.
"""

import torch
from torch import Tensor

from specdec.drafting.lookup import Draft, tree_of
from specdec.models.translated import TranslatedSession
from specdec.state import State
from specdec.tree import TokenTree


def written(logits: Tensor, session: TranslatedSession, state: State, depth: int) -> TokenTree:
    """A chain of up to `depth` of the target's tokens per row. `logits` (B, 1, W) follow the text,
    over the draft model's own tokens, of which `depth` are written."""
    pieces = torch.zeros(state.rows, 1, dtype=torch.long, device=logits.device)
    for step in range(depth):
        pieces = torch.cat([pieces, logits[:, -1].argmax(-1, keepdim=True)], 1)
        if step + 1 < depth:
            logits = session.score(TokenTree.chain(pieces, None), step + 1).logits
    drafts = session.written(pieces[:, 1:])
    host = state.on_host
    chains = [
        Draft(draft[: min(depth, room - 1)] if alive else [], [])
        for draft, room, alive in zip(drafts, host.room, host.live, strict=True)
    ]
    return tree_of(chains, state, is_chain=True)
