"""Chains from the text that a draft model writes in its own tokens (string-level drafts, Timor et
al. 2502.05202): it writes its most probable tokens, and the text is tokenized for the target.

What is drafted is a function of the committed text, so the chain is DET, whatever the tokenizers
make of it.

Letters: B rows, W tokens of the draft model.
"""

import torch
from torch import Tensor

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
    lengths = [
        min(len(draft), depth, room - 1) if alive else 0
        for draft, room, alive in zip(drafts, host.room, host.live, strict=True)
    ]
    tokens = torch.zeros(state.rows, max(lengths), dtype=torch.long)
    for row, (draft, length) in enumerate(zip(drafts, lengths, strict=True)):
        tokens[row, :length] = torch.tensor(draft[:length], dtype=torch.long)
    whole = torch.cat([state.roots[:, None], tokens.to(logits.device)], 1)
    return TokenTree.chain(whole, torch.tensor(lengths, device=logits.device))
