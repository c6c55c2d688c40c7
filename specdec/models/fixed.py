"""A whole memory as a transformers cache, for one compiled pass: where it writes is data, and it
reads every slot.

Letters: B rows, n nodes of the pass, T slots of a row, H heads, D head size, P pages of the pool, p
pages of a row.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specdec.models import eight_bits

Views = list[list[Tensor]]  # K and V of each layer


class Fixed(Cache):
    """What both kinds have in common: `views` are K and V of each layer, T slots a row are read."""

    def __init__(self, views: Views, slots: int) -> None:
        self.layers: list[Any] = []  # transformers' own layer objects; there are none
        self._views, self._length = views, slots

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write this pass's K and V (B, H, n, D); return all slots (B, H, T, D)."""
        keys, values = self._views[layer_idx]
        for place, states in ((keys, key_states), (values, value_states)):
            packed = place.dtype == torch.int8
            self._write(place, eight_bits.encode(states) if packed else states)
        seen = []
        for place, states in ((keys, key_states), (values, value_states)):
            found = self._read(place)
            if place.dtype == torch.int8:
                found = eight_bits.decode(found, states.shape[-1], states.dtype)
            seen.append(found)
        return seen[0], seen[1]

    def _write(self, place: Tensor, states: Tensor) -> None:
        raise NotImplementedError

    def _read(self, place: Tensor) -> Tensor:
        raise NotImplementedError

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._length, 0


class FixedSlots(Fixed):
    """Of a memory in which the slots of a row are neighbours: views (B, H, T, D). written (B, n):
    the slots that the pass writes to."""

    def __init__(self, views: Views, slots: int, written: Tensor) -> None:
        super().__init__(views, slots)
        self._rows = torch.arange(len(written), device=written.device)[:, None]
        self._written = written

    def _write(self, place: Tensor, states: Tensor) -> None:
        place.transpose(1, 2)[self._rows, self._written] = states.transpose(1, 2)

    def _read(self, place: Tensor) -> Tensor:
        return place


class FixedPages(Fixed):
    """Of a memory in pages: views (H, P, page, D). table (B, p): the pages of each row; ends (B,):
    what a row may write ends before this slot. The rest goes to page 0, which nobody reads."""

    def __init__(
        self, views: Views, slots: int, written: Tensor, table: Tensor, ends: Tensor
    ) -> None:
        super().__init__(views, slots)
        page = views[0][0].shape[2]
        own = written < ends[:, None]
        self._pages = torch.where(own, table.gather(1, written // page), 0)
        self._places = written % page
        self._table = table

    def _write(self, place: Tensor, states: Tensor) -> None:
        place[:, self._pages, self._places] = states.transpose(0, 1)

    def _read(self, place: Tensor) -> Tensor:
        by_page = place[:, self._table]  # (H, B, p, page, D)
        return by_page.transpose(0, 1).flatten(2, 3)[:, :, : self._length]
