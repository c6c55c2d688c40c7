"""A small language model with the target's tokenizer drafts chains and trees.

Leviathan et al. 2211.17192; trees as in SpecInfer 2305.09781, RSD 2402.14160, Sequoia 2402.12374,
SpecHub 2411.05289, DySpec 2410.11744 and EAGLE-2 2406.16858. Its memory follows the accepted path;
drafting takes one forward pass per depth.

Letters: B rows, N nodes, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from specdec import LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.by_level import Grown, Score
from specdec.drafting.guessed import Guesses
from specdec.drafting.shape import STOPPED, VARIANTS, Shape, ShapeArguments, TreeDrafter
from specdec.errors import switch
from specdec.models.load import Loadable, load
from specdec.models.vocabulary import check_same_tokens


class SmallModel(TreeDrafter):
    """Drafts with `model`: a name or path for `specdec.load`, a transformers model, or a
    LanguageModel. `lookup`: a chain's tokens are first looked up in the text and scored in one
    pass, which saves passes without changing the chain (`specdec.drafting.guessed`). `shape`: see
    `specdec.drafting.shape.Shape`; by default a chain of 4."""

    weight_arguments = frozenset({"model"})
    variants = (*VARIANTS, *STOPPED, {"depth": 2, "lookup": True})

    def __init__(
        self,
        model: Loadable | LanguageModel = "demo-draft",
        lookup: bool = False,
        **shape: Unpack[ShapeArguments],
    ) -> None:
        super().__init__(Shape.asked(shape, depth=4))
        self.lookup = switch("lookup", lookup)
        if self.lookup and not self.shape.chain:
            raise ValueError("lookup is for chains (branching=1); drop it or draft a chain")
        self.model = model if isinstance(model, LanguageModel) else load(model)

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "SmallModel":
        return cls(**{**arguments, "model": draft})

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        check_same_tokens(self.model, target)
        if self.model.device != target.device:
            raise ValueError(
                f"the draft model {self.model.name} is on {self.model.device}, the target on "
                f"{target.device}; load it there: specdec.load(..., device={str(target.device)!r})"
            )
        self._session = self.model.open(rows, 0)  # grows with the texts
        self.opened = (self._session,)
        self._seen = [0] * rows  # tokens in memory
        self._grown: Grown | None = None
        self._guesses = Guesses(rows, self.shape.depth) if self.lookup else None

    def enter(self, rows: Sequence[int], state: State) -> None:
        """Read the prompts of these rows, but for their roots."""
        self._session.release(rows)
        if self._guesses is not None:
            self._guesses.enter(rows, state)
        lengths = state.on_host.lengths
        counts = [lengths[row] - 1 if self._has_positions(lengths[row]) else 0 for row in rows]
        for row, count in zip(rows, counts, strict=True):
            self._seen[row] = count
        if any(counts):
            every = len(rows) == state.rows
            tokens = state.tokens if every else state.tokens[list(rows)]
            self._session.read(tokens[:, : max(counts)], counts, None if every else rows)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        self._grown = self.aside = None
        state = self._within_context(state)
        if state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        logits = self._read_new(state)
        score: Score = self._score
        if self._guesses is not None:
            score = self._guesses.around(score, state)
        self._grown = self.grow(logits, score, state, chance)
        self.aside = self._grown.inner
        return self._grown.tree

    def observe(self, state: State) -> None:
        """Keep the accepted nodes that are in memory. The leaf of a full path was never scored."""
        grown, last = self._grown, state.last
        if grown is None or last.verdict is None:
            return
        path = last.verdict.path
        if last.aside is None:
            scored = np.where(path < grown.scored, path, -1)
        else:  # the path in the model's own numbers
            scored = np.where(path > 0, np.take_along_axis(last.aside, path.clip(0), 1), -1)
        counts = np.where(self._drafted, (scored > 0).sum(1), -1).tolist()
        self._session.keep(scored, counts)
        for row, count in enumerate(counts):
            self._seen[row] += max(count, 0)

    def _has_positions(self, length: int) -> bool:
        """Whether the model can draft behind a text of so many tokens."""
        return length <= self.model.context - self.shape.depth

    def _within_context(self, state: State) -> State:
        """The same state, with only those rows live for which the model has positions."""
        host = state.on_host
        if self._has_positions(max(host.lengths)):
            self._drafted = host.live
            return state
        live = [
            alive and self._has_positions(length)
            for alive, length in zip(host.live, host.lengths, strict=True)
        ]
        self._drafted = live
        return replace(state, on_host=host._replace(live=live))

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        return self._session.score(tree, start).logits

    def _read_new(self, state: State) -> Tensor:
        """Read what was committed since (the leaf that was never scored, and the root); (B, 1, V)
        logits after the root."""
        lengths, live = state.on_host.lengths, state.on_host.live
        counts = [
            length - seen if alive else 0
            for length, seen, alive in zip(lengths, self._seen, live, strict=True)
        ]
        first, widest = self._seen, max(counts)
        if min(first) == max(first):
            tokens = state.tokens[:, first[0] : first[0] + widest]
        else:
            steps = torch.arange(widest, device=state.device)
            index = torch.tensor(first, device=state.device)[:, None] + steps
            tokens = state.tokens.gather(1, index.clamp(max=state.tokens.shape[1] - 1))
        logits = self._session.read(tokens, counts, root=True).logits
        self._seen = [seen + count for seen, count in zip(first, counts, strict=True)]
        return logits
