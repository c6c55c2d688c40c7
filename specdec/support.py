"""Which transformers models can score a tree, and what their attention layers see. Reasons for a refusal are said here."""

import inspect
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel


class LayerKind(NamedTuple):
    """One kind of attention layer: all positions, a sliding window, or chunks of positions."""

    name: str
    size: int | None

    def reaches(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query at one position may look at a key at another (earlier) one; broadcasting."""
        assert self.size is not None
        if self.name == "chunked_attention":
            return query // self.size == key // self.size
        return query - key < self.size


SLIDING, FULL, CHUNKED = "sliding_attention", "full_attention", "chunked_attention"


def layer_kinds(config: Any) -> list[LayerKind]:
    """The kinds of attention layers of a text config, one entry per kind (hybrid models have several)."""
    window = getattr(config, "sliding_window", None)
    sizes = {FULL: None, SLIDING: window, CHUNKED: getattr(config, "attention_chunk_size", None)}
    named = list(dict.fromkeys(getattr(config, "layer_types", None) or [SLIDING if window else FULL]))
    return [LayerKind(name, sizes[name]) for name in named]


def refuse_unsupported(model: PreTrainedModel, name: str) -> None:
    """Raise ValueError, with the reason, for models that cannot take a tree as a 4-D mask and position ids."""

    def refuse(reason: str) -> None:
        raise ValueError(f"{name} ({type(model).__name__}) cannot score a token tree: {reason}")

    config = model.config.get_text_config()
    if not isinstance(model, PreTrainedModel):
        refuse("expected a transformers model (a PreTrainedModel with a language-model head)")
    if model.config.is_encoder_decoder:
        refuse("it is an encoder-decoder model; specdec decodes with decoder-only models")
    if model.get_output_embeddings() is None:
        refuse("it has no language-model head; load it with AutoModelForCausalLM")
    alibi = getattr(config, "alibi", False) or getattr(config, "position_embedding_type", "") == "alibi"
    if alibi or model.config.model_type in ("bloom", "mpt"):
        refuse(
            "its positions are ALiBi biases, made from the 2-D mask inside the model, so a node cannot be placed by its depth"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    recurrent = kinds - {SLIDING, FULL, CHUNKED}
    if recurrent or getattr(model, "_is_stateful", False):
        refuse(
            f"it is recurrent ({', '.join(sorted(recurrent)) or 'stateful'}), and a recurrent state follows one path, not a tree"
        )
    parameters = inspect.signature(model.forward).parameters
    missing = [key for key in ("position_ids", "attention_mask", "past_key_values") if key not in parameters]
    if missing and "kwargs" not in parameters:
        refuse(f"its forward takes no {', '.join(missing)}; recurrent and ALiBi models are of this kind")
    if model.training:
        refuse("it is in training mode, where dropout makes its law random; call model.eval() first")
