"""A stock transformers causal LM as "score this tree". Weights only: what a run remembers is in a
session, and any number of sessions may be open at once.

It knows trees, but no drafters, verifiers or sampling. The same class serves as target and inside a
draft model. The user's model is never written to.

Letters: B rows, N nodes, V vocabulary, K taps, d hidden size.
"""

import copy
import inspect
import threading
from collections.abc import Collection
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec.errors import Refused
from specdec.interfaces import KV, Compile, PartScores, Tap
from specdec.models import attention, proof, quantized
from specdec.models.compiled import CompiledModel, compile_mode
from specdec.models.excerpt import MemoryExcerpt
from specdec.models.layers import final_norm, lower_layers, num_layers, without_sublayers
from specdec.models.memory import Layout, bytes_per_token
from specdec.models.paged_session import PagedSession
from specdec.models.session import TransformersSession
from specdec.models.support import home, layer_kinds, refuse_unsupported, spread, usable_context
from specdec.tree import TokenTree

# Refused on several devices.
HEADS = "heads, which share its embedding and LM head, do"
OWN_LAYERS = "drafting with its own layers (layer_skip, early_exit) does"

Without = tuple[frozenset[int], frozenset[int]]  # sublayers left out: attention, MLP


class TransformersLM:
    """`LanguageModel` over any transformers decoder that takes a 4-D mask and position ids.

    Raises ValueError at construction for models that cannot score a tree: ALiBi, recurrent or
    encoder-decoder models, and any whose logits at a small tree differ from plain decoding.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str = "model",
        extra_layers: int = 0,
        compile: Compile = None,
        kv: KV | None = None,
    ) -> None:
        refuse_unsupported(model, name)
        quantized.refuse_unfit(model, name)
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.extra_layers, self.compile = extra_layers, compile_mode(compile)
        self._kv = kv or KV()
        self.spread = spread(model)  # the devices of a device_map; empty: it is on one
        self._check_spread(self.compile, self._kv)
        self.config = model.config.get_text_config()
        self.context = usable_context(self.config)
        implementation = attention.choose(model)
        self.runner = attention.rewired(model, implementation)
        factor, divisor = (
            getattr(self.config, key, None) or 1.0 for key in ("logit_scale", "logits_scaling")
        )
        self._logit_scale = float(factor / divisor)  # Cohere's factor, Granite's divisor
        parameters = inspect.signature(model.forward).parameters
        self.takes_logits_to_keep = "logits_to_keep" in parameters
        self._lock = threading.Lock()  # of what is found out once, below
        self._uppers: dict[int, PreTrainedModel] = {}
        self._run_without: set[Without] = set()  # sublayers without which it has run
        self._head_is_checked = False
        kinds = layer_kinds(self.config)
        self.vocabulary, shapes = proof.probed(self, kinds, implementation)
        self.layout = Layout(name, shapes, kinds, implementation, self.context)
        self.compiled = CompiledModel(self.runner, self.layout, self.dtype)
        proof.prove(self)

    def __repr__(self) -> str:
        size = sum(weight.numel() for weight in self.model.parameters())
        deeper = f", {self.extra_layers} extra layers" if self.extra_layers else ""
        found = quantized.format_of(self.model)
        packed = f", packed as {found}" if found else ""
        return (
            f"<TransformersLM {self.name}: {type(self.model).__name__}, {size / 1e6:.1f} M "
            f"parameters, {str(self.dtype).removeprefix('torch.')} on {self.device}"
            f"{packed}{deeper}>"
        )

    # ------------------------------------------------------------------------------- properties

    @property
    def device(self) -> torch.device:
        """Where its tokens go and its logits come from."""
        return home(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def kv(self) -> KV:
        """How its sessions keep keys and values, unless `open` says otherwise; see `with_kv`."""
        return self._kv

    @property
    def ranks(self) -> int:
        """Processes that hold its layers between them (`tp_plan`)."""
        return int(getattr(self.model, "_tp_size", None) or 1)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    @property
    def eos_ids(self) -> frozenset[int]:
        """End-of-sequence ids of the generation config: none, one or several."""
        generation = getattr(self.model, "generation_config", None)
        found = getattr(generation, "eos_token_id", None)
        found = self.config.eos_token_id if found is None else found
        several = found if isinstance(found, (list, tuple)) else [found]
        return frozenset([] if found is None else several)

    # --------------------------------------------------------------------------------- contract

    def open(
        self, rows: int, slots: int, compile: Compile = None, kv: KV | None = None
    ) -> TransformersSession:
        if self.compiled.dtype != self.dtype:  # the user has cast the model meanwhile
            quantized.check_dtype(self.model, self.name)
            self.compiled = CompiledModel(self.runner, self.layout, self.dtype)
        kv = kv or replace(self.kv, among=None)
        compile = self.compile if compile is None else compile
        self._check_spread(compile, kv)
        kind = TransformersSession if kv.layout == "contiguous" else PagedSession
        return kind(self, rows, slots, compile, kv)

    def with_kv(self, kv: KV) -> Self:
        """The same weights; sessions keep keys and values in another way."""
        other = copy.copy(self)
        other._kv = kv
        return other

    def bytes_per_token(self, kv: KV | None = None) -> int:
        """Of a session's memory."""
        return bytes_per_token(self.layout, self.dtype, (kv or self.kv).dtype)

    def _check_spread(self, compile: Compile, kv: KV) -> None:
        if compile:
            self._refuse_spread("compiled passes do")
        if kv.layout == "paged":
            self._refuse_spread('memory in pages (kv="paged") does')

    def _refuse_spread(self, what: str) -> None:
        """Raise Refused for a model on several devices."""
        if self.spread:
            raise Refused(
                f"{self.name} is spread over several devices ({', '.join(self.spread)}), where "
                f"{what} not work; load it on one device, or draft with a model of its own "
                "(small_model) or a lookup (ngram, suffix), over contiguous memory, uncompiled"
            )

    # ---------------------------------------------------------------- what it lends to its heads

    def embed(self, tokens: Tensor) -> Tensor:
        """The target's own embedding of tokens (..., d)."""
        self._refuse_spread(HEADS)
        embedded: Tensor = self.model.get_input_embeddings()(tokens)
        return embedded

    def final_norm(self, stream: Tensor) -> Tensor | None:
        """The tap "head" of a stream (..., d) that leaves a layer. None for a norm of another name
        than those that are known."""
        self._refuse_spread(HEADS)
        norm = final_norm(self.model)
        return None if norm is None else norm(stream)

    @property
    def head_weight(self) -> Tensor:
        """(V, d) of the LM head. Raises ValueError for one that is packed and does not give its
        numbers back. All processes that hold it between them have to ask."""
        self._refuse_spread(HEADS)
        weight = getattr(self.model.get_output_embeddings(), "weight", None)
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        found = quantized.numbers(weight)
        if found is None:
            raise ValueError(
                f"the LM head of {self.name} is packed ({type(weight).__name__}) and does not give "
                "its numbers back, which this drafter copies; quantise the model without its LM "
                "head"
            )
        return found

    def head(self, states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., d) as the tap "head" gives them. `check_head` tells
        whether they are the model's."""
        self._refuse_spread(HEADS)
        logits: Tensor = self.model.get_output_embeddings()(states)
        if self._logit_scale != 1:
            logits = logits * self._logit_scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def check_head(self) -> None:
        """Raise ValueError where the model does more between the tap "head" and its logits than
        `head` does."""
        if not self._head_is_checked:
            proof.prove_head(self)
            self._head_is_checked = True

    def tapped(self, hidden_states: tuple[Tensor, ...], taps: tuple[Tap, ...]) -> Tensor:
        """(B, N, K, d) of what transformers hands out: the stream entering each layer, then the LM
        head's input.

        Raises ValueError for layers that the model does not have.
        """
        layers = len(hidden_states) - 1
        known: dict[Tap, int] = {"head": layers, **{layer: layer for layer in range(layers)}}
        lacking = [str(tap) for tap in taps if tap not in known]
        if lacking:
            raise ValueError(
                f"the states entering layers {', '.join(lacking)} of {self.name} were asked for, "
                "which "
                f'has {layers} layers (0 to {layers - 1}, then "head"); heads read the layers of '
                "the "
                "target that they were trained for"
            )
        chosen = [hidden_states[known[tap]] for tap in taps]
        shapes = {tuple(states.shape) for states in chosen}
        if any(len(shape) != 3 or shape[2] != self.hidden_size for shape in shapes):
            raise ValueError(
                f"{self.name} ({type(self.model).__name__}) has hidden states of shape "
                f"{sorted(shapes)}, expected (B, T, {self.hidden_size}); heads cannot read them"
            )
        return torch.stack(chosen, 2)

    # -------------------------------------------------------------------------- parts that draft

    @property
    def layers(self) -> int:
        return num_layers(self.model)

    def without(self, attention: Collection[int], mlp: Collection[int]) -> "TransformersPart":
        """The model without some sublayers. Raises ValueError for sets that leave nothing or name
        what is not there, and for models that cannot run without them."""
        self._refuse_spread(OWN_LAYERS)
        part = TransformersPart(self, without_sublayers(self.runner, attention, mlp))
        which = (frozenset(attention), frozenset(mlp))
        if which not in self._run_without:
            proof.prove_part(self, part, which)
            self._run_without.add(which)
        return part

    def lower(self, layer: int, adapter: Module | None = None) -> "TransformersPart":
        """The first `layer` layers, perhaps an adapter, the final norm and the head. Raises
        ValueError for models whose upper layers, fed with saved states, give other logits than the
        whole."""
        self._refuse_spread(OWN_LAYERS)
        with self._lock:
            if layer not in self._uppers:
                self._uppers[layer] = proof.proven_upper(self, layer)
        return TransformersPart(
            self, lower_layers(self.runner, layer, adapter), self._uppers[layer]
        )

    # ------------------------------------------------------------------- excerpts of its memory

    @property
    def shows_weights(self) -> bool:
        return self.layout.implementation == attention.NAME

    def excerpt(self, rows: int, chosen: int, recent: int, nodes: int) -> MemoryExcerpt:
        self._refuse_spread("drafting over a part of its memory (sparse_self) does")
        noting = attention.rewired(self.model, attention.NOTED) if self.shows_weights else None
        return MemoryExcerpt(self, noting, rows, chosen, recent, nodes)


class TransformersPart:
    """`Part`: some of a model's layers."""

    def __init__(
        self, whole: TransformersLM, model: PreTrainedModel, upper: PreTrainedModel | None = None
    ) -> None:
        self.whole, self.model, self.upper = whole, model, upper

    def score(
        self, memory: TransformersSession, tree: TokenTree, start: int = 0, last_only: bool = False
    ) -> PartScores:
        keep_one = last_only and self.whole.takes_logits_to_keep
        return memory.score_part(self.model, tree, start, {"logits_to_keep": 1} if keep_one else {})

    def hand_over(
        self,
        memory: TransformersSession,
        tree: TokenTree,
        states: Tensor,
        source: Tensor | None = None,
    ) -> None:
        assert self.upper is not None, "a part that the rest of the model cannot go on from"
        memory.resume_at(self.upper, tree, states, source)
