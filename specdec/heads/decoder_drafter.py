"""Drafting with a head that runs inside a decoder of its own: passes that are compiled where the
target's are, and a memory of the states that the target has brought.

Letters: B rows, b rows of one call, K taps, d hidden size.
"""

import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from specdec.drafting.shape import FEW_VARIANTS, Shape, TreeDrafter
from specdec.drafting.whole import Wholes
from specdec.heads.decoder_head import DecoderHead
from specdec.heads.decoder_layer import shape_of
from specdec.heads.head import FirstRounds, check_target
from specdec.interfaces import LanguageModel, compile_of, kv_of, lends_head
from specdec.models import attention
from specdec.models.compiled import CompiledModel
from specdec.models.memory import Layout, as_it_is
from specdec.models.paged import opened
from specdec.models.support import layer_kinds
from specdec.sampling import Sampling
from specdec.state import State

# Passes of each head, by device and dtype: what is compiled is kept for runs to come.
Versions = tuple[int, ...]  # of weights
_compiled: weakref.WeakKeyDictionary[DecoderHead, dict[Any, tuple[Versions, CompiledModel]]] = (
    weakref.WeakKeyDictionary()
)


class DecoderDrafter(TreeDrafter):
    """Grows a `Shape` with a `DecoderHead`."""

    Kind: ClassVar[type[DecoderHead]]
    heads: DecoderHead
    _heads: DecoderHead  # in the run's dtype, in shells of its own
    weight_arguments = frozenset({"heads"})
    variants: ClassVar[Sequence[Mapping[str, Any]]] = FEW_VARIANTS

    def __init__(self, heads: DecoderHead, shape: Shape) -> None:
        super().__init__(shape)
        self.heads, self.taps = heads, heads.taps

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        self._target = lends_head(target, self.Kind.kind)
        check_target(self.heads, self._target)
        self._target.check_head()
        self.taps = self.heads.taps_for(target)
        where, compile = (target.device, target.dtype), compile_of(target)
        self._heads = self.heads.on(*where).runner()
        self._model = self._compilable(*where)
        # It grows with the texts, unless the target's memory has a size.
        kv = replace(kv_of(target), dtype="model")
        layout = self._model.layout
        self._memory = opened(kv, layout, rows, 0, target.dtype, target.device, bool(compile))
        self._memory.reach = self._reach
        self.opened = (self._memory,)
        self._run = as_it_is(self._heads)
        if compile:
            self._run = self._model.forward(compile == "require", self._heads)
        self._wholes = Wholes(self.shape, self.grower, self.law, sampling) if compile else None
        self._first_rounds = FirstRounds(self.heads)

    def _compilable(self, device: torch.device, dtype: torch.dtype) -> CompiledModel:
        """Passes of the heads. Compiled ones hold copies of the weights: training makes them
        stale."""
        where, versions = (device, dtype), tuple(one._version for one in self.heads.parameters())
        known = _compiled.setdefault(self.heads, {})
        if where not in known or known[where][0] != versions:
            heads = self.heads.on(device, dtype).runner()
            config, kept = heads.decoder.config, attention.choose(self.heads.decoder)
            zero = torch.zeros(1, 1, dtype=torch.long, device=device)
            one = self._target.embed(zero)
            given, mask = self._inputs(one), one.new_zeros(1, 1, 1, 1)
            shape = shape_of(
                lambda cache: heads(
                    **given, position_ids=zero, attention_mask=mask, past_key_values=cache
                ),
                heads.decoder,
            )
            shapes = [shape] * int(config.num_hidden_layers)
            layout = Layout(self.Kind.kind, shapes, layer_kinds(config), kept)
            known[where] = versions, CompiledModel(heads, layout, dtype)
        return known[where][1]

    @abstractmethod
    def _inputs(self, one: Tensor) -> dict[str, Tensor]:
        """Some inputs of the heads for one token, whose embedding is `one` (1, 1, d)."""

    @property
    @abstractmethod
    def _scratch(self) -> int:
        """Slots behind the text that a draft writes to."""

    @property
    def _reach(self) -> int:
        """Slots behind the text that a draft may need pages for."""
        return self._scratch

    def enter(self, rows: Sequence[int], state: State) -> None:
        """Read the states of these rows' prompts but for the last one, before the root: it comes
        with the first round."""
        self._memory.release(rows)
        self._memory.occupy(rows)
        self._memory.reserve(state.committed.shape[1] + self._scratch)
        counts = [max(state.on_host.lengths[row] - 2, 0) for row in rows]
        if state.last.taps is not None and any(counts):
            self._read_prompts(state, rows, counts)

    @abstractmethod
    def _read_prompts(self, state: State, rows: Sequence[int], counts: list[int]) -> None:
        """The first counts[i] states of these rows."""

    def observe(self, state: State) -> None:
        self._first_rounds.see(state)

    def _brought(self, state: State) -> list[int]:
        """How many states of each row the last round has brought."""
        host, last = state.on_host, state.last
        if last.taps is None:  # prompts of one token: the first states come with the first round
            return [0] * state.rows
        return [
            accepted + 1 if live and length > 1 else 0
            for accepted, live, length in zip(
                last.num_accepted, host.live, host.lengths, strict=True
            )
        ]
