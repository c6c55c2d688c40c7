"""A memory as a transformers cache, for one pass: where each layer writes and what it reads.

Letters: b rows of the pass, n tokens, T slots that it looks at, H heads, D head size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specdec.models import eight_bits

if TYPE_CHECKING:
    from specdec.models.memory import Memory


class Reader(Cache):
    """What all caches of one pass have in common."""

    def __init__(self, first: list[int], count: int, empty: bool) -> None:
        self.layers: list[Any] = []  # transformers' own layer objects; there are none
        self.first = max(first)
        self.end = self.first + count  # slots that the pass looks at
        self._fresh = empty  # nothing but the pass itself is there to be seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.first

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.end, 0


class Slots(Reader):
    """Of a memory in which the slots of a row are neighbours."""

    def __init__(
        self,
        memory: "Memory",
        first: list[int],
        count: int,
        rows: Sequence[int] | None,
        empty: bool,
    ) -> None:
        super().__init__(first, count, empty)
        uniform = min(first) == max(first)
        every = rows is None or list(rows) == list(range(memory.rows))
        device = memory.device
        self._rows = memory._every_row if every else torch.tensor(list(rows or ()), device=device)
        self._whole, self._packed = every, memory.packed
        # Where rows differ in length, or are but some of all: the slots (b, n) written to.
        self._slots: Tensor | None = None
        if not uniform or not every:
            self._slots = torch.tensor(first, device=device)[:, None] + torch.arange(
                count, device=device
            )
        # Per layer, what the pass reads (b, H, T, D) and writes: views, cut for all layers at once.
        layers = len(memory.layout.shapes)
        self._reads: list[list[Tensor]] = [[] for _ in range(layers)]
        self._writes: list[list[Tensor]] = [[] for _ in range(layers)]
        for block, members in zip(memory.blocks, memory._members, strict=True):
            reads = block[:, :, :, : self.end].unbind(0)
            writes = reads
            if self._slots is None:
                writes = block[:, :, :, first[0] : self.end].unbind(0)
            for index, layer in enumerate(members):
                self._reads[layer].append(reads[index])
                self._writes[layer].append(writes[index])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write this pass's K and V (b, H, n, D); return all (b, H, T, D) that it may look at."""
        fresh = (key_states, value_states)
        if self._packed:
            fresh = (eight_bits.encode(key_states), eight_bits.encode(value_states))
        for place, states in zip(self._writes[layer_idx], fresh, strict=True):
            if self._slots is None:
                place.copy_(states)
            else:
                place.transpose(1, 2)[self._rows[:, None], self._slots] = states.transpose(1, 2)
        keys, values = fresh if self._fresh else self._reads[layer_idx]
        if not self._fresh and not self._whole:
            keys, values = keys[self._rows], values[self._rows]
        if self._packed:
            keys = eight_bits.decode(keys, key_states.shape[-1], key_states.dtype)
            values = eight_bits.decode(values, value_states.shape[-1], value_states.dtype)
        return keys, values
