"""Wrong chances and wrong engines: what only many samples of the real thing can show."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.chance import Keyed, KeyedDraws, Sites, _mix, _purpose_key, _unit
from specdec.models.language_model import TransformersLM
from specdec.models.memory import Memory
from specdec.models.session import TransformersSession
from specdec.output import Emission


class OneNumberPerRound(KeyedDraws):
    """Every coin and every draw but the drafts of a round uses one uniform number."""

    def uniform(self, at: Sites, k: int, purpose: str) -> Tensor:
        if purpose == "draft":
            return super().uniform(at, k, purpose)
        return _unit(_mix(self.rows[at.rows]))[:, None].expand(-1, k)


class SharedNoise(KeyedDraws):
    """Drafts and the target's own tokens are drawn with the same noise."""

    def uniform(self, at: Sites, k: int, purpose: str) -> Tensor:
        shared = purpose if purpose == "accept" else "shared"
        return super().uniform(at, k, shared)


class ByPosition(KeyedDraws):
    """Keyed by position alone: a round that follows a partial acceptance meets coins already known
    to have failed."""

    def uniform(self, at: Sites, k: int, purpose: str) -> Tensor:
        position = self.lengths[at.rows] + at.depths
        key = (
            _mix(self.request_ids[at.rows] + 1)
            + position * 0x9E3779B97F4A7C1
            + _purpose_key(purpose)
        )
        return _unit(_mix(key[:, None] + torch.arange(k)))


class Changed(Keyed):
    """Keyed chance with other draws."""

    def __init__(self, draws: type[KeyedDraws]) -> None:
        super().__init__(0)
        self.draws = draws

    def round(self, state: Any) -> KeyedDraws:
        return self.draws(self.seed, state.request_ids, state.lengths)


class OneTokenUnseen(Memory):
    def scoring(self, tree: Any, start: int) -> Any:
        over, roots = super().scoring(tree, start), list(self.roots)

        def made() -> dict[str, Any]:
            options = over.options()
            mask = options["attention_mask"]
            for row, root in enumerate(roots):
                if mask is not None and root > 1:
                    mask[row, :, :, root - 1] = torch.finfo(mask.dtype).min
            return options

        return over._replace(options=made)


class Engine(TransformersLM):
    """A model whose sessions have another memory."""

    memory: type[Memory] = Memory
    session: type[TransformersSession] = TransformersSession

    def open(self, rows: int, slots: int) -> TransformersSession:
        session = self.session(self, rows, slots)
        session._memory.__class__ = self.memory
        return session


class MaskOffByOneProved(Engine):
    """A node does not see the last committed token before the root; tried out as every model is."""

    memory = OneTokenUnseen


class MaskOffByOne(MaskOffByOneProved):
    """The same, not tried out, or it would be refused here."""

    def open(self, rows: int, slots: int) -> TransformersSession:
        session = super().open(rows, slots)
        if not hasattr(self, "layout_is_proved"):
            self.layout_is_proved = True  # the first session is the proof's
            session._memory.__class__ = Memory
        return session


class RunsOn(Memory):
    def _positions(self, first: list[int], depths: Tensor) -> Tensor:
        return super()._positions([number + 3 * (number > 7) for number in first], depths)


class PositionsOfRejectedNodes(Engine):
    """Once a round is over, positions run on as if rejected nodes were still there."""

    memory = RunsOn


class KeepsFirstNodes(TransformersSession):
    def keep(self, path: np.ndarray, counts: Any) -> None:
        first = np.broadcast_to(np.arange(1, path.shape[1] + 1), path.shape)
        super().keep(np.where(path >= 0, first, path), counts)


class KeepsTheWrongBranch(Engine):
    """The memory keeps the first nodes of the tree instead of the accepted ones."""

    session = KeepsFirstNodes


def past_the_end(self: Emission, tokens: list[int]) -> list[int]:
    """An accepted path is cut at the length only: drafts past an end of text are emitted."""
    kept = tokens[: self.room - len(self.tokens)]
    self.tokens += kept
    if kept[-1] in self.eos_ids:
        self.finish_reason = "eos"
    elif len(self.tokens) == self.room:
        self.finish_reason = "length"
    return kept
