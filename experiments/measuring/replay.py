"""A target that repeats recorded text: measures lookup drafters without a model.

Letters: B rows, N nodes, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from specdec.interfaces import Scores, Tap
from specdec.tree import TokenTree


class Replayed:
    """`LanguageModel` whose law after each token of one text is certain of the next one.

    tokens: the whole text, prompt first. Behind anything else it says token 0.
    """

    name, hidden_size, extra_layers = "recorded output", 1, 0
    device, dtype = torch.device("cpu"), torch.float32
    eos_ids: frozenset[int] = frozenset()
    tokenizer: Any = None

    def __init__(self, tokens: Sequence[int], vocabulary: int) -> None:
        self.tokens, self.vocabulary = [*tokens, 0], vocabulary
        self.context = len(tokens) + 1

    def open(self, rows: int, slots: int) -> "ReplayedSession":
        if rows != 1:
            raise ValueError(f"a recorded output is one row, got {rows}")
        return ReplayedSession(self)


class ReplayedSession:
    """How much of the text is committed."""

    nbytes, forward_seconds, part_seconds = 0, 0.0, 0.0

    def __init__(self, model: Replayed) -> None:
        self.model, self._read = model, 0  # the root of the coming tree is not counted

    def close(self) -> None:
        """There is nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(
        self,
        tokens: Tensor,
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
        taps: tuple[Tap, ...] = (),
        root: bool = False,
        every: bool = False,
    ) -> Scores:
        if taps or every:
            raise ValueError("a recorded output has no hidden states and no laws: replay lookups")
        self._read += counts[0] - root
        return Scores(self._certain([self.model.tokens[self._read + root]]), None)

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        text = self.model.tokens
        # Where the text stands behind each node; -1: the node is not in it.
        places = [self._read]
        nodes = zip(tree.tokens[0].tolist(), tree.parents[0].tolist(), strict=True)
        for token, parent in list(nodes)[1:]:
            here = places[parent] if parent >= 0 else -1
            follows = 0 <= here < len(text) - 1 and text[here + 1] == token
            places.append(here + 1 if follows else -1)
        nexts = [text[place + 1] if 0 <= place < len(text) - 1 else 0 for place in places]
        return Scores(self._certain(nexts[start:]), None)

    def _certain(self, tokens: Sequence[int]) -> Tensor:
        """(1, n, V) logits."""
        logits = torch.zeros(1, len(tokens), self.model.vocabulary)
        return logits.scatter_(2, torch.tensor(tokens)[None, :, None], 1.0)

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        if counts[0] >= 0:
            self._read += 1 + counts[0]

    def release(self, rows: Sequence[int]) -> None:
        self._read = 0
