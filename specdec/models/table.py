"""A language model that is a table: small enough to write down, with the contract of a real one.

Exact certificates and tests run on it. Its law after the prompt is given for every continuation
prefix, so the joint law of any number of tokens is a product of table rows. Hidden states,
embedding and head are made up, always in the same way, for drafters that read them. A hidden state
is a function of the whole path and unrelated to the law. Layers are made up too: a part of a table
is another table.

Letters: B rows, b rows of one call, N nodes, V vocabulary, K taps, d hidden size.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from specdec.interfaces import PartScores, Scores, Tap
from specdec.tree import TokenTree

Prefix = tuple[int, ...]


class TableModel:
    """`LanguageModel` whose law after prompt + prefix is `rows[prefix]` (weights, zeros welcome).

    rows     prefix of generated tokens -> V weights; () is the root. A missing prefix uses ()'s row
    prompt   how many tokens of each row belong to the prompt and do not count as prefix
    """

    device = torch.device("cpu")
    tokenizer = None
    name = "table"
    eos_ids: frozenset[int] = frozenset()
    hidden_size = 8
    layers, extra_layers = 6, 0

    def __init__(
        self,
        rows: Mapping[Prefix, Sequence[float]],
        prompt: int = 1,
        dtype: torch.dtype = torch.float64,
        context: int = 1 << 20,
    ) -> None:
        if () not in rows:
            raise ValueError("a table needs a row for the empty prefix ()")
        self.vocabulary, self.prompt = len(rows[()]), prompt
        self.context, self.dtype = context, dtype
        for prefix, weights in rows.items():
            if len(weights) != self.vocabulary or min(weights) < 0 or not sum(weights) > 0:
                raise ValueError(
                    f"row {prefix} must be {self.vocabulary} weights >= 0, not all 0; "
                    f"got {list(weights)}"
                )
        laws = torch.tensor([list(map(float, row)) for row in rows.values()], dtype=torch.float64)
        logits = (laws / laws.sum(1, keepdim=True)).log().to(dtype)
        self._logits: dict[Prefix, Tensor] = dict(zip(rows, logits, strict=True))

    def open(self, rows: int, slots: int) -> "TableSession":
        return TableSession(self, rows)

    def law(self, prefix: Prefix) -> Tensor:
        """(V,) the normalised row."""
        return self._row(prefix).exp()

    def after(self, tokens: Sequence[int]) -> Tensor:
        """(V,) logits after a text, the prompt included."""
        return self._row(tuple(tokens[self.prompt :]))

    def _row(self, prefix: Prefix) -> Tensor:
        return self._logits.get(prefix, self._logits[()])

    # ------------------------------------------------------------------ made up, for drafters

    def embed(self, tokens: Tensor) -> Tensor:
        return self._shared[0][tokens]

    def final_norm(self, stream: Tensor) -> Tensor:
        return stream

    def head(self, states: Tensor) -> Tensor:
        return states @ self._shared[1].T

    @property
    def head_weight(self) -> Tensor:
        return self._shared[1]

    @cached_property
    def _shared(self) -> Tensor:
        """(2, V, d) embedding and head."""
        size = (2, self.vocabulary, self.hidden_size)
        return torch.randn(size, generator=_seeded(0), dtype=self.dtype)

    def check_head(self) -> None:
        """There is nothing to compare a made-up head with."""

    def hidden(self, paths: Sequence[Sequence[int]], taps: tuple[Tap, ...]) -> Tensor:
        """(paths, K, d)"""
        layers = [-1 if isinstance(tap, str) else tap for tap in taps]
        states = [
            _state(layer, tuple(path), self.hidden_size, self.dtype)
            for path in paths
            for layer in layers
        ]
        return torch.stack(states).view(len(paths), len(taps), self.hidden_size)

    def without(self, attention: Collection[int], mlp: Collection[int]) -> "TablePart":
        return TablePart()

    def lower(self, layer: int, adapter: object = None) -> "TablePart":
        return TablePart()

    shows_weights = True

    def excerpt(self, rows: int, chosen: int, recent: int, nodes: int) -> "TableExcerpt":
        return TableExcerpt(chosen + recent)


class TableSession:
    """The texts that a run has committed."""

    nbytes, forward_seconds, part_seconds = 0, 0.0, 0.0

    def __init__(self, model: TableModel, rows: int) -> None:
        self.model = model
        self._texts: list[list[int]] = [[] for _ in range(rows)]  # without the coming tree's root
        self._roots: list[list[int]] = [[] for _ in range(rows)]  # a root that was read; else empty
        self._tree: TokenTree | None = None

    def close(self) -> None:
        self._texts = []

    def __enter__(self) -> "TableSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(
        self,
        tokens: Tensor,
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
        taps: tuple[Tap, ...] = (),
        root: bool = False,
        every: bool = False,
    ) -> Scores:
        model, chosen = self.model, list(range(len(self._texts)) if rows is None else rows)
        hidden = torch.zeros(*tokens.shape, len(taps), model.hidden_size, dtype=model.dtype)
        width = tokens.shape[1] if every else 1
        logits = torch.zeros(len(chosen), width, model.vocabulary, dtype=model.dtype)
        for place, (row, count) in enumerate(zip(chosen, counts, strict=True)):
            before = self._texts[row] + self._roots[row]
            text = before + tokens[place, :count].tolist()
            if taps and count:
                paths = [text[: len(before) + number + 1] for number in range(count)]
                hidden[place, :count] = model.hidden(paths, taps)
            if every:
                for number in range(count):
                    logits[place, number] = model.after(text[: len(before) + number + 1])
            else:
                logits[place, 0] = model.after(text)
            split = len(text) - bool(root and text)
            self._texts[row], self._roots[row] = text[:split], text[split:]
        return Scores(logits, hidden if taps else None)

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        self._tree = tree
        nodes = range(start, tree.num_nodes)
        paths = [[self._path(tree, row, node) for node in nodes] for row in range(tree.rows)]
        logits = torch.stack(
            [torch.stack([self.model.after(path) for path in row]) for row in paths]
        )
        if not taps:
            return Scores(logits, None)
        return Scores(logits, torch.stack([self.model.hidden(row, taps) for row in paths]))

    def _path(self, tree: TokenTree, row: int, node: int) -> list[int]:
        """Committed tokens, the root, and the drafted path to the node."""
        drafted = tree.tokens[row, [0, *tree.path(row, node)]].tolist()
        return [*self._texts[row], *drafted]

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        for row, count in enumerate(counts):
            kept = list(self._roots[row])  # a root that was read is committed already
            if count >= 0 and self._tree is not None:
                nodes = [0, *path[row, :count].tolist()]
                kept = [*kept, *self._tree.tokens[row, nodes[len(kept) :]].tolist()]
            self._texts[row], self._roots[row] = self._texts[row] + kept, []

    def rewind(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        for row, length in zip(rows, lengths, strict=True):
            whole = self._texts[row] + self._roots[row]
            self._texts[row], self._roots[row] = whole[:length], []

    def release(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._texts[row], self._roots[row] = [], []


def _other_logits(memory: TableSession, tree: TokenTree, start: int) -> Tensor:
    """(B, n, V) of half the target's law, half that law with all tokens moved on by one."""
    law = memory.score(tree, start).logits.exp()
    return ((law + law.roll(1, -1)) / 2).log()


class TablePart:
    """A table in the place of some of a target's layers."""

    def score(
        self, memory: TableSession, tree: TokenTree, start: int = 0, last_only: bool = False
    ) -> PartScores:
        logits = _other_logits(memory, tree, start)
        states = torch.zeros(*logits.shape[:2], memory.model.hidden_size, dtype=logits.dtype)
        return PartScores(logits, states)

    def hand_over(
        self, memory: TableSession, tree: TokenTree, states: Tensor, source: Tensor | None = None
    ) -> None:
        """A table has no layers to go on from."""


class TableExcerpt:
    """A table in the place of a target over some of its memory."""

    nbytes, forward_seconds = 0, 0.0

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def close(self) -> None:
        """There is nothing to free."""

    def score(self, memory: TableSession, tree: TokenTree, start: int = 0) -> Tensor:
        return _other_logits(memory, tree, start)

    def weights(self, memory: TableSession, tokens: Tensor) -> list[Tensor]:
        longest = max(map(len, memory._texts))
        return [torch.ones(len(tokens), 1, longest)]

    def choose(
        self, memory: TableSession, rows: Sequence[int], positions: Sequence[Tensor]
    ) -> None:
        """A table has no memory to choose from."""

    def release(self, rows: Sequence[int]) -> None:
        """There is nothing to empty."""


@lru_cache(1 << 16)
def _state(layer: int, path: Prefix, size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=_seeded(layer, *path), dtype=dtype)


def _seeded(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(numbers) % (1 << 63))
