"""The target's own weights in 8 or 4 bits draft for it. No training, no second set of weights to
find.

QuantSpec 2502.10424, ML-SpecQD 2503.13565. Packed weights are a language model like any other, so
the drafts are those of `small_model`, which this drafter holds. Embedding, norms and LM head are
the target's own. The memory is not: passes over a memory of its own can be compiled, and without
compiling packed weights are slower than the target itself.
"""

import threading
from collections.abc import Sequence
from typing import Any, Unpack

import torch

from specdec import Drafter, LanguageModel, Sampling, State, TokenTree, TransformersLM
from specdec.chance import Draws
from specdec.drafting.shape import FEW_VARIANTS, Shape, ShapeArguments, TreeDrafter
from specdec.models.load import load
from specdec.models.quantized import SCHEMES, Quantize, check_scheme
from specdec.plugins import build

_packing = threading.Lock()


class PackedCopy:
    """Of the target of the last run. All runs of one drafter object share it."""

    target: LanguageModel | None = None
    model: TransformersLM | None = None

    def of(self, target: LanguageModel, quantize: Quantize) -> TransformersLM:
        """Made at a target's first run. The target is left as it was.

        Raises ValueError for a target that is none of transformers' models, for one that is
        quantised already, and where the scheme has no kernel.
        """
        if not isinstance(target, TransformersLM):
            raise ValueError(
                f"quantized_self drafts with the target's own weights; {type(target).__name__} "
                "gives no access to any, load a transformers model"
            )
        with _packing:
            if self.model is None or self.target is not target:
                self.target, self.model = target, load(target, quantize=quantize)
            return self.model


class QuantizedSelf(TreeDrafter):
    """Drafts chains and trees (`specdec.drafting.shape.Shape`) with a packed copy of the target.

    quantize    int8 (weights, and activations per token) | int4 (weights), or a torchao
                configuration
    """

    weight_arguments = frozenset({"quantize"})
    variants = FEW_VARIANTS  # trees grow as those of small_model do

    def __init__(self, quantize: Quantize = "int8", **shape: Unpack[ShapeArguments]) -> None:
        super().__init__(Shape.asked(shape, depth=4))
        if quantize is None:
            raise ValueError(f"quantized_self needs quantize, one of {', '.join(SCHEMES)}")
        check_scheme(quantize)
        self.quantize, self._arguments = quantize, shape
        self._copy = PackedCopy()
        self._draft: LanguageModel | None = None  # in its place

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "QuantizedSelf":
        """A table has no weights to pack, and torchao packs none of float64: `draft` drafts
        instead."""
        made = cls(**arguments)
        if not isinstance(target, TransformersLM) or target.dtype == torch.float64:
            made._draft = draft
        return made

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        model = self._draft or self._copy.of(target, self.quantize)
        inner: Drafter = build(
            "drafter", {"name": "small_model", "model": model, **self._arguments}
        )
        inner.begin(target, rows, sampling)
        self._inner, self.law, self.opened = inner, inner.law, inner.opened

    def enter(self, rows: Sequence[int], state: State) -> None:
        self._inner.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        tree = self._inner.propose(state, chance)
        self.aside = self._inner.aside
        return tree

    def observe(self, state: State) -> None:
        self._inner.observe(state)

    def leave(self, rows: Sequence[int]) -> None:
        self._inner.leave(rows)
