"""KV memory in pages: the tokens of a row are in pages of a pool, wherever those are.

Slot i of a row, as `Memory` counts them, is in the row's page i // page. Pages past a row's end are
page 0, the scratch page, so padding goes there and nobody reads it. A pass gathers the pages of its
rows layer by layer, into buffers that all layers share; one row whose pages are neighbours needs no
copy.

Letters: b rows of the pass, n tokens, T slots that it looks at, H heads, D head size, G layers of
one shape, P pages of the pool with the scratch page, p pages of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.errors import OutOfPages
from specdec.interfaces import KV
from specdec.models import eight_bits
from specdec.models.memory import LEAST, Layout, Memory, Pass, bytes_per_token, each_of
from specdec.models.pool import Key, Pool, key_of
from specdec.models.slots import Reader
from specdec.tree import Structure, TokenTree

Span = tuple[int, int, int]  # of a row: its number, the first slot, the slot behind the last


class Among:
    """The pools that memories of one layout have between them: those of a run's groups, whose rows
    are never the same."""

    def __init__(self) -> None:
        self._pools: dict[int, Common] = {}

    def of(self, layout: Layout, pages: int) -> "Common":
        return self._pools.setdefault(id(layout), Common(layout, Pool(pages)))


@dataclass
class Common:
    """One of them."""

    layout: Layout
    pool: Pool
    blocks: list[Tensor] = field(default_factory=list)
    users: int = 0


class PagedMemory(Memory):
    """Blocks are (G, H, P, page, D). The pool grows where no number of pages was given."""

    def __init__(
        self,
        layout: Layout,
        rows: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        kv: KV,
        compiled: bool = False,
    ) -> None:
        self.page, self.bounded, self.by_powers = kv.page, kv.pages is not None, compiled
        self._common: Common | None = None
        if kv.pages is None:
            most = self._capacity(slots) if slots else 0
            self.pool = Pool(rows * self.pages_for(most))
        elif isinstance(kv.among, Among):
            self._common = kv.among.of(layout, kv.pages)
            self._common.users += 1
            self.pool = self._common.pool
        else:
            self.pool = Pool(kv.pages)
        self.pages: list[list[int]] = [[] for _ in range(rows)]  # of each row, in its order
        self.table = np.zeros((rows, 1), np.int64)  # the same; 0 behind a row's end
        self.keys: list[list[Key]] = [[] for _ in range(rows)]  # of a row's full pages
        # Rows of a bounded pool that hold no text: they get no pages, what they write is scratch.
        self.vacant = set(range(rows)) if self.bounded else set()
        self.ends = np.zeros(rows, np.int64)  # what a row may write ends before this slot
        self._buffers: dict[Any, Tensor] = {}
        super().__init__(layout, rows, slots, dtype, device, compiled, kv.dtype)

    def _block(self, layers: int, heads: int, size: int) -> tuple[int, ...]:
        return layers, heads, self.pool.pages + 1, self.page, size

    def _made(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        known = [] if self._common is None else self._common.blocks
        if len(self.blocks) < len(known):
            return known[len(self.blocks)]
        made = super()._made(shape, dtype)
        known.append(made)
        return made

    @property
    def nbytes(self) -> int:
        """Of what several have between them, an equal part each."""
        whole = super().nbytes
        return whole if self._common is None else whole // max(1, self._common.users)

    @property
    def token_bytes(self) -> int:
        return bytes_per_token(self.layout, self.dtype, self.kept)

    @property
    def spared(self) -> int:
        return self.pool.spared

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page)

    def lacking(self, spans: Sequence[Span]) -> int:
        """Pages that must become free before these rows can write these slots."""
        needed = sum(len(self._missing(*span)) + len(self._foreign(*span)) for span in spans)
        return max(needed - self.pool.free, 0)

    def _missing(self, row: int, _: int, end: int) -> range:
        """Numbers of the pages that the row has yet to get."""
        return range(len(self.pages[row]), self.pages_for(end))

    def _foreign(self, row: int, first: int, end: int) -> list[int]:
        """Numbers of pages that the row is about to write and shares with others."""
        touched = range(first // self.page, min(self.pages_for(end), len(self.pages[row])))
        return [number for number in touched if self.pool.hands[self.pages[row][number]] > 1]

    # ---------------------------------------------------------------------------------- passes

    def reading(
        self,
        length: int,
        rows: Sequence[int] | None = None,
        prompt: bool = False,
        counts: Sequence[int] | None = None,
    ) -> Pass:
        chosen = range(self.rows) if rows is None else rows
        lengths = [length] * len(chosen) if counts is None else counts
        self._claim(
            [
                (row, self.lengths[row], self.lengths[row] + count)
                for row, count in zip(chosen, lengths, strict=True)
            ]
        )
        self.vacant -= {row for row, count in zip(chosen, lengths, strict=True) if count}
        return super().reading(length, rows, prompt)

    def scoring(self, tree: TokenTree, start: int) -> Pass:
        ends = ends_of(tree.structure)
        self._claim(
            [
                (row, root + start, root + max(end, start))
                for row, (root, end) in enumerate(zip(self.roots, ends, strict=True))
                if row not in self.vacant
            ]
        )
        return super().scoring(tree, start)

    def claim(self, counts: Sequence[int], nodes: int) -> None:
        super().claim(counts, nodes)
        self._claim(
            [
                (row, length, length + count + nodes)
                for row, (length, count) in enumerate(zip(self.lengths, counts, strict=True))
                if row not in self.vacant
            ]
        )

    # ------------------------------------------------------------------------- compiled passes

    @property
    def form(self) -> tuple[int, ...]:
        """Compiled passes are made for one size of the pool."""
        return (*super().form, self.page, self.pool.pages)

    def addresses(self) -> tuple[Tensor, ...]:
        """The pages of each row (B, p), for all slots that it may have; and the slot (B,) before
        which what it may write ends."""
        table = np.zeros((self.rows, self.pages_for(self.slots)), np.int64)
        width = min(table.shape[1], self.table.shape[1])
        table[:, :width] = self.table[:, :width]
        return tuple(torch.from_numpy(each).to(self.device) for each in (table, self.ends.copy()))

    def make_room(self, needed: int) -> None:
        """Rows have pages as they need them; only the table of a compiled pass has a size."""
        self._check_open()
        if needed + self.by_powers > self.slots:
            self.slots = self._capacity(needed)

    def reserve(self, slots: int) -> None:
        super().reserve(slots)
        needed = self.rows * self.pages_for(self.slots)
        if self.by_powers and not self.bounded and needed > self.pool.pages:
            self._grow(needed)  # now, so that no pass is compiled for a smaller pool

    # -------------------------------------------------------------------------------- its pages

    def again(self, count: int) -> Pass:
        self._claim(
            [
                (row, root, root + count)
                for row, root in enumerate(self.roots)
                if row not in self.vacant
            ]
        )
        return super().again(count)

    def _picked(self, block: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        table = torch.from_numpy(self.table).to(self.device)
        places = table[rows, slots // self.page] * self.page + slots % self.page
        pool = block.flatten(2, 3)[:, None]  # as if it were one row
        return pool[each_of(pool, torch.zeros_like(rows), places)]

    def _claim(self, spans: Sequence[Span]) -> None:
        """These rows may write these slots. Raises OutOfPages, and changes nothing, where pages
        are lacking."""
        self._check_open()
        spans = [span for span in spans if span[1] < span[2]]
        lacking = self.lacking(spans)
        if lacking and self.bounded:
            raise OutOfPages(
                f"{self.layout.name}: a pass needs {lacking} more pages of {self.page} tokens than "
                f"are free ({self.pool.free} of {self.pool.pages})"
            )
        if lacking:
            least = self.rows * self.pages_for(LEAST) if self.by_powers else 0
            self._grow(max(self.pool.pages + max(lacking, self.pool.pages), least))
        self.ends[:] = 0
        for row, first, end in spans:
            pages, self.ends[row] = self.pages[row], end
            for number in self._foreign(row, first, end):
                self._replace(row, number)
            for number in range(first // self.page, min(self.pages_for(end), len(pages))):
                self._disown(row, number)
            for number in self._missing(row, first, end):
                self._enter(row, number, self.pool.take(pages[-1] + 1 if pages else 0))

    def _replace(self, row: int, number: int) -> None:
        """The row gets a copy of one of its pages, which is in other hands too."""
        old = self.pages[row][number]
        new = self.pool.take(0)
        self._copy(old, new)
        self.pool.let_go([old])
        self.pages[row][number] = self.table[row, number] = new
        del self.keys[row][number:]

    def _disown(self, row: int, number: int) -> None:
        """The text of one of the row's pages changes: it is no longer known by it."""
        page = self.pages[row][number]
        if not self.pool.is_own(page):
            self.pool.forget(page)
            del self.keys[row][number:]

    def _enter(self, row: int, number: int, page: int) -> None:
        self.pages[row].append(page)
        if number >= self.table.shape[1]:
            wider = np.zeros((self.rows, 2 * number), np.int64)
            wider[:, : self.table.shape[1]] = self.table
            self.table = wider
        self.table[row, number] = page

    def _copy(self, old: int, new: int) -> None:
        for block in self.blocks:
            block[:, :, new] = block[:, :, old]

    def _grow(self, pages: int) -> None:
        self.pool.grow(pages)
        self._moved()
        for number, block in enumerate(self.blocks):
            shape = (*block.shape[:2], pages + 1, *block.shape[3:])
            larger = block.new_zeros(shape)
            larger[:, :, : block.shape[2]] = block
            self.blocks[number] = larger  # one block at a time, so that little exists twice

    def _moved(self) -> None:
        super()._moved()
        for name in ("by_page", "by_slot", "first_pages"):
            self.__dict__.pop(name, None)

    def _aim(
        self, first: list[int], count: int, rows: Sequence[int] | None, empty: bool
    ) -> "PagedSlots":
        return PagedSlots(self, first, count, rows, empty)

    @cached_property
    def first_pages(self) -> dict[int, np.ndarray]:
        """Of each number of heads: (H, 1) where in `by_page` the pages of each head begin."""
        every = {
            heads for shape in self.layout.shapes for heads in (shape.heads, shape.value_heads)
        }
        return {heads: np.arange(heads)[:, None] * (self.pool.pages + 1) for heads in every}

    @cached_property
    def by_slot(self) -> list[list[Tensor]]:
        """K and V of each layer, (H, P * page, D)."""
        return self._per_layer([block.flatten(2, 3) for block in self.blocks])

    @cached_property
    def by_page(self) -> list[list[Tensor]]:
        """K and V of each layer, (H * P, page * D)."""
        return self._per_layer([block.flatten(3, 4).flatten(1, 2) for block in self.blocks])

    def _per_layer(self, blocks: Sequence[Tensor]) -> list[list[Tensor]]:
        found: list[list[Tensor]] = [[] for _ in self.layout.shapes]
        for block, members in zip(blocks, self._members, strict=True):
            for layer, view in zip(members, block.unbind(0), strict=True):
                found[layer].append(view)
        return found

    def buffer(self, name: str, size: int, like: torch.dtype) -> Tensor:
        """At least `size` numbers, which the next layer overwrites."""
        known = self._buffers.get((name, like))
        if known is None or known.numel() < size:
            room = 1 << (size - 1).bit_length()
            known = torch.empty(room, dtype=like, device=self.device)
            self._buffers[name, like] = known
        return known[:size]

    # ------------------------------------------------------------------------------ committing

    def commit(
        self,
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
        root: bool = False,
        nodes: int = 0,
    ) -> None:
        super().commit(counts, rows, root)
        self._trim(range(self.rows) if rows is None else rows, nodes)

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        super().keep(path, counts)
        self._trim(range(self.rows))

    def rewind(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        super().rewind(rows, lengths)
        self._trim(rows)

    def occupy(self, rows: Sequence[int]) -> None:
        self.vacant -= set(rows)

    def release(self, rows: Sequence[int]) -> None:
        super().release(rows)
        self._trim(rows)
        if self.bounded:
            self.vacant |= set(rows)

    def close(self) -> None:
        self.release(range(self.rows))
        if self._common is not None and self.blocks:
            self._common.users -= 1
        super().close()
        self._buffers = {}

    def _trim(self, rows: Sequence[int], nodes: int = 0) -> None:
        """Rows let go of pages past their ends, and past `nodes` nodes that are stored there."""
        for row in rows:
            needed = self.pages_for(self.lengths[row] + nodes)
            pages = self.pages[row]
            if len(pages) > needed:
                self.pool.let_go(reversed(pages[needed:]))
                self.table[row, needed : len(pages)] = 0
                del pages[needed:]
            del self.keys[row][self.lengths[row] // self.page :]

    def slots_of(self, rows: Any, slots: np.ndarray) -> np.ndarray:
        """Where in the pool slots (b, n) of rows (b, 1) are. Past a row's end they are scratch."""
        number = slots // self.page
        width = self.table.shape[1]
        pages = np.where(number < width, self.table[rows, number.clip(max=width - 1)], 0)
        found: np.ndarray = pages * self.page + slots % self.page
        return found

    def _move(self, source: Tensor, wanted: Tensor) -> None:
        first, rows = np.array(self.roots)[:, None], np.arange(self.rows)[:, None]
        nodes = source.cpu().numpy()
        to = self.slots_of(rows, first + np.broadcast_to(wanted.cpu().numpy(), nodes.shape))
        frm = self.slots_of(rows, first + nodes)
        changed = to != frm
        target, origin = (torch.from_numpy(slots[changed]).to(self.device) for slots in (to, frm))
        for block in self.blocks:
            by_slot = block.flatten(2, 3)
            by_slot[:, :, target] = by_slot[:, :, origin]

    # ---------------------------------------------------------------------------------- sharing

    def publish(self, row: int, text: Sequence[int]) -> None:
        """This is the row's text so far: its full pages are known by it. Where another page is
        known by the same text, the row shares that one and lets its own go. (A root that was read
        may be scored once more: a page that ends with it is not full yet.)"""
        keys, page = self.keys[row], self.page
        for number in range(len(keys), min(self.roots[row], len(text)) // page):
            before = keys[-1] if keys else b""
            keys.append(key_of(before, text[number * page : (number + 1) * page]))
            own = self.pages[row][number]
            known = self.pool.publish(own, keys[-1])
            if known != own:
                self.pool.share(known)
                self.pool.let_go([own])
                self.pages[row][number] = self.table[row, number] = known

    def adopt(self, row: int, tokens: Sequence[int], alike: int | None) -> int:
        """An empty row takes over what is known of a text: full pages are shared, and the rest is
        copied from the row `alike`, whose text begins in the same way. How many tokens it has
        now."""
        assert not self.pages[row], "only an empty row adopts pages"
        self.vacant.discard(row)
        page, key = self.page, b""
        for first in range(0, len(tokens) - page + 1, page):
            key = key_of(key, tokens[first : first + page])
            known = self.pool.find(key)
            if known is None:
                break
            self.pool.share(known)
            self._enter(row, first // page, known)
            self.keys[row].append(key)
        length = len(self.pages[row]) * page
        rest = len(tokens) - length
        if alike is not None and 0 < rest < page and (self.pool.free or not self.bounded):
            self._claim([(row, length, len(tokens))])
            self._copy(self.pages[alike][length // page], self.pages[row][-1])
            length = len(tokens)
        self.lengths[row] = self.roots[row] = length
        self.pool.adopted += length
        return length

    def check_integrity(self) -> None:
        """For tests: what must hold between passes."""
        self.pool.check_integrity(self.pages)
        for row, (pages, length, root) in enumerate(
            zip(self.pages, self.lengths, self.roots, strict=True)
        ):
            assert row not in self.vacant or not (pages or length)
            assert 0 <= length - root <= 1
            assert len(pages) >= self.pages_for(length)
            assert self.table[row, : len(pages)].tolist() == pages
            assert not self.table[row, len(pages) :].any()
            assert len(self.keys[row]) <= length // self.page
            for page, key in zip(pages, self.keys[row], strict=False):  # of full pages
                assert self.pool.hands[page] == 1 or self.pool.find(key) == page
        assert all(block.shape[2] == self.pool.pages + 1 for block in self.blocks)


def opened(
    kv: KV,
    layout: Layout,
    rows: int,
    slots: int,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool,
) -> Memory:
    """Memory that keeps keys and values as `kv` says."""
    if kv.layout == "paged":
        return PagedMemory(layout, rows, slots, dtype, device, kv, compiled)
    return Memory(layout, rows, slots, dtype, device, compiled, kv.dtype)


def ends_of(structure: Structure) -> list[int]:
    """Nodes of each row up to the last one that it uses; all where only the device knows."""
    nodes = structure.num_nodes
    if structure.full or structure.parents.device.type != "cpu":
        return [nodes] * structure.rows
    used = structure.used.numpy()
    ends: list[int] = (nodes - used[:, ::-1].argmax(1)).tolist()
    return ends


class PagedSlots(Reader):
    """Where a pass writes in the pool, and the pages that it reads."""

    def __init__(
        self,
        memory: PagedMemory,
        first: list[int],
        count: int,
        rows: Sequence[int] | None,
        empty: bool,
    ) -> None:
        super().__init__(first, count, empty)
        self._memory = memory
        chosen = np.arange(memory.rows) if rows is None else np.array(rows)
        self._slice: slice | None = None
        if len(first) == 1 and self.end <= memory.ends[chosen[0]]:
            # One row whose pages are neighbours: what it writes and reads are slices of the pool.
            pages = memory.pages[chosen[0]]
            if pages == list(range(pages[0], pages[0] + len(pages))):
                begin = pages[0] * memory.page
                self._slice = slice(begin, begin + self.end)
                return
        slots = np.array(first)[:, None] + np.arange(count)
        places = memory.slots_of(chosen[:, None], slots)
        places = np.where(slots < memory.ends[chosen][:, None], places, slots % memory.page)
        self._written = torch.from_numpy(places.reshape(-1)).to(memory.device)
        width = memory.pages_for(self.end)
        table = np.zeros((len(first), width), np.int64)
        table[:, : memory.table.shape[1]] = memory.table[chosen, :width]
        self._rows, self._width = len(first), width
        # Of each number of heads: (b * H * p,) rows of `by_page`.
        self._gathered = {
            heads: torch.from_numpy((table[:, None] + first_pages).reshape(-1)).to(memory.device)
            for heads, first_pages in memory.first_pages.items()
        }

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write this pass's K and V (b, H, n, D); return all (b, H, T, D) that it may look at."""
        keys = self._one(key_states, layer_idx, 0)
        return keys, self._one(value_states, layer_idx, 1)

    def _one(self, states: Tensor, layer: int, which: int) -> Tensor:
        memory, size = self._memory, states.shape[-1]
        stored = eight_bits.encode(states) if memory.packed else states
        pool = memory.by_slot[layer][which]
        if self._slice is not None:
            seen = pool[:, self._slice][None]
            seen[:, :, self.first :].copy_(stored)
        else:
            heads = stored.shape[1]
            by_token = stored.transpose(0, 1).reshape(heads, -1, stored.shape[-1])
            pool.index_copy_(1, self._written, by_token)
            seen = stored if self._fresh else self._gather(layer, which, heads)
        if self._fresh:
            seen = stored
        return eight_bits.decode(seen, size, states.dtype) if memory.packed else seen

    def _gather(self, layer: int, which: int, heads: int) -> Tensor:
        """(b, H, T, D)"""
        by_page, index = self._memory.by_page[layer][which], self._gathered[heads]
        size = by_page.shape[1]
        room = self._memory.buffer("KV"[which], len(index) * size, by_page.dtype)
        out = room.view(len(index), size)
        torch.index_select(by_page, 0, index, out=out)
        by_token = out.view(self._rows, heads, self._width * self._memory.page, -1)
        return by_token[:, :, : self.end]
