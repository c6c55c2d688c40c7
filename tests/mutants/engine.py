"""Wrong chances and wrong engines: what only many samples of the real thing can show."""

from typing import Any

import torch
from torch import Tensor

from specdec.chance import Keyed, KeyedDraws, Sites, _mix, _purpose_key, _unit
from specdec.emission import Emission
from specdec.language_model import TransformersLM
from specdec.placement import Placement


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
    """Keyed by position alone: a round that follows a partial acceptance meets coins already known to have failed."""

    def uniform(self, at: Sites, k: int, purpose: str) -> Tensor:
        position = self.lengths[at.rows] + at.depths
        key = _mix(self.request_ids[at.rows] + 1) + position * 0x9E3779B97F4A7C1 + _purpose_key(purpose)
        return _unit(_mix(key[:, None] + torch.arange(k)))


class Changed(Keyed):
    """Keyed chance with other draws."""

    def __init__(self, draws: type[KeyedDraws]) -> None:
        super().__init__(0)
        self.draws = draws

    def round(self, state: Any) -> KeyedDraws:
        return self.draws(self.seed, state.request_ids, state.lengths)


class OneTokenUnseen(Placement):
    def _visible(self, ancestors: Tensor, roots: list[int], slots: int) -> Tensor:
        visible = super()._visible(ancestors, roots, slots).clone()
        for row, root in enumerate(roots):
            if root > 1:
                visible[row, :, root - 1] = False
        return visible


class MaskOffByOne(TransformersLM):
    """A node does not see the last committed token before the root."""

    def _probe(self) -> Any:
        self.place.__class__ = OneTokenUnseen
        return super()._probe()

    def _prove(self) -> None:
        """The model is not tried out, or it would be refused here."""


class MaskOffByOneProved(MaskOffByOne):
    """The same, tried out as every model is."""

    def _prove(self) -> None:
        TransformersLM._prove(self)


class RunsOn(Placement):
    def _column(self, numbers: list[int], uniform: bool) -> Tensor:
        return torch.tensor([number + 3 * (number > 7) for number in numbers], device=self.device)[:, None]


class PositionsOfRejectedNodes(TransformersLM):
    """Once a round is over, positions run on as if rejected nodes were still there."""

    def _probe(self) -> Any:
        self.place.__class__ = RunsOn
        return super()._probe()


class KeepsTheWrongBranch(TransformersLM):
    """The cache keeps the first nodes of the tree instead of the accepted ones."""

    def keep(self, path: Tensor, counts: Tensor) -> None:
        first = torch.arange(1, path.shape[1] + 1).expand_as(path)
        super().keep(torch.where(path >= 0, first, path), counts)


def past_the_end(self: Emission, tokens: list[int]) -> list[int]:
    """An accepted path is cut at the length only: drafts past an end of text are emitted."""
    kept = tokens[: self.room - len(self.tokens)]
    self.tokens += kept
    if kept[-1] in self.eos_ids:
        self.finish_reason = "eos"
    elif len(self.tokens) == self.room:
        self.finish_reason = "length"
    return kept
