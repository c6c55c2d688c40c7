"""KV memory for B rows: write a tree, keep a path, forget the rest. Preallocated, written in place.

It owns lengths and slots. Committed token i lies in slot i; what lies behind a row's length is scratch.

Letters: B rows, N nodes, S slots, H heads, D head size, T slots read by a pass, G layers of one shape.
"""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class LayerShape(NamedTuple):
    """Heads and head sizes of one layer; K and V may differ (multi-head latent attention)."""

    heads: int
    key_size: int
    value_heads: int
    value_size: int


class KVCache(Cache):
    """One block of memory per kind of layer, (G, B, H, S, D) each for K and V, viewed per layer."""

    def __init__(
        self, shapes: list[LayerShape], rows: int, slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layers: list[Any] = []  # transformers' own layer objects; there are none
        self.rows, self.slots = rows, slots
        self.lengths = [0] * rows  # committed tokens per row
        self.roots: list[int] | None = None  # slot of the root while a tree is being scored
        self.blocks: list[Tensor] = []  # (G, B, H, S, D), K and V of each kind of layer in turn
        self._members: list[list[int]] = []  # the layers of each block
        alike = defaultdict(list)
        for layer, shape in enumerate(shapes):
            alike[shape].append(layer)
        for shape, members in alike.items():
            keys = torch.zeros(len(members), rows, shape.heads, slots, shape.key_size, dtype=dtype, device=device)
            values = torch.zeros(
                len(members), rows, shape.value_heads, slots, shape.value_size, dtype=dtype, device=device
            )
            self.blocks += [keys, values]
            self._members += [members, members]
        self._rows = torch.arange(rows, device=device)[:, None]
        self.end = 0  # slots that the pass at hand looks at
        self._slots: Tensor | None = None  # (B, N) where a pass writes, if its rows have different lengths
        # Per layer, what a pass reads (B, H, T, D) and what it writes: views that `aim` cuts for all layers at once.
        self._reads: list[list[Tensor]] = [[torch.empty(0)] * 2 for _ in shapes]
        self._writes: list[list[Tensor]] = [[torch.empty(0)] * 2 for _ in shapes]

    @property
    def nbytes(self) -> int:
        return sum(block.numel() * block.element_size() for block in self.blocks)

    @property
    def uniform(self) -> bool:
        """Whether all rows have the same length, so that slices do."""
        return min(self.lengths) == max(self.lengths)

    def aim(self, first: list[int], count: int) -> int:
        """The coming pass writes `count` slots per row, from slot first[row] on; returns T, how many it reads.

        Raises ValueError, before anything is computed, where the room does not suffice.
        """
        self.end = max(first) + count
        if self.end > self.slots:
            row = first.index(max(first))
            raise ValueError(
                f"the KV cache has {self.slots} slots per row, but row {row} holds {first[row]} tokens and the pass "
                f"writes {count} more; open it with more slots (a drafter's max_nodes must cover its largest tree)"
            )
        uniform = min(first) == max(first)
        for number, (block, members) in enumerate(zip(self.blocks, self._members, strict=True)):
            reads = block[:, :, :, : self.end].unbind(0)
            writes = block[:, :, :, first[0] : self.end].unbind(0) if uniform else reads
            for index, layer in enumerate(members):
                self._reads[layer][number % 2] = reads[index]
                self._writes[layer][number % 2] = writes[index]
        self._slots = None
        if not uniform:
            device = self._rows.device
            self._slots = torch.tensor(first, device=device)[:, None] + torch.arange(count, device=device)
        return self.end

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """transformers' seam: write this pass's K and V (B, H, N, D), return all (B, H, T, D) that it may look at."""
        for place, fresh in zip(self._writes[layer_idx], (key_states, value_states), strict=True):
            if self._slots is None:
                place.copy_(fresh)
            else:
                place.transpose(1, 2)[self._rows, self._slots] = fresh.transpose(1, 2)
        keys, values = self._reads[layer_idx]
        return keys, values

    def commit(self, counts: list[int]) -> None:
        """The `counts` tokens written last are committed; the last of them may serve as a root."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.roots = [max(length - 1, 0) for length in self.lengths]

    def keep(self, path: Tensor, counts: list[int]) -> None:
        """Move the first `counts` nodes of `path` (B, D) behind the root and commit both."""
        roots = self.roots if self.roots is not None else self.lengths
        moved = any(
            node != place + 1
            for row, count in zip(path.tolist(), counts, strict=True)
            for place, node in enumerate(row[: max(count, 0)])
        )
        if moved:
            wanted = torch.arange(1, path.shape[1] + 1)
            source = torch.where(wanted <= torch.tensor(counts)[:, None], path, wanted)
            self._move(roots, source, wanted)
        self.lengths = [root + 1 + count for root, count in zip(roots, counts, strict=True)]
        self.roots = None

    def rearrange(self, source: Tensor) -> None:
        """While a tree is being scored: node i becomes what node source[:, i] (B, N) was."""
        self._move(self.roots or self.lengths, source, torch.arange(source.shape[1], device=source.device))

    def _move(self, roots: list[int], source: Tensor, wanted: Tensor) -> None:
        """Nodes `source` (B, D) of each row come to lie where nodes `wanted` (D,) lay."""
        device = self._rows.device
        first = torch.tensor(roots, device=source.device)[:, None]
        target_slots, source_slots = (first + wanted).to(device), (first + source).to(device)
        for block in self.blocks:
            by_slot = block.permute(1, 3, 0, 2, 4)
            by_slot[self._rows, target_slots] = by_slot[self._rows, source_slots]

    def check_integrity(self) -> None:
        """For tests: what must hold between passes."""
        assert all(0 <= length <= self.slots for length in self.lengths)
        assert all(block.shape[1] == self.rows and block.shape[3] == self.slots for block in self.blocks)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.roots or self.lengths)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.end, 0


class ShapeProbe(Cache):
    """A cache that keeps nothing and notes what each layer would have written."""

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self.seen: dict[int, LayerShape] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.seen[layer_idx] = LayerShape(
            key_states.shape[1], key_states.shape[3], value_states.shape[1], value_states.shape[3]
        )
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0
