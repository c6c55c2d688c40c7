"""Trees from laws that do not know the drafted tokens: one for each depth, all of one pass. Every
builder of trees asks for the laws at nodes; here a node's depth says which it is.

Letters: B rows, m nodes of a level, D guessed tokens, V vocabulary.
"""

import torch
from torch import Tensor

from specdec.tree import TokenTree


def depths_from(tree: TokenTree, start: int, known: Tensor) -> Tensor:
    """(B, m) depths of nodes >= start, as numbers of laws in `known` (B, D, V). Nodes that a row
    does not have may be deeper; they get the last law."""
    return tree.depths[:, start:].clamp(max=known.shape[1] - 1)


def laws_at(known: Tensor, depths: Tensor) -> Tensor:
    """(B, m, V) of `known` (B, D, V) behind nodes of these depths (B, m)."""
    rows = torch.arange(len(depths), device=depths.device)[:, None]
    return known[rows, depths]
