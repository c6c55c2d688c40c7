"""A language model that is a table: small enough to write down, with the contract of a real one.

What exact certificates and tests run on. Its law after the prompt is given for every continuation prefix, so the joint law of
any number of tokens is a product of table rows. Hidden states, embedding and head are made up, always in the same way, for drafters
that read them: a hidden state is a function of the whole path, of no meaning for the law. So are its layers: a part of a table is
another table.

Letters: B rows, N nodes, V vocabulary, L tokens, T taps, d hidden size.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from specdec.interfaces import Scores, Tap
from specdec.tree import TokenTree

Prefix = tuple[int, ...]


class TableModel:
    """`LanguageModel` whose law after prompt + prefix is `rows[prefix]` (unnormalised weights, zeros welcome).

    rows     prefix of generated tokens -> V weights; () is the root. A prefix that is missing uses the root's row
    prompt   how many tokens of each row belong to the prompt and do not count as prefix
    """

    device = torch.device("cpu")
    tokenizer = None
    name = "table"
    eos_ids: frozenset[int] = frozenset()
    hidden_size = 8
    layers, extra_layers = 2, 0

    def __init__(
        self,
        rows: Mapping[Prefix, Sequence[float]],
        prompt: int = 1,
        dtype: torch.dtype = torch.float64,
        context: int = 1 << 20,
    ) -> None:
        if () not in rows:
            raise ValueError("a table needs a row for the empty prefix ()")
        self.vocabulary, self.prompt, self.context, self.dtype = len(rows[()]), prompt, context, dtype
        self._logits: dict[Prefix, Tensor] = {}
        for prefix, weights in rows.items():
            row = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
            if len(row) != self.vocabulary or not (row >= 0).all() or row.sum() <= 0:
                raise ValueError(f"row {prefix} must be {self.vocabulary} weights >= 0, not all 0; got {list(weights)}")
            self._logits[prefix] = (row / row.sum()).log().to(dtype)
        self._committed: list[list[int]] = []
        self._in_tree: list[bool] = []

    @property
    def cache_bytes(self) -> int:
        return 0

    def law(self, prefix: Prefix) -> Tensor:
        """(V,) the normalised row."""
        return self._row(prefix).exp()

    def _row(self, prefix: Prefix) -> Tensor:
        return self._logits.get(prefix, self._logits[()])

    def _after(self, tokens: Sequence[int]) -> Tensor:
        return self._row(tuple(tokens[self.prompt :]))

    def embed(self, tokens: Tensor) -> Tensor:
        return self._shared[0][tokens]

    def head(self, states: Tensor) -> Tensor:
        return states @ self._shared[1].T

    @property
    def head_weight(self) -> Tensor:
        return self._shared[1]

    @cached_property
    def _shared(self) -> Tensor:
        """(2, V, d) embedding and head."""
        return torch.randn(2, self.vocabulary, self.hidden_size, generator=_seeded(0), dtype=self.dtype)

    def check_head(self) -> None:
        """There is nothing to compare a made-up head with."""

    def _hidden(self, paths: Sequence[Sequence[int]], taps: tuple[Tap, ...]) -> Tensor:
        """(paths, T, d)"""
        layers = [-1 if isinstance(tap, str) else tap for tap in taps]
        states = [_state(layer, tuple(path), self.hidden_size, self.dtype) for path in paths for layer in layers]
        return torch.stack(states).view(len(paths), len(taps), self.hidden_size)

    def open(self, rows: int, slots: int) -> None:
        self._committed = [[] for _ in range(rows)]
        self._in_tree = [False] * rows  # whether the last committed token serves as the root of a tree

    def read(self, tokens: Tensor, counts: Tensor, taps: tuple[Tap, ...] = ()) -> Scores:
        hidden = torch.zeros(*tokens.shape, len(taps), self.hidden_size, dtype=self.dtype)
        for row, count in enumerate(counts.tolist()):
            first = len(self._committed[row])
            self._committed[row] += tokens[row, :count].tolist()
            if taps and count:
                paths = [self._committed[row][: first + number + 1] for number in range(count)]
                hidden[row, :count] = self._hidden(paths, taps)
        self._in_tree = [True] * len(self._committed)
        logits = torch.stack([self._after(row) for row in self._committed])[:, None]
        return Scores(logits, hidden if taps else None)

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        if start == 0:
            self._in_tree = [False] * len(self._committed)
        self._tree = tree
        paths = [[self._path(row, node) for node in range(start, tree.num_nodes)] for row in range(tree.rows)]
        logits = torch.stack([torch.stack([self._after(path) for path in row]) for row in paths])
        return Scores(logits, torch.stack([self._hidden(row, taps) for row in paths]) if taps else None)

    def _path(self, row: int, node: int) -> list[int]:
        """Committed tokens, the root, and the drafted path to the node."""
        before = self._committed[row] if not self._in_tree[row] else self._committed[row][:-1]
        return [*before, *self._tree.tokens[row, [0, *self._tree.path(row, node)]].tolist()]

    def keep(self, path: Tensor, counts: Tensor) -> None:
        for row, count in enumerate(counts.tolist()):
            if count < 0:
                continue
            kept = path[row, :count].tolist()
            if not self._in_tree[row]:
                kept = [0, *kept]
            self._committed[row] += self._tree.tokens[row, kept].tolist() if kept else []
        self._in_tree = [False] * len(self._committed)

    def without(self, attention: Collection[int], mlp: Collection[int]) -> "TablePart":
        return TablePart(self)

    def lower(self, layer: int, adapter: object = None) -> "TablePart":
        return TablePart(self)


class TablePart:
    """A table in the place of some of a target's layers: half the target's law, half that law with all tokens moved on by one."""

    def __init__(self, whole: TableModel) -> None:
        self.whole = whole
        self.states = torch.empty(0)

    def score(self, tree: TokenTree, start: int = 0, last_only: bool = False) -> Tensor:
        law = self.whole.score(tree, start).logits.exp()
        self.states = torch.zeros(*law.shape[:2], self.whole.hidden_size, dtype=law.dtype)
        return ((law + law.roll(1, -1)) / 2).log()

    def rearrange(self, source: Tensor) -> None:
        """A table has no slots."""


@lru_cache(1 << 16)
def _state(layer: int, path: Prefix, size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=_seeded(layer, *path), dtype=dtype)


def _seeded(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(numbers) % (1 << 63))
