"""A session whose memory is pages, which rows with the same beginning share.

Letters: B rows, N nodes, D depth.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from specdec.interfaces import KV, Compile, PageUse, Scores, Tap
from specdec.models.paged import PagedMemory
from specdec.models.session import Runnable, TransformersSession
from specdec.models.whole import Piece
from specdec.tree import TokenTree


class PagedSession(TransformersSession):
    """`Paged`. It remembers the text of every row, as far as it is given it, for others that begin
    in the same way."""

    _memory: PagedMemory

    def __init__(
        self, model: Runnable, rows: int, slots: int, compile: Compile = None, kv: KV | None = None
    ) -> None:
        super().__init__(model, rows, slots, compile, kv)
        self._texts: list[list[int]] = [[] for _ in range(rows)]
        self._later: list[Callable[[], None]] = []  # what has yet to be read from the device
        self._tree: TokenTree | None = None  # that was scored last, since something was read
        self._fills_copies = False  # whether the coming roots make copied pages full

    # ------------------------------------------------------------------------------ its pages

    @property
    def page(self) -> int:
        return self._memory.page

    @property
    def reach(self) -> int:
        return self._memory.reach

    @reach.setter
    def reach(self, slots: int) -> None:
        self._memory.reach = slots

    @property
    def token_bytes(self) -> int:
        return self._memory.token_bytes

    @property
    def pages(self) -> int:
        return self._memory.pool.pages

    @property
    def free(self) -> int:
        return self._memory.pool.free

    @property
    def spared(self) -> int:
        return self._memory.spared

    @property
    def page_use(self) -> PageUse:
        return self._memory.pool.use

    def pages_for(self, tokens: int) -> int:
        return self._memory.pages_for(tokens)

    def lacking(self, rows: Sequence[int], nodes: int) -> int:
        chosen = set(rows)
        return self._memory.lacking(
            [
                (row, root, root + (nodes if row in chosen else 1))
                for row, root in enumerate(self._memory.roots)
                if row in chosen or row not in self._memory.vacant
            ]
        )

    def adopt(self, row: int, tokens: Sequence[int], taps: tuple[Tap, ...] = ()) -> int:
        if taps:
            return 0
        self._catch_up()
        text = list(tokens)
        alike = (
            other
            for other, known in enumerate(self._texts)
            if len(known) >= len(text) and known[: len(text)] == text
        )
        length = self._memory.adopt(row, text, next(alike, None))
        self._texts[row] = text[:length]
        self._fills_copies |= (length + 1) % self.page == 0
        return length

    def check_integrity(self) -> None:
        self._memory.check_integrity()

    # --------------------------------------------------------------------------- the contract

    def _note(self, tokens: Tensor, counts: Sequence[int], rows: Sequence[int] | None) -> None:
        chosen = list(range(len(self._texts)) if rows is None else rows)
        before = [self._memory.lengths[row] for row in chosen]
        tokens = tokens.clone()  # it may be a view of what changes before it is looked at
        self._tree = None

        def note() -> None:
            given = zip(chosen, before, tokens.tolist(), counts, strict=True)
            for row, length, new, count in given:
                if len(self._texts[row]) == length:
                    self._texts[row] += new[:count]

        self._later.append(note)

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        self._tree = tree
        return super().score(tree, start, taps)

    def at_once(self, piece: Piece) -> tuple[list[Tensor], Any] | None:
        """Its tokens are not noted: from here on a row's text is not known."""
        self._tree = None
        return super().at_once(piece)

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        tree, roots = self._tree, list(self._memory.roots)
        super().keep(path, counts)
        if tree is None:
            return

        def note() -> None:
            tokens = tree.tokens.tolist()
            for row, (new, count) in enumerate(zip(tokens, counts, strict=True)):
                # A root that was read is there already.
                if count >= 0 and len(self._texts[row]) >= roots[row]:
                    kept = [new[node] for node in (0, *path[row, :count].tolist())]
                    self._texts[row][roots[row] :] = kept

        self._later.append(note)
        if self._fills_copies:  # samples of one prompt may share its last page from here on
            self._fills_copies = False
            self._catch_up()

    def rewind(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        self._catch_up()
        super().rewind(rows, lengths)
        for row, length in zip(rows, lengths, strict=True):
            del self._texts[row][length:]

    def release(self, rows: Sequence[int]) -> None:
        self._catch_up()
        super().release(rows)
        for row in rows:
            self._texts[row] = []

    def close(self) -> None:
        self._later = []
        super().close()

    def _catch_up(self) -> None:
        """Texts are read from the device only where rows come and go, not in every round."""
        for note in self._later:
            note()
        self._later = []
        for row, text in enumerate(self._texts):
            self._memory.publish(row, text)
