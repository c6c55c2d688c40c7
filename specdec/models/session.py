"""One run's memory of one transformers model, as `specdec.interfaces.Session`.

Letters: B rows, b rows of one call, N nodes, n nodes of one pass, V vocabulary, d hidden size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.interfaces import KV, Compile, CompiledPass, PartScores, Scores, Tap
from specdec.models.compiled import CompiledModel
from specdec.models.layers import watched
from specdec.models.memory import Layout, Memory, Pass, as_it_is
from specdec.models.paged import opened
from specdec.models.whole import Piece
from specdec.tree import Structure, TokenTree


class Runnable(Protocol):
    """What a session needs of its model; `specdec.TransformersLM` has it."""

    layout: Layout
    runner: PreTrainedModel
    compiled: CompiledModel
    takes_logits_to_keep: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def tapped(self, hidden_states: tuple[Tensor, ...], taps: tuple[Tap, ...]) -> Tensor: ...


class HandedOver(NamedTuple):
    """Nodes that a drafter has taken through the lower layers already."""

    structure: Structure  # of the tree that they are
    upper: PreTrainedModel  # the layers that are left
    states: Tensor  # (B, N, d) the stream that enters those


class TransformersSession:
    """The KV memory of one run, and the passes over it."""

    def __init__(
        self, model: Runnable, rows: int, slots: int, compile: Compile = None, kv: KV | None = None
    ) -> None:
        self.model, self.compile, self.kv = model, compile, kv or KV()
        device, dtype = model.device, model.dtype
        self._memory = opened(self.kv, model.layout, rows, slots, dtype, device, bool(compile))
        self._run = as_it_is(model.runner)
        if compile:
            self._run = model.compiled.forward(required=compile == "require")
        self.part_seconds = 0.0  # inside passes of parts of the model, which draft
        self._handed_over: HandedOver | None = None

    @property
    def memory(self) -> Memory:
        """Where its tokens are stored, for drafters of the model's own layers."""
        return self._memory

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    @property
    def calls(self) -> int:
        """Forward passes of the whole model."""
        return self._memory.calls

    @property
    def forward_seconds(self) -> float:
        """Inside forward passes of the whole model."""
        return self._memory.forward_seconds - self.part_seconds

    @property
    def compiled(self) -> list[CompiledPass]:
        return self._memory.compiled

    def reserve(self, slots: int) -> None:
        self._memory.reserve(slots)

    def close(self) -> None:
        self._memory.close()
        self._handed_over = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------- the contract

    def read(
        self,
        tokens: Tensor,
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
        taps: tuple[Tap, ...] = (),
        root: bool = False,
        every: bool = False,
    ) -> Scores:
        b, length = tokens.shape
        over = self._memory.reading(length, rows, prompt=not root, counts=counts)
        last = sorted({max(count - 1, 0) for count in counts})
        all_wanted = every or length == 1
        wanted = None if all_wanted else torch.tensor(last, device=tokens.device)
        logits, hidden = self._forward(tokens, over, taps, wanted)
        if len(last) > 1 and not every:
            column = torch.tensor([last.index(max(count - 1, 0)) for count in counts])
            column = column.to(logits.device)
            logits = logits[torch.arange(b, device=logits.device), column][:, None]
        self._note(tokens, counts, rows)
        self._memory.commit(counts, rows, root)
        return Scores(logits, hidden)

    def _note(self, tokens: Tensor, counts: Sequence[int], rows: Sequence[int] | None) -> None:
        """These tokens are about to be stored: for sessions that remember texts."""

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        over, handed = self._memory.scoring(tree, start), self._handed_over
        self._handed_over = None
        # Taps may be below the layer at which the tree was handed over: then from the start.
        if handed and handed.structure is tree.structure and start == 0 and not taps:
            out = self._memory.run(as_it_is(handed.upper), over, inputs_embeds=handed.states)
            return Scores(out.logits, None)
        return Scores(*self._forward(tree.tokens[:, start:], over, taps, None))

    def at_once(self, piece: Piece) -> tuple[list[Tensor], Any] | None:
        """A draft as a whole (`specdec.models.whole`). None where passes are not compiled."""
        return self.model.compiled.at_once(self._memory, piece) if self.compile else None

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        self._memory.keep(path, counts)

    def rewind(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        self._memory.rewind(rows, lengths)

    def release(self, rows: Sequence[int]) -> None:
        self._memory.release(rows)

    # ------------------------------------------------------------------------ parts of the model

    def score_part(
        self, part: PreTrainedModel, tree: TokenTree, start: int, options: dict[str, Any]
    ) -> PartScores:
        """A pass of some of the layers over nodes >= start."""
        over = self._memory.scoring(tree, start)
        with watched() as streams:
            out = self.run_part(part, over, input_ids=tree.tokens[:, start:], **options)
        return PartScores(out.logits, streams[-1] if streams else out.logits.new_empty(0))

    def run_part(self, part: PreTrainedModel, over: Pass, **inputs: Any) -> Any:
        """A pass that is part of drafting."""
        before = self._memory.forward_seconds
        out = self._memory.run(as_it_is(part), over, **inputs)
        self._memory.calls -= 1
        self.part_seconds += self._memory.forward_seconds - before
        return out

    def resume_at(
        self, upper: PreTrainedModel, tree: TokenTree, states: Tensor, source: Tensor | None
    ) -> None:
        """Scoring this very tree goes on with `upper`, from `states` (B, N, d); its nodes were
        scored under the numbers `source` (B, N)."""
        if source is not None:
            self._memory.rearrange(source)
        self._handed_over = HandedOver(tree.structure, upper, states)

    # ----------------------------------------------------------------------------- the forward

    def _forward(
        self, tokens: Tensor, over: Pass, taps: tuple[Tap, ...], logits_to_keep: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        model = self.model
        options: dict[str, Any] = {"output_hidden_states": True} if taps else {}
        few = self.compile and over.few is not None  # compiled passes give all logits
        keeps = logits_to_keep is not None and model.takes_logits_to_keep and not few
        if keeps:
            options["logits_to_keep"] = logits_to_keep
        out = self._memory.run(self._run, over, input_ids=tokens, **options)
        logits = out.logits
        if logits_to_keep is not None and not keeps:
            logits = logits[:, logits_to_keep]
        return logits, model.tapped(out.hidden_states, taps) if taps else None
