"""A table whose sessions keep their texts in pages: the accounts of `Paged`, without tensors."""

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor

from specdec.errors import OutOfPages
from specdec.interfaces import KV, Compile, PageUse, Scores, Tap
from specdec.models.table import TableModel, TableSession
from specdec.tree import TokenTree


class PagedTable(TableModel):
    """A token takes one byte, so that bytes are tokens."""

    kv = KV()

    def with_kv(self, kv: KV) -> Self:
        other = copy.copy(self)
        other.kv = kv
        return other

    def bytes_per_token(self, kv: KV | None = None) -> int:
        return 1

    def open(
        self, rows: int, slots: int, compile: Compile = None, kv: KV | None = None
    ) -> TableSession:
        kv = kv or self.kv
        return TableSession(self, rows) if kv.layout == "contiguous" else Session(self, rows, kv)


class Session(TableSession):
    """A page is an object; rows that hold the same object share it."""

    def __init__(self, model: TableModel, rows: int, kv: KV) -> None:
        super().__init__(model, rows)
        self.page, self.pages, self.grows = kv.page, kv.pages or 0, kv.pages is None
        self.tables: list[list[Any]] = [[] for _ in range(rows)]
        self.away = set(range(rows))  # rows that nobody has: they need no page
        self.reads: list[int] = []  # tokens of each pass that read
        self.most = self.adopted = 0

    @property
    def in_use(self) -> int:
        return len({id(page) for table in self.tables for page in table})

    @property
    def free(self) -> int:
        return self.pages - self.in_use

    @property
    def page_use(self) -> PageUse:
        return PageUse(self.pages, self.in_use, 0, 0, self.most, 0, self.adopted)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page)

    def _missing(self, ends: dict[int, int]) -> int:
        return sum(max(self.pages_for(end) - len(self.tables[row]), 0) for row, end in ends.items())

    def _ends(self, rows: Sequence[int], nodes: int) -> dict[int, int]:
        return {
            row: len(text) + (nodes if row in rows else 1)
            for row, text in enumerate(self._texts)
            if row not in self.away
        }

    def lacking(self, rows: Sequence[int], nodes: int) -> int:
        return max(self._missing(self._ends(rows, nodes)) - self.free, 0)

    def _claim(self, ends: dict[int, int]) -> None:
        lacking = self._missing(ends) - self.free
        if lacking > 0 and not self.grows:
            raise OutOfPages("no pages are left")
        self.pages += max(lacking, 0)
        for row, end in ends.items():
            while len(self.tables[row]) < self.pages_for(end):
                self.tables[row].append(object())
        self.most = max(self.most, self.in_use)

    def _trim(self) -> None:
        for table, text in zip(self.tables, self._texts, strict=True):
            del table[self.pages_for(len(text)) :]

    def adopt(self, row: int, tokens: Sequence[int], taps: tuple[Tap, ...] = ()) -> int:
        self.away.discard(row)
        assert not self._texts[row], "only an empty row adopts pages"
        for other, text in enumerate(self._texts):
            full = 0
            while list(tokens[: full + self.page]) == text[: full + self.page] and (
                full + self.page <= min(len(text), len(tokens))
            ):
                full += self.page
            if full > len(self._texts[row]):
                self._texts[row] = list(tokens[:full])
                self.tables[row] = self.tables[other][: full // self.page]
        self.adopted += len(self._texts[row])
        return len(self._texts[row])

    def read(
        self,
        tokens: Tensor,
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
        taps: tuple[Tap, ...] = (),
        root: bool = False,
        every: bool = False,
    ) -> Scores:
        chosen = range(len(self._texts)) if rows is None else rows
        self._claim({row: len(self._texts[row]) + n for row, n in zip(chosen, counts, strict=True)})
        self.reads.append(sum(counts))
        return super().read(tokens, counts, rows, taps, root, every)

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        self._claim(self._ends(range(tree.rows), tree.num_nodes))
        return super().score(tree, start, taps)

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        super().keep(path, counts)
        self._trim()

    def release(self, rows: Sequence[int]) -> None:
        super().release(rows)
        self._trim()
        self.away |= set(rows)

    def check_integrity(self) -> None:
        assert self.in_use <= self.pages
        for row, (table, text) in enumerate(zip(self.tables, self._texts, strict=True)):
            assert len(table) == self.pages_for(len(text))
            assert row not in self.away or not text
