"""What drafters with a small language model of their own share: the model, one run's memory of it,
and which tokens it has not read yet.

Letters: B rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from specdec.drafting.shape import TreeDrafter
from specdec.interfaces import LanguageModel, OpenedCompiled, OpenedPages, Session, open_beside
from specdec.models.load import Loadable, load, load_kept
from specdec.models.prefill import Prefill
from specdec.state import State


def loaded(model: Loadable | LanguageModel) -> LanguageModel:
    """The draft model: a name or path for `specdec.load`, a transformers model, or a
    LanguageModel."""
    if isinstance(model, LanguageModel):
        return model
    return load_kept(model) if isinstance(model, (str, Path)) else load(model)


class DraftModelDrafter(TreeDrafter):
    """Drafts with `model`, which its constructor sets."""

    weight_arguments = frozenset({"model"})
    model: LanguageModel

    def _open(self, target: LanguageModel, reader: LanguageModel, rows: int) -> None:
        """Memory of `reader`, the draft model as one that reads the target's tokens. Raises
        ValueError for a draft model on another device than the target."""
        if self.model.device != target.device:
            raise ValueError(
                f"the draft model {self.model.name} is on {self.model.device}, the target on "
                f"{target.device}; load it there: specdec.load(..., device={str(target.device)!r})"
            )
        self._reader = reader
        self._session: Session = open_beside(target, reader, rows)
        self.opened = (self._session,)
        if isinstance(self._session, OpenedPages):
            self._session.reach = max(self.shape.slots, self._scratch)
        self._prompts = Prefill(self._session, self, rows, None)
        self._seen = [0] * rows  # tokens in memory

    def enter(self, rows: Sequence[int], state: State) -> None:
        """Read the prompts of these rows, but for their roots."""
        self._session.release(rows)
        if isinstance(self._session, OpenedCompiled):
            longest = min(state.committed.shape[1], self.model.context)
            self._session.reserve(longest + self._scratch)
        lengths = state.on_host.lengths
        for row in rows:
            self._seen[row] = lengths[row] - 1 if self._has_positions(lengths[row]) else 0
            self._prompts.begin(row, state.text(row)[: self._seen[row] + 1])
        self._prompts.read(state.tokens)

    @property
    def _scratch(self) -> int:
        """How many tokens a pass writes behind the committed ones, at most."""
        return self.max_nodes

    def _has_positions(self, length: int) -> bool:
        """Whether the model can draft behind a text of so many tokens."""
        return length <= self._reader.context - self.shape.depth

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

    def _new(self, state: State) -> list[int]:
        """How many tokens of each row are to be read, the root included."""
        lengths, live = state.on_host.lengths, state.on_host.live
        return [
            length - seen if alive else 0
            for length, seen, alive in zip(lengths, self._seen, live, strict=True)
        ]

    def _caught_up(self, state: State) -> list[int]:
        """`_new`, and not more than a round brings: if the drafter was left out of rounds, this
        reads all but the roots, as a prompt is read."""
        counts = self._new(state)
        older = [max(count - 1, 0) for count in counts]
        if max(older) > self.shape.depth:
            self._read(state, older)
            counts = [count - past for count, past in zip(counts, older, strict=True)]
        return counts

    def _read(self, state: State, counts: list[int], root: bool = False) -> Tensor:
        """Read the next `counts` tokens of each row; logits (B, 1, V) after them."""
        tokens = state.tokens_from(self._seen, max(counts))
        self._seen = [seen + count for seen, count in zip(self._seen, counts, strict=True)]
        return self._session.read(tokens, counts, root=root).logits
