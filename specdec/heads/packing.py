"""Several documents in one window of training text. Each is read as if it stood alone: attention
masks are block-diagonal, and positions begin anew.

Letters: B windows, T tokens.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor


class Documents(NamedTuple):
    """Which document each token belongs to, and where in it the token stands."""

    number: Tensor  # (B, T)
    position: Tensor  # (B, T), from 0
    ends: Tensor  # (B, T) bool: the token that ends a document

    def same(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, n, m) bool: whether the tokens at indices query (B, n) and key (B, m) share a
        document."""
        theirs, ours = self.number.gather(1, key), self.number.gather(1, query)
        return ours[:, :, None] == theirs[:, None]


def documents_of(ids: Tensor, eos_ids: Collection[int]) -> Documents:
    """Of ids (B, T). A document ends with one of `eos_ids`; that of the first token may have begun
    before the window, and counts from there."""
    ends = torch.isin(ids, torch.tensor(sorted(eos_ids), dtype=ids.dtype, device=ids.device))
    number = ends.cumsum(1) - ends.long()
    index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    begins = torch.zeros_like(ends)
    begins[:, 1:] = ends[:, :-1]
    first = torch.where(begins, index, 0).cummax(1).values
    return Documents(number, index - first, ends)


def of_pairs(documents: Documents) -> tuple[Tensor, Tensor]:
    """(B, T - 1) each: which document a pair (token i + 1, state of token i) belongs to, and the
    position of its state. A pair of two documents is part of neither: it has a document of its
    own."""
    number = documents.number
    whole = number[:, 1:] == number[:, :-1]
    alone = -1 - torch.arange(number.shape[1] - 1, device=number.device)
    return torch.where(whole, number[:, :-1], alone), documents.position[:, :-1]
