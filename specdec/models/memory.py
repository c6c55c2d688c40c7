"""KV memory of one decoder for B rows: write a tree, keep a path, forget the rest.

Committed token i of a row is stored in slot i at position i; node i of a tree in slot root + i at
position root + depth, where `root` is the root's slot. Slots past a row's length are scratch.

Letters: B rows, b rows of one pass, N nodes, T slots read by a pass, H heads, S slots, D head
size, G layers of one shape.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from transformers.cache_utils import Cache

from specdec.interfaces import CompiledPass, Kept
from specdec.models import attention, eight_bits
from specdec.models.masks import Masks, masks, masks_again
from specdec.models.slots import Reader, Slots
from specdec.models.support import LayerKind
from specdec.tree import Structure, TokenTree


class LayerShape(NamedTuple):
    """Heads and head sizes of one layer; K and V may differ (multi-head latent attention)."""

    heads: int
    key_size: int
    value_heads: int
    value_size: int


@dataclass(frozen=True)
class Layout:
    """What a decoder keeps per token, and how its layers look at it."""

    name: str  # of the model, for messages
    shapes: Sequence[LayerShape]  # of each layer
    kinds: list[LayerKind]  # of attention; a decoder with several gets a dict of masks
    implementation: str  # the attention of its layers; only ours can do without a mask
    context: int = 1 << 30  # positions that the model has


class Few(NamedTuple):
    """A pass of every row over few tokens, as it comes back round after round: these are nodes >=
    `start` of a tree."""

    first: list[int]  # the slot of each tree's root
    structure: Structure
    start: int


class Pass(NamedTuple):
    """What a forward pass over a memory is given beside its tokens: arguments of a transformers
    model, made when they are asked for; and `few`, the same in few words, for models whose passes
    are compiled."""

    options: Callable[[], dict[str, Any]]
    few: Few | None = None


LEAST = 256  # slots of a memory for compiled passes
Forward = Callable[["Memory", Pass, dict[str, Any]], Any]  # how a pass of a model is run


def as_it_is(module: Module) -> Forward:
    """Its passes as they are, not compiled."""

    def forward(memory: "Memory", over: Pass, inputs: dict[str, Any]) -> Any:
        options = over.options()
        with memory.timed():
            return module(**inputs, **options)

    return forward


def _arguments(positions: Tensor, seen: Masks, slots: Reader) -> dict[str, Any]:
    """Of a transformers model; positions (b, n)."""
    return {
        "position_ids": positions,
        "attention_mask": seen,
        "past_key_values": slots,
        "use_cache": True,
    }


def alike(shapes: Sequence[LayerShape]) -> Iterator[tuple[list[int], int, int]]:
    """Layers of one shape, with the heads and head size of their K, then of their V."""
    members = defaultdict(list)
    for layer, shape in enumerate(shapes):
        members[shape].append(layer)
    for shape, layers in members.items():
        yield layers, shape.heads, shape.key_size
        yield layers, shape.value_heads, shape.value_size


def bytes_per_token(layout: Layout, dtype: torch.dtype, kept: Kept) -> int:
    """Of a memory."""
    packed = kept == "int8"
    return sum(
        len(members) * heads * (eight_bits.width(size) if packed else size * dtype.itemsize)
        for members, heads, size in alike(layout.shapes)
    )


class Memory:
    """Preallocated and written in place; one block per kind of layer, (G, B, H, S, D) each for K
    and V. It grows where a text outgrows it."""

    def __init__(
        self,
        layout: Layout,
        rows: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        compiled: bool = False,
        kept: Kept = "model",
    ) -> None:
        self.layout, self.rows, self.kept = layout, rows, kept
        self.reach = 0  # see `OpenedPages`
        self.by_powers = compiled
        self.slots = self._capacity(slots) if slots else 0
        self.dtype, self.device = dtype, device
        self.packed = kept == "int8"
        self.lengths = [0] * rows  # committed tokens per row
        self.roots = [0] * rows  # the slot of the coming tree's root
        self.calls, self.forward_seconds = 0, 0.0  # passes, and the time inside them
        self.blocks: list[Tensor] = []  # (G, B, H, S, D), K and V of each kind of layer in turn
        self._members: list[list[int]] = []  # the layers of each block
        stored = torch.int8 if self.packed else dtype
        for members, heads, size in alike(layout.shapes):
            if self.packed:
                size = eight_bits.width(size)
            self.blocks.append(self._made(self._block(len(members), heads, size), stored))
            self._members.append(members)
        self._every_row = torch.arange(rows, device=device)
        self.compiled: list[CompiledPass] = []  # what was compiled for this memory's passes
        self.uses: Counter[Any] = Counter()  # how often a shape was needed
        self.graphs: dict[Any, Any] = {}  # captured passes over this memory, where it lies now
        self._views: list[list[Tensor]] | None = None

    def _made(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _block(self, layers: int, heads: int, size: int) -> tuple[int, ...]:
        """The shape of what is kept for some layers."""
        return layers, self.rows, heads, self.slots, size

    @property
    def nbytes(self) -> int:
        return sum(block.numel() * block.element_size() for block in self.blocks)

    @property
    def views(self) -> list[list[Tensor]]:
        """K and V of each layer, (B, H, S, D)."""
        if self._views is None:
            self._views = [[] for _ in self.layout.shapes]
            for block, members in zip(self.blocks, self._members, strict=True):
                for layer, view in zip(members, block.unbind(0), strict=True):
                    self._views[layer].append(view)
        return self._views

    @property
    def form(self) -> tuple[int, ...]:
        """What compiled passes depend on besides rows and slots."""
        return (int(self.packed),)

    def addresses(self) -> tuple[Tensor, ...]:
        """What a compiled pass has to know of where slots are: nothing, a row's are neighbours."""
        return ()

    def close(self) -> None:
        """Give the memory back. Nothing can be read or scored afterwards."""
        self.blocks, self.slots, self.rows = [], 0, 0
        self._moved()

    def _moved(self) -> None:
        self._views, self.graphs = None, {}

    def run(self, model: Forward, over: Pass, **inputs: Any) -> Any:
        """A forward pass of a transformers model."""
        self.calls += 1
        return model(self, over, inputs)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Inside a forward pass."""
        began = time.perf_counter()
        yield
        self.forward_seconds += time.perf_counter() - began

    # ---------------------------------------------------------------------------------- passes

    def reading(
        self,
        length: int,
        rows: Sequence[int] | None = None,
        prompt: bool = False,
        counts: Sequence[int] | None = None,
    ) -> Pass:
        """For `length` more tokens of some rows, each seeing all before it. Commit them afterwards.
        prompt: no two such passes are alike, so that none is compiled. counts: what will be
        committed of each row (None: everything); the rest is padding."""
        first = [self.lengths[row] for row in (range(self.rows) if rows is None else rows)]

        def options() -> dict[str, Any]:
            uniform, empty = min(first) == max(first), not any(first)
            slots = self._aim(first, length, rows, empty)
            depths = torch.arange(length, device=self.device)[None].expand(len(first), -1)
            causal = (depths[0][:, None] >= depths[0]).expand(len(first), -1, -1)
            maskless = (empty or (length == 1 and uniform)) and self._needs_no_mask
            kinds = self.layout.kinds
            seen = masks(kinds, causal, depths, 0, first, slots.end, self.dtype, maskless)
            return _arguments(self._positions(first, depths), seen, slots)

        few = None
        if not prompt and rows is None:
            few = Few(first, Structure.chain(self.rows, length, self.device), 0)
        return Pass(options, few)

    def scoring(self, tree: TokenTree, start: int) -> Pass:
        """For nodes >= start of a tree, each seeing what is committed and its own ancestors."""
        roots, nodes = list(self.roots), tree.num_nodes

        def options() -> dict[str, Any]:
            uniform = min(roots) == max(roots)
            slots = self._aim([root + start for root in roots], nodes - start, None, False)
            sees_all = uniform and tree.is_chain and start == nodes - 1  # one node
            seen = masks(
                self.layout.kinds,
                tree.ancestors[:, start:],
                tree.depths,
                start,
                roots,
                slots.end,
                self.dtype,
                sees_all and self._needs_no_mask,
            )
            return _arguments(self._positions(roots, tree.depths[:, start:]), seen, slots)

        return Pass(options, Few(roots, tree.structure, start))

    def again(self, count: int) -> Pass:
        """For the last `count` committed tokens of every row once more, each seeing what it saw.
        They are written behind the text, where everything is scratch. (A shorter text is filled up
        in front, with tokens that see only themselves.)"""
        first = list(self.roots)

        def options() -> dict[str, Any]:
            slots = self._aim(first, count, None, False)
            steps = torch.arange(count, device=self.device)
            behind = torch.tensor(first, device=self.device)[:, None] + steps
            positions = behind - count
            seen = masks_again(self.layout.kinds, positions, behind, slots.end, self.dtype)
            return _arguments(positions.clamp(min=0), seen, slots)

        return Pass(options)

    def stored(self, rows: Tensor, positions: Sequence[Tensor]) -> list[Tensor]:
        """K and V of committed tokens, (G, H, n, D) for each block: rows (n,); positions (n,) for
        each block, or (G, H, n) where heads have their own."""
        found = [
            self._picked(block, rows, chosen)
            for block, chosen in zip(self.blocks, positions, strict=True)
        ]
        if not self.packed:
            return found
        sizes = [size for _, _, size in alike(self.layout.shapes)]
        return [
            eight_bits.decode(each, size, self.dtype)
            for each, size in zip(found, sizes, strict=True)
        ]

    def _picked(self, block: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        return block[each_of(block, rows, slots)]

    @property
    def _needs_no_mask(self) -> bool:
        return self.layout.implementation == attention.NAME

    def _positions(self, first: list[int], depths: Tensor) -> Tensor:
        """(b, n). Padding is kept inside the context: past it a model has no positions, or rotates
        all of them differently."""
        same = min(first) == max(first)
        positions = depths + (
            first[0] if same else torch.tensor(first, device=self.device)[:, None]
        )
        if max(first) + depths.shape[1] > self.layout.context:
            positions = positions.clamp(max=self.layout.context - 1)
        return positions

    def _aim(self, first: list[int], count: int, rows: Sequence[int] | None, empty: bool) -> Reader:
        """Where a pass writes `count` tokens per row, from slot first[i] on, and what it reads."""
        self.make_room(max(first) + count)
        return Slots(self, first, count, rows, empty)

    def reserve(self, slots: int) -> None:
        if self.by_powers:
            self.make_room(slots)

    def make_room(self, needed: int) -> None:
        """At least `needed` slots per row."""
        self._check_open()
        if needed + self.by_powers <= self.slots:  # compiled passes have a slot that nobody reads
            return
        slots = max(self._capacity(needed), 2 * self.slots, 64)
        self._moved()
        for number, block in enumerate(self.blocks):
            larger = block.new_zeros(*block.shape[:3], slots, block.shape[4])
            larger[:, :, :, : self.slots] = block
            self.blocks[number] = larger  # one block at a time, so that little exists twice
        self.slots = slots

    def claim(self, counts: Sequence[int], nodes: int) -> None:
        """A draft as a whole is about to write `counts` new tokens in each row, and `nodes` nodes
        behind them."""
        self.make_room(max(map(sum, zip(self.lengths, counts, strict=True))) + nodes)

    def _check_open(self) -> None:
        if not self.blocks:
            raise ValueError(
                f"{self.layout.name}: this session is closed; open another one with open(rows, "
                "slots)"
            )

    def _capacity(self, needed: int) -> int:
        """Slots per row. Compiled passes are made for powers of two, one slot of which is
        scratch."""
        return max(LEAST, 1 << needed.bit_length()) if self.by_powers else needed

    # ------------------------------------------------------------------------------ committing

    def commit(
        self,
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
        root: bool = False,
        nodes: int = 0,
    ) -> None:
        """The tokens written last are committed, `counts` of each row. root: the last of them is
        the root of the coming tree, of which `nodes` nodes may be stored already."""
        for row, count in zip(range(self.rows) if rows is None else rows, counts, strict=True):
            self.lengths[row] += count
            self.roots[row] = self.lengths[row] - (root and self.lengths[row] > 0)

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        """Move the first `counts` nodes of `path` (B, D) behind the root and commit both. A count
        of -1 leaves a row as it was."""
        moved = any(
            node != place + 1
            for row, count in zip(path.tolist(), counts, strict=True)
            for place, node in enumerate(row[: max(count, 0)])
        )
        if moved:
            wanted = np.arange(1, path.shape[1] + 1)
            source = np.where(wanted <= np.array(counts)[:, None], path, wanted)
            self._move(torch.from_numpy(source), torch.from_numpy(wanted))
        for row, count in enumerate(counts):
            if count >= 0:
                self.lengths[row] = self.roots[row] + 1 + count
            self.roots[row] = self.lengths[row]

    def rearrange(self, source: Tensor) -> None:
        """Node i of the tree that is being scored becomes what node source[:, i] (B, N) was."""
        self._move(source, torch.arange(source.shape[1], device=source.device))

    def rewind(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """These rows end after so many tokens."""
        for row, length in zip(rows, lengths, strict=True):
            assert length <= self.lengths[row], "a memory is rewound, never forward"
            self.lengths[row] = self.roots[row] = length

    def occupy(self, rows: Sequence[int]) -> None:
        """These rows hold texts, though nothing may have been read of them yet."""

    def release(self, rows: Sequence[int]) -> None:
        """These rows are empty."""
        for row in rows:
            self.lengths[row] = self.roots[row] = 0

    def _move(self, source: Tensor, wanted: Tensor) -> None:
        """What is stored for nodes `source` (B, D) goes where nodes `wanted` (D,) were."""
        first = torch.tensor(self.roots, device=source.device)[:, None]
        to, frm, rows = first + wanted, first + source, self._every_row[:, None]
        for block in self.blocks:
            by_slot = block.permute(1, 3, 0, 2, 4)
            by_slot[rows, to] = by_slot[rows, frm]

    def check_integrity(self) -> None:
        """For tests: what must hold between passes."""
        assert all(
            0 <= length - root <= 1 for length, root in zip(self.lengths, self.roots, strict=True)
        )
        assert all(0 <= length <= self.slots for length in self.lengths)
        assert all(block.shape[1] == self.rows for block in self.blocks)
        assert all(block.shape[3] == self.slots for block in self.blocks)


def each_of(block: Tensor, rows: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
    """The index of slots of some rows in a block (G, B, H, S, D), as (G, H, n, D): rows (n,); slots
    (n,) or (G, H, n)."""
    layers = torch.arange(block.shape[0], device=block.device)[:, None, None]
    heads = torch.arange(block.shape[2], device=block.device)[:, None]
    return layers, rows, heads, slots


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
