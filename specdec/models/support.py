"""Which transformers models can score a tree, and what their attention layers see. The reasons for
refusals are here."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.errors import Unsupported


class LayerKind(NamedTuple):
    """One kind of attention layer: all positions, a sliding window, or chunks of positions."""

    name: str
    size: int | None

    def reaches(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query at one position may look at a key at another (earlier) one;
        broadcasting."""
        assert self.size is not None
        if self.name == "chunked_attention":
            return query // self.size == key // self.size
        return query - key < self.size


SLIDING, FULL, CHUNKED = "sliding_attention", "full_attention", "chunked_attention"
# words in the names of other kinds
RECURRENT = ("linear", "mamba", "conv", "recurrent", "delta", "hybrid")


def layer_kinds(config: Any) -> list[LayerKind]:
    """The kinds of attention layers of a text config, one entry per kind (hybrid models have
    several)."""
    window = getattr(config, "sliding_window", None)
    sizes = {FULL: None, SLIDING: window, CHUNKED: getattr(config, "attention_chunk_size", None)}
    named = list(
        dict.fromkeys(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    )
    return [LayerKind(name, sizes[name]) for name in named]


def usable_context(config: Any) -> int:
    """How many positions a pass over a tree may use: those of the text config, or fewer if from
    some point on the model's behaviour depends on more than the position of each token.

    LongRoPE (Phi-3) rotates all positions of a pass by other angles as soon as one of them is past
    the original context. A tree that crosses this edge would change its earlier nodes too, while
    the cache still holds keys with the old angles. From `floor_scale` on, Llama 4 scales attention
    by the number of cached tokens, which is not the position of a node.
    """
    most = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
    rope = getattr(config, "rope_parameters", None) or {}
    for settings in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if settings.get("rope_type") == "longrope":
            most = min(most, int(settings.get("original_max_position_embeddings") or most))
    floor_scale = getattr(config, "floor_scale", None)
    if getattr(config, "attn_temperature_tuning", False) and floor_scale is not None:
        most = min(most, int(floor_scale) - 1)
    return most


def spread(model: PreTrainedModel) -> list[str]:
    """The devices of a device_map whose hooks (accelerate's) move states from layer to layer, or
    fetch weights for each pass ("cpu" beside a GPU, "disk"). Empty for a model on one device."""
    found = (getattr(model, "hf_device_map", None) or {}).values()
    devices = sorted({str(where) for where in found})
    return devices if len(devices) > 1 or "disk" in devices else []


def home(model: PreTrainedModel) -> torch.device:
    """Where its passes take their tokens and return their logits: with a device_map, where its
    hooks run the model; else where its first weight is."""
    where = getattr(vars(model).get("_hf_hook"), "execution_device", None)
    if where is not None:
        return torch.device(where)
    first: torch.device = next(model.parameters()).device
    return first


def refuse_unsupported(model: PreTrainedModel, name: str) -> None:
    """Raise Unsupported, with the reason, for models that cannot take a tree as a 4-D mask and
    position ids."""

    def refuse(reason: str) -> None:
        raise Unsupported(f"{name} ({type(model).__name__}) cannot score a token tree: {reason}")

    if not isinstance(model, PreTrainedModel):
        refuse("expected a transformers model (a PreTrainedModel with a language-model head)")
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        refuse("it is an encoder-decoder model; specdec decodes with decoder-only models")
    if model.get_output_embeddings() is None:
        refuse("it has no language-model head; load it with AutoModelForCausalLM")
    alibi = (
        getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "") == "alibi"
    )
    if alibi or model.config.model_type in ("bloom", "mpt"):
        refuse(
            "its positions are ALiBi biases, made from the 2-D mask inside the model, so a node "
            "cannot be placed by its depth"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    others = kinds - {SLIDING, FULL, CHUNKED}
    recurrent = {kind for kind in others if any(word in kind for word in RECURRENT)}
    if recurrent or getattr(model, "_is_stateful", False):
        refuse(
            f"it is recurrent ({', '.join(sorted(recurrent)) or 'stateful'}), and a recurrent "
            "state follows one path, not a tree"
        )
    if others:
        refuse(
            f"it has layers of {', '.join(sorted(others))}; masks for trees are made for {FULL}, "
            f"{SLIDING} and {CHUNKED}"
        )
    unsized = [
        kind.name
        for kind in layer_kinds(config)
        if kind.name != FULL and not isinstance(kind.size, int)
    ]
    if unsized:
        refuse(
            f"its config has {unsized[0]} layers and no one size of them in sliding_window or "
            "attention_chunk_size"
        )
    if model.config.model_type == "gpt_neo":
        refuse(
            "its attention masks by the place in the cache, where the nodes of a tree do not lie "
            "by their positions"
        )
    running = [device for device in spread(model) if device not in ("cpu", "disk")]
    if len(running) > 1:
        refuse(
            f"its layers run on several accelerators ({', '.join(running)}), which has not been "
            "tried; load it on one, the rest of its layers on the CPU or a disk"
        )
    parameters = inspect.signature(model.forward).parameters
    missing = [
        key
        for key in ("position_ids", "attention_mask", "past_key_values")
        if key not in parameters
    ]
    if missing and "kwargs" not in parameters:
        refuse(
            f"its forward takes no {', '.join(missing)}; recurrent and ALiBi models are of this "
            "kind"
        )
    if model.training:
        refuse(
            "it is in training mode, where dropout makes its law random; call model.eval() first"
        )
