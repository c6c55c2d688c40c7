"""A part of a transformers decoder as a model of its own: some sublayers left out, or only the
layers from one on.

A part is a shallow copy that shares every weight with the model. Each layer keeps its number, so a
part that runs over the model's own KV memory reads and writes there what the whole model would.

Letters: B rows, n nodes, d hidden size.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.models.attention import shallow

ATTENTION = ("self_attn", "attn", "attention", "self_attention")  # what families call sublayers
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
MLP = ("mlp", "feed_forward", "block_sparse_moe")

_leaving: ContextVar[list[Tensor] | None] = ContextVar("leaving", default=None)


@contextmanager
def watched() -> Iterator[list[Tensor]]:
    """A list to which every `Exit` adds the stream (B, n, d) that passes it; each thread its
    own."""
    streams: list[Tensor] = []
    token = _leaving.set(streams)
    try:
        yield streams
    finally:
        _leaving.reset(token)


class Exit(nn.Module):
    """Follows the last layer of a lower part and records the stream that leaves it (`watched`). It
    passes on to the final norm that stream, or an adapter's output for it."""

    def __init__(self, last: nn.Module, adapter: nn.Module | None) -> None:
        super().__init__()
        self.adapter = adapter
        attention_type = getattr(last, "attention_type", None)
        if attention_type is not None:  # some families ask each layer for its mask
            self.attention_type = attention_type

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        streams = _leaving.get()
        if streams is not None:
            streams.append(hidden_states)
        if self.adapter is None:
            return hidden_states
        adapted: Tensor = self.adapter(hidden_states)
        return adapted


class NoAttention(nn.Module):
    """Adds nothing to the stream and keeps no keys and values."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Adds nothing to the stream. In some families a mixture of experts gives its router's logits
    too."""

    def __init__(self, original: nn.Module, example: Tensor) -> None:
        super().__init__()
        with torch.inference_mode():
            given = original(example)
        self.more = given[1:] if isinstance(given, tuple) else None

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        return nothing if self.more is None else (nothing, *self.more)


def without_sublayers(
    model: PreTrainedModel, no_attention: Collection[int], no_mlp: Collection[int]
) -> PreTrainedModel:
    """The model without the attention and MLP sublayers of the given layers; a layer that loses
    both is left out whole.

    Raises ValueError for numbers that are no layers, for a set that leaves no layer, and for
    families whose layers have no sublayers that could be told apart.
    """
    _, layers = _find_layers(model)
    wrong = sorted({*no_attention, *no_mlp} - set(range(len(layers))))
    if wrong:
        raise ValueError(
            f"sublayers of layer {wrong[0]} were to be left out; {type(model).__name__} has layers "
            f"0 to {len(layers) - 1}"
        )
    size = model.config.get_text_config().hidden_size
    example = torch.zeros(1, 1, size, dtype=model.dtype, device=model.device)
    no_mlp_like = partial(NoMLP, example=example)
    chosen: list[tuple[int, nn.Module]] = []
    for number, layer in enumerate(layers):
        if number in no_attention and number in no_mlp:
            continue
        if number in no_attention:
            layer = _replaced(layer, ATTENTION, lambda _: NoAttention(), model)
        elif number in no_mlp:
            layer = _replaced(layer, MLP, no_mlp_like, model)
        chosen.append((number, layer))
    if not chosen:
        raise ValueError("every layer would be left out whole; a draft needs at least one sublayer")
    return _with_layers(model, chosen)


def lower_layers(
    model: PreTrainedModel, layer: int, adapter: nn.Module | None = None
) -> PreTrainedModel:
    """The first `layer` layers, an adapter if there is one, the final norm and the LM head; the
    stream that enters layer `layer` is shown by `watched`."""
    _, layers = _find_layers(model)
    last = max(layer - 1, 0)
    exit = Exit(layers[last], adapter)
    return _with_layers(model, [*enumerate(layers[:layer]), (last, exit)])


def upper_layers(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """The layers from `layer` on, to be fed with the stream that enters them (`inputs_embeds`)."""
    _, layers = _find_layers(model)
    return _with_layers(model, list(enumerate(layers))[layer:])


def final_norm(model: PreTrainedModel) -> nn.Module | None:
    """What is between the last layer and the LM head. None where no name of `FINAL_NORMS` tells."""
    decoder = model.get_decoder()
    parts = [getattr(decoder, name, None) for name in FINAL_NORMS]
    found = [part for part in parts if isinstance(part, nn.Module)]
    return found[0] if len(found) == 1 else None


def num_layers(model: PreTrainedModel) -> int:
    return len(decoder_layers(model))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    return _find_layers(model)[1]


def _find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its path inside the model."""
    wanted = model.config.get_text_config().num_hidden_layers
    inside = {id(part) for part in model.get_decoder().modules()}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted and id(module) in inside:
            return path, module
    raise ValueError(
        f"{type(model).__name__} has no list of {wanted} decoder layers that a part could share"
    )


def _with_layers(model: PreTrainedModel, chosen: list[tuple[int, nn.Module]]) -> PreTrainedModel:
    """A shallow copy of the model, down to the module that holds the layers, with these ones
    (number, layer) instead."""
    path, _ = _find_layers(model)
    config = model.config.get_text_config()
    shorter = copy.copy(config)  # of the decoder; layers keep their own
    shorter.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        shorter.layer_types = [config.layer_types[number] for number, _ in chosen]
    whole = part = shallow(model)
    for name in path.split(".")[:-1]:
        part.add_module(name, shallow(part.get_submodule(name)))
        part = part.get_submodule(name)
        if getattr(part, "config", None) is config:
            part.config = shorter
    part.add_module(path.rpartition(".")[2], nn.ModuleList(layer for _, layer in chosen))
    changed: PreTrainedModel = whole
    return changed


def _replaced(
    layer: nn.Module,
    names: tuple[str, ...],
    stand_in: Callable[[nn.Module], nn.Module],
    model: PreTrainedModel,
) -> nn.Module:
    found = [name for name in names if isinstance(getattr(layer, name, None), nn.Module)]
    if len(found) != 1:
        raise ValueError(
            f"a layer of {type(model).__name__} has no single sublayer called "
            f"{' or '.join(names)}, so that it cannot be left out on its own; leave out whole "
            "layers (the same numbers for attention and mlp)"
        )
    changed: nn.Module = shallow(layer)
    changed.add_module(found[0], stand_in(layer.get_submodule(found[0])))
    return changed
