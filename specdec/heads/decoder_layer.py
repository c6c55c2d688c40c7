"""Decoder layers of the target's own family, for heads that are one or a few layers over the
target's states.

No model code is copied here. transformers builds the layer from the target's config, and it runs
inside the family's own decoder, which provides positions and attention. The embedding and the final
norm are taken out.

Letters: B rows, T tokens, S keys, d hidden size.
"""

import copy
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache

from specdec.heads.anchors import for_attention
from specdec.interfaces import LanguageModel
from specdec.models.language_model import TransformersLM
from specdec.models.memory import LayerShape, ShapeProbe
from specdec.models.support import layer_kinds

NOT_THE_LAYERS = (  # config keys that do not describe the layers
    *(key for key in PreTrainedConfig().to_dict() if key != "model_type"),
    *(
        "_name_or_path",
        "auto_map",
        "quantization_config",
        "torch_dtype",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
)
# of one; not every family takes None
NO_TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def layer_config(target: LanguageModel, layers: int = 1) -> dict[str, Any]:
    """The part of a target's (text) config that describes a layer, as JSON: `layers` layers like
    the last one, without a vocabulary. For a target that is not a transformers model, small Llama
    layers of its hidden size."""
    if isinstance(target, TransformersLM):
        return _of_layers(target.config, layers)
    size = target.hidden_size
    config = LlamaConfig(hidden_size=size, intermediate_size=2 * size, num_attention_heads=2)
    return _of_layers(config, layers)


def published_layer(described: dict[str, Any]) -> dict[str, Any]:
    """The same from the config.json of a published head of one layer. Raises ValueError for missing
    or wrong values."""
    layers = described.get("num_hidden_layers", 1)
    if layers != 1:
        raise ValueError(
            f"the config has num_hidden_layers {layers}, and heads of this kind have one layer"
        )
    return published_layers(described)


def published_layers(described: dict[str, Any]) -> dict[str, Any]:
    """The same for any number of layers."""
    layers, family = described.get("num_hidden_layers", 1), described.get("model_type", "llama")
    missing = [
        key
        for key in ("hidden_size", "intermediate_size", "num_attention_heads")
        if described.get(key) is None
    ]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}")
    if family not in CONFIG_MAPPING:
        raise ValueError(f"the config's model_type {family!r} is none that transformers knows")
    known = {*CONFIG_MAPPING[family]().to_dict(), "rope_theta", "rope_scaling"} - {
        "model_type",
        "vocab_size",
    }
    try:
        config = AutoConfig.for_model(
            family, **{key: value for key, value in described.items() if key in known}
        )
    except StrictDataclassError as error:
        raise ValueError(f"the config is none of a {family} layer: {error}") from None
    return _of_layers(config, layers)


def _of_layers(config: Any, layers: int) -> dict[str, Any]:
    described = {key: value for key, value in config.to_dict().items() if key not in NOT_THE_LAYERS}
    described |= {"num_hidden_layers": layers, "vocab_size": 1}
    types = described.get("layer_types")
    if types and len(types) != layers:
        described["layer_types"] = types[-1:] * layers
    return described


def decoder_of(described: dict[str, Any]) -> PreTrainedModel:
    """The family's decoder with these layers, without embedding and final norm: inputs_embeds in,
    the last layer's output out.

    Raises ValueError for families whose decoder has no `layers` and `norm`.
    """
    settings = copy.deepcopy(described)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, **NO_TOKENS)
    # With SDPA, or eager attention where the family knows no other.
    decoder: PreTrainedModel = AutoModel.from_config(config)
    layers, norm = (getattr(decoder, name, None) for name in ("layers", "norm"))
    if not isinstance(layers, nn.ModuleList) or norm is None:
        raise ValueError(
            f"{type(decoder).__name__} has no `layers` and `norm`, so a layer of it cannot be "
            "taken; heads of decoder layers (eagle, eagle3) work for Llama-like families"
        )
    decoder.norm = nn.Identity()
    decoder.set_input_embeddings(nn.Identity())
    return decoder


def shape_of(run: Any, decoder: PreTrainedModel) -> LayerShape:
    """What the layer writes into a cache, found by running `run(cache)`, one pass over one token.
    Raises ValueError for layers that cannot run as a head does."""
    probe = ShapeProbe()
    try:
        with torch.inference_mode():
            run(probe)
        return probe.seen[0]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(
            f"a layer of {type(decoder).__name__} cannot serve as a head: fed with the head's "
            f"states it fails ({type(error).__name__}: {error}); heads of decoder layers "
            "(eagle, eagle3) work for Llama-like families"
        ) from error


class Unrolled(Cache):
    """Keys and values of several passes of one layer over the same text, for training on its own
    states.

    Pass s starts from the output of pass s - 1: its token at index t represents the path (truth up
    to t, then s guesses). It sees the first pass up to t and only index t of every later pass
    (EAGLE-3 2503.01840, "training-time test"). In the first pass it sees its own document alone.

    documents, positions: (B, T) the document of each token of the first pass, and its position.
    """

    def __init__(self, documents: Tensor, positions: Tensor) -> None:
        self.documents, self.positions = documents, positions
        self.layers: list[Any] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys.append(key_states)
        self.values.append(value_states)
        return torch.cat(self.keys, 2), torch.cat(self.values, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return sum(keys.shape[2] for keys in self.keys) + query_length, 0

    def mask(self, length: int, config: Any) -> Tensor:
        """(B, 1, length, S), for the coming pass of `length` tokens: bool, or additive for eager
        attention."""
        kind, passes, device = layer_kinds(config)[0], len(self.keys), self.documents.device
        sizes = [*(keys.shape[2] for keys in self.keys), length]
        query = torch.arange(length, device=device)[:, None]
        number, place = self.documents, self.positions
        seen = []
        for step, size in enumerate(sizes):
            key = torch.arange(size, device=device)
            if step == 0:
                visible = (key <= query) & (number[:, :length, None] == number[:, None, :size])
            else:
                visible = (key == query).expand(len(number), -1, -1)
            if kind.size is not None:
                ours, theirs = place[:, :length, None] + passes, place[:, None, :size] + step
                visible = visible & kind.reaches(ours, theirs)
            seen.append(visible)
        return for_attention(torch.cat(seen, 2)[:, None], config)
