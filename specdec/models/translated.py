"""A draft model with another tokenizer, as a language model over the target's tokens.

Its session is told the target's tokens and keeps the draft model's memory in step with the text
(`specdec.models.translation`). Where newer text changes the pieces of older text, the memory is
taken back to the first piece that changed, and the rest is read again.

`intersection` (token-level intersection, Timor et al. 2502.05202, algorithm 4): logits cover the
target's vocabulary, and tokens that are not shared have none of the law. They are masked before
anything is drawn, so the q that a tree records is the law that it was drawn from, for every
sibling law. `text`: logits and trees are in the draft model's own tokens; what it writes is
written anew in the target's (string-level drafts, 2502.05202, algorithms 2 and 3).

Letters: B rows, b rows of one call, T tokens, V tokens of the target, W of the draft model.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specdec.interfaces import (
    CompilableModel,
    Compile,
    CompiledPass,
    LanguageModel,
    OpenedCompiled,
    Rewinds,
    Scores,
    Session,
    Tap,
    compile_of,
)
from specdec.models.translation import Text, Translation
from specdec.tree import TokenTree

MARGIN = 64  # positions of the draft model that are left for a tree, at most a quarter of them


class Translated:
    """`model`, whose session reads the target's tokens. own: logits and trees are in the model's
    own tokens, else in the target's. A text that outgrows the model loses its oldest half."""

    extra_layers = 0
    context = 1 << 40  # of the target's tokens there may be any number

    def __init__(self, model: LanguageModel, translation: Translation, own: bool) -> None:
        self.model, self.translation, self.own = model, translation, own
        self.name, self.device, self.dtype = model.name, model.device, model.dtype
        self.hidden_size, self.tokenizer = model.hidden_size, model.tokenizer
        self.eos_ids = model.eos_ids
        pieces = translation.draft if own else translation.target
        self.vocabulary = len(pieces.bytes)
        self.limit = model.context - min(MARGIN, model.context // 4)

    @property
    def compile(self) -> Compile:
        return compile_of(self.model)

    def open(self, rows: int, slots: int, compile: Compile = None) -> "TranslatedSession":
        return TranslatedSession(self, rows, slots, compile)


class TranslatedSession:
    """Memory of the draft model, in step with texts of the target's tokens.

    read_again    pieces that were in memory and had changed
    """

    part_seconds = 0.0

    def __init__(self, model: Translated, rows: int, slots: int, compile: Compile) -> None:
        self.model, self.translation = model, model.translation
        self._inner: Session
        if isinstance(model.model, CompilableModel):
            self._inner = model.model.open(rows, slots, compile)
        else:
            self._inner = model.model.open(rows, slots)
        if not isinstance(self._inner, Rewinds):
            raise ValueError(
                f"{model.name} has another tokenizer than the target, so tokens that it read are "
                "sometimes taken back; its sessions need a method rewind(rows, lengths)"
            )
        self._memory: Rewinds = self._inner
        self._texts = [Text(self.translation, model.limit) for _ in range(rows)]
        self._tree: TokenTree | None = None  # the one that was scored last
        self.read_again = 0

    @property
    def nbytes(self) -> int:
        return self._inner.nbytes

    @property
    def forward_seconds(self) -> float:
        return self._inner.forward_seconds

    @property
    def compiled(self) -> Sequence[CompiledPass]:
        return self._inner.compiled if isinstance(self._inner, OpenedCompiled) else []

    def reserve(self, slots: int) -> None:
        """Pieces are about as many as tokens; where they are more, the memory grows."""
        if isinstance(self._inner, OpenedCompiled):
            self._inner.reserve(slots)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> "TranslatedSession":
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
        """The target's tokens. Rows with a count of 0 stay as they are."""
        if taps or every:
            raise ValueError(
                f"{self.model.name} has another tokenizer than the target: its hidden states and "
                "laws belong to other tokens; read it without taps and every"
            )
        chosen = list(range(len(self._texts)) if rows is None else rows)
        unread: list[list[int]] = []
        for row, new, count in zip(chosen, tokens.tolist(), counts, strict=True):
            unread.append(self._unread(row, new[:count]) if count else [])
        pieces = torch.zeros(len(chosen), max(map(len, unread)), dtype=torch.long)
        for place, found in enumerate(unread):
            pieces[place, : len(found)] = torch.tensor(found, dtype=torch.long)
        out = self._inner.read(pieces.to(tokens.device), list(map(len, unread)), rows, root=root)
        return self._in_words(out)

    def _unread(self, row: int, tokens: Sequence[int]) -> list[int]:
        text = self._texts[row]
        before = len(text.held)
        text.add(tokens)
        kept, unread = text.unread()
        if kept < before:
            self._memory.rewind([row], [kept])
            self.read_again += before - kept
        return unread

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        """Nodes >= start, of trees whose root was read."""
        assert start > 0, "the root is the end of a text, not one piece: read it"
        assert not taps, "hidden states belong to other tokens"
        self._tree = tree
        inner = tree
        if not self.model.own:
            inner = TokenTree(self.translation.tokens(tree.tokens), tree.structure)
        return self._in_words(self._inner.score(inner, start))

    def _in_words(self, scores: Scores) -> Scores:
        if self.model.own:
            return scores
        return Scores(self.translation.logits(scores.logits), None)

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        if self.model.own or self._tree is None:  # the next read finds what of it was committed
            return
        self._inner.keep(path, counts)
        tokens = self._tree.tokens
        pieces = self.translation.tokens(tokens).tolist()
        for row, (drafted, given) in enumerate(zip(tokens.tolist(), pieces, strict=True)):
            nodes = path[row, : max(counts[row], 0)].tolist()
            self._texts[row].add([drafted[node] for node in nodes])
            self._texts[row].held += [given[node] for node in nodes]

    def release(self, rows: Sequence[int]) -> None:
        self._inner.release(rows)
        for row in rows:
            self._texts[row] = Text(self.translation, self.model.limit)

    def written(self, pieces: Tensor) -> list[list[int]]:
        """What the draft model wrote, (B, T) of its own tokens, as tokens of the target."""
        return [self.translation.drafted(row) for row in pieces.tolist()]
