"""Models whose weights have fewer bits: copies made by torchao, and what must hold for any of them,
whichever library has packed the weights.

Linear layers are packed. The embedding, the norms and the LM head stay as they are, as in
transformers' own quantised models, so drafters that share them work as before.

A node's logits must not depend on its siblings or on other rows. Weights do no harm, but
activations that are quantised too may have one scale for a whole pass. Each packed layer is
therefore run on a token alone and beside a much larger one.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from specdec.errors import Unsupported, did_you_mean
from specdec.models import attention

SCHEMES = ("int8", "int4")
GROUPS = (128, 64, 32)  # inputs of a layer that share a scale, in int4
Quantize = Any  # "int8" | "int4" | torchao's configuration object | None
LOUD = 1000  # how much larger the neighbour is than the token
ALONE = 0.05  # a difference that no kernel's rounding explains, of the largest output
FOREIGN = (  # what other libraries raise, assertions included
    AssertionError,
    ImportError,
    IndexError,
    RuntimeError,
    TypeError,
    ValueError,
)


def check_scheme(quantize: Quantize) -> None:
    """Raises ValueError for what is no setting of `quantize`, and where torchao is missing."""
    if quantize is None or (isinstance(quantize, str) and quantize in SCHEMES):
        return
    if not isinstance(quantize, str) and isinstance(quantize, _torchao().core.config.AOBaseConfig):
        return
    hint = did_you_mean(quantize, SCHEMES) if isinstance(quantize, str) else ""
    raise ValueError(
        f"quantize must be 'int8', 'int4', a torchao configuration such as "
        f"torchao.quantization.Int8WeightOnlyConfig(), or None; got {quantize!r}{hint}"
    )


def _torchao() -> Any:
    try:
        import torchao.quantization
    except ImportError as error:
        raise ValueError(
            f"quantize needs torchao ({error}): pip install 'specdec[quantize]'"
        ) from error
    return torchao


# ------------------------------------------------------------------------------------------ copies


def quantized(model: PreTrainedModel, quantize: Quantize, name: str) -> PreTrainedModel:
    """A copy with packed linear layers, which shares all other weights with the model. The model is
    left as it was.

    Raises ValueError for a model that is quantised already, and where the scheme has no kernel for
    the model's device, dtype or sizes.
    """
    check_scheme(quantize)
    if is_quantized(model):
        raise ValueError(
            f"{name} is quantised already, so quantize={quantize!r} is not for it; load it as it "
            "is, or load the weights that it was made from"
        )
    if model.dtype == torch.float64:
        raise ValueError(
            f"{name} is in float64, which torchao does not pack; load it in float32, bfloat16 or "
            "float16 (dtype=)"
        )
    made = attention.rewired(model, model.config.get_text_config()._attn_implementation)
    head = made.get_output_embeddings()
    # Routers that derive from it answer with more than a product.
    linear = [each for each in made.modules() if type(each) is nn.Linear and each is not head]
    for layer in linear:  # the copy's layers get weights of their own
        vars(layer)["_parameters"] = dict(layer._parameters)
    chosen = _config(quantize, linear, model.device.type)
    try:
        _torchao().quantization.quantize_(
            made, chosen, filter_fn=lambda layer, _: any(layer is each for each in linear)
        )
    except FOREIGN as error:
        raise ValueError(
            f"quantize={quantize!r} cannot pack {name}, in {_short(model.dtype)} on "
            f"{model.device} ({type(error).__name__}: {error}); take another scheme, dtype or "
            "device"
        ) from error
    return _saveable(made, chosen)


def _config(quantize: Quantize, linear: list[nn.Linear], device: str) -> Any:
    """torchao's configuration. Compilers' settings of the process stay as they are."""
    if not isinstance(quantize, str):
        return quantize
    quantization = _torchao().quantization
    if quantize == "int8":  # weights per output, activations per token
        return quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    sizes = {layer.in_features for layer in linear}
    group = next((n for n in GROUPS if all(size % n == 0 for size in sizes)), None)
    if group is None:
        raise ValueError(
            f"quantize='int4' packs {GROUPS[-1]} inputs at a time, and this model has layers of "
            f"{sorted(size for size in sizes if size % GROUPS[-1])[0]} inputs; take 'int8'"
        )
    if device == "cpu":
        from torchao.prototype.quantization.int4 import inference_workflow as on_cpu

        return on_cpu.PrototypeInt4WeightOnlyConfig(group, set_inductor_config=False)
    return quantization.Int4WeightOnlyConfig(
        group, set_inductor_config=False, int4_packing_format="tile_packed_to_4d"
    )


def _saveable(model: PreTrainedModel, chosen: Any) -> PreTrainedModel:
    """Known to transformers as quantised, so that save_pretrained writes safetensors, which `load`
    reads."""
    from transformers import TorchAoConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    model.config.quantization_config = TorchAoConfig(chosen)
    model.hf_quantizer = AutoHfQuantizer.from_config(
        model.config.quantization_config, pre_quantized=False
    )
    return model


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --------------------------------------------------------------------------------- packed weights


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether any library has packed its weights."""
    named = getattr(model.config, "quantization_config", None) is not None
    return named or any(True for _ in packed_layers(model))


def format_of(model: PreTrainedModel) -> str | None:
    """How its weights are packed, in a word; None if they are not."""
    for _, layer in packed_layers(model):
        weight = getattr(layer, "weight", None)
        plain = weight is None or type(weight) in (Tensor, nn.Parameter)
        return type(layer if plain else weight).__name__
    return None


def packed_layers(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers whose weights are packed, with their names."""
    for name, layer in model.named_modules():
        if isinstance(getattr(layer, "in_features", None), int) and _is_packed(layer):
            yield name, layer


def _is_packed(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if isinstance(weight, DTensor):  # a part of it: tensor parallel
        weight = weight.to_local()
    if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter):
        return True
    return not weight.is_floating_point() or weight.element_size() == 1


def numbers(weight: Any) -> Tensor | None:
    """A weight in floating point; None for a format that does not give it back."""
    if not isinstance(weight, Tensor):
        return None
    if type(weight) not in (Tensor, nn.Parameter):
        try:
            weight = weight.dequantize()
        except FOREIGN:
            return None
    return weight if weight.is_floating_point() and weight.element_size() > 1 else None


# -------------------------------------------------------------------------------------- what holds


def refuse_unfit(model: PreTrainedModel, name: str) -> None:
    """Raise Unsupported for a quantised model under which a token's values depend on other tokens
    of a pass, and ValueError for one that was cast after it was packed."""
    check_dtype(model, name)
    settings = getattr(model.config, "quantization_config", None) or {}
    settings = settings if isinstance(settings, dict) else vars(settings)
    if any(settings.get(key) for key in ("load_in_8bit", "_load_in_8bit")) and settings.get(
        "llm_int8_threshold"
    ):
        raise Unsupported(
            f"{name}: bitsandbytes' LLM.int8() computes a column in 16 bits as soon as any token "
            "of a pass is large in it, so a node's logits would depend on its siblings and on "
            "other rows. Load it with BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0)"
        )
    for path, layer in packed_layers(model):
        try:
            off = _beside_a_loud_one(layer, model)
        except FOREIGN as error:
            raise Unsupported(
                f"{name}: {path} does not run, in {_short(model.dtype)} on {model.device} "
                f"({type(error).__name__}: {error}). Its weights are packed "
                f"({format_of(model)}) without a kernel for that; "
                "take another scheme, dtype or device"
            ) from error
        if not off <= ALONE:
            raise Unsupported(
                f"{name}: {path} gives a token other values when a larger one is in the same pass "
                f"(off by {off:.0%}): its scheme has one scale for the activations of a whole "
                "pass, so a node's logits would depend on its siblings and on other rows. "
                "Quantise activations per token (quantize='int8'), or weights alone"
            )


def check_dtype(model: PreTrainedModel, name: str) -> None:
    """Raise ValueError for packed weights that were made in another dtype than the model has."""
    for path, layer in packed_layers(model):
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or type(weight) in (Tensor, nn.Parameter):
            continue
        if weight.is_floating_point() and weight.dtype != model.dtype:
            raise ValueError(
                f"{name} was quantised in {_short(weight.dtype)} ({path}) and is in "
                f"{_short(model.dtype)} now, so a run would mix both; load it in one dtype and "
                "quantise it there"
            )


@torch.inference_mode()
def _beside_a_loud_one(layer: nn.Module, model: PreTrainedModel) -> float:
    """How much a layer's values for a token change beside a much larger token, as a share of the
    largest."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 2, int(layer.in_features), generator=random)  # type: ignore[arg-type]
    own = [*layer.parameters(), *layer.buffers()]
    tokens = tokens.to(own[0].device if own else model.device, model.dtype)
    tokens[:, 1] *= LOUD
    alone, beside = layer(tokens[:, :1]), layer(tokens)[:, :1]
    largest = float(alone.abs().max())
    off = float((beside - alone).abs().max())
    return off / largest if largest else off  # extra layers give zeros
