"""Models by name: the bundled demo family, a local path, a hub id, or a model that the user already
has."""

import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specdec.errors import Refused, integer, misspelt_arguments_are_named, some, switch
from specdec.interfaces import KV, Compile
from specdec.models.compiled import compile_mode
from specdec.models.kept import kept
from specdec.models.language_model import TransformersLM
from specdec.models.quantized import Quantize, check_scheme, is_quantized, quantized
from specdec.models.support import spread

DEMO = Path(__file__).resolve().parent.parent / "demo"
MOST_LAYERS = 1000  # to append: each is a copy of the last one's weights
BUNDLED = {"demo": DEMO / "target", "demo-draft": DEMO / "draft"}

Loadable = (
    str | Path | PreTrainedModel | tuple[PreTrainedModel, PreTrainedTokenizerBase] | TransformersLM
)


@misspelt_arguments_are_named
def load(
    name: Loadable,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    context: int | None = None,
    extra_layers: int = 0,
    compile: Compile = None,
    quantize: Quantize = None,
    quantization_config: Any = None,
    device_map: Any = None,
    tp_plan: Any = None,
    kv: KV | str | None = None,
) -> TransformersLM:
    """A language model that can score token trees.

    name: "demo" (about 10 M parameters, Python source), "demo-draft", a local folder, a hub id, a
    transformers model, or (model, tokenizer). device: CUDA where there is one, unless given. dtype:
    that of the checkpoint, unless given. context: more positions than it was trained for, by YaRN
    (2309.00071), which stretches its rotary positions: another law. extra_layers: append layers
    whose output projections are zero: bit for bit the same logits at the cost of a deeper model, so
    that the cost ratio of target and drafter becomes a knob. compile: True compiles passes over few
    tokens when a run first needs them, and is an error where that is impossible if "require". A
    draft model for which it is None does as its target does. quantize: "int8" (weights, and
    activations per token), "int4" (weights) or a torchao configuration packs the linear layers of a
    copy. quantization_config, device_map and tp_plan go to transformers, whose loader then places
    the weights; a device_map may spread them over several devices (docs/quantized.md). A model that
    was saved quantised is loaded as it is. kv: how sessions keep keys and values: "int8" for 8
    bits, "paged", or a `specdec.KV`.

    Raises ValueError for a folder without safetensors weights (pickles are refused), for weights
    that are missing, left over or of another shape than the config says, and for models that cannot
    score a tree.
    """
    check_scheme(quantize)
    if isinstance(name, TransformersLM):
        keeping = name.kv if kv is None else KV.asked(kv)
        if quantize is None:
            return name if kv is None else name.with_kv(keeping)
        if name.ranks > 1:
            raise Refused(
                f"{name.ranks} processes hold {name.name} between them, and quantize packs whole "
                "layers; load the target without tp_plan"
            )
        _refuse_copies(name.model, name.name, {"quantize": quantize})
        packed = quantized(name.model, quantize, name.name)
        title = f"{name.name} ({quantize if isinstance(quantize, str) else 'quantised'})"
        layers = name.extra_layers
        return TransformersLM(packed, name.tokenizer, title, layers, name.compile, keeping)
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    integer("extra_layers", extra_layers, 0, MOST_LAYERS)
    switch("trust_remote_code", trust_remote_code)
    compile_mode(compile)
    keeping = KV.asked(kv)
    given = {
        "device": device,
        "dtype": dtype,
        "revision": revision,
        "attn_implementation": attn_implementation,
        "quantization_config": quantization_config,
        "device_map": device_map,
        "tp_plan": tp_plan,
        "context": context,
    }
    placed = [key for key in ("device_map", "tp_plan") if given[key] is not None]
    if placed and device is not None:
        raise ValueError(
            f"device={device!r} and {placed[0]} were both given; {placed[0]} places the weights, "
            "so leave device out"
        )
    whole = {"quantize": quantize, "extra_layers": extra_layers, "compile": compile}
    if tp_plan is not None and (clash := [key for key, value in whole.items() if value]):
        raise ValueError(
            f"{clash[0]} and tp_plan were both given; {clash[0]} is for models that one process "
            "holds: leave one out"
        )
    if quantize is not None and quantization_config is not None:
        raise ValueError(
            "quantize and quantization_config were both given; quantize is ours (torchao), "
            "quantization_config is transformers' own: leave one out"
        )
    by_name = isinstance(name, (str, Path))
    if unused := [key for key, value in given.items() if value is not None and not by_name]:
        raise ValueError(
            f"{', '.join(unused)}: for models that are loaded by name; this one is in memory, "
            "change it there"
        )
    if isinstance(name, tuple):
        if len(name) != 2 or not (name[1] is None or callable(name[1])):
            raise ValueError(
                "a target of two parts is (model, tokenizer), got "
                f"{tuple(type(part).__name__ for part in name)}"
            )
        model, tokenizer, title = name[0], name[1], type(name[0]).__name__
    elif isinstance(name, (str, Path)):
        title = str(name)
        options = {
            key: given[key]
            for key in ("attn_implementation", "quantization_config", "device_map")
            if given[key] is not None
        } | _sharding(tp_plan)
        model, tokenizer = _from_disk(title, dtype, revision, options, trust_remote_code, context)
        if not placed:
            model = _moved(model, device)
    else:
        model, tokenizer, title = name, None, type(name).__name__
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            "a target is 'demo', a path, a hub id, a transformers model or (model, tokenizer); got "
            f"{type(model).__name__}"
        )
    _refuse_copies(model, title, {"extra_layers": extra_layers, "quantize": quantize})
    if extra_layers:
        model = deepen(model, extra_layers)
    if quantize is not None:
        model = quantized(model, quantize, title)
    return TransformersLM(model, tokenizer, title, extra_layers, compile, keeping)


def _refuse_copies(model: PreTrainedModel, name: str, asked: Mapping[str, Any]) -> None:
    """Raise Refused for what makes new layers, where hooks belong to the old ones."""
    devices, wanted = spread(model), [key for key, value in asked.items() if value]
    if devices and wanted:
        raise Refused(
            f"{name} is spread over several devices ({', '.join(devices)}), and {wanted[0]} makes "
            "layers of its own; load it on one device, or leave it out"
        )


def _sharding(tp_plan: Any) -> dict[str, Any]:
    """The argument of from_pretrained. It has moved into an object between versions."""
    if tp_plan is None:
        return {}
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan=tp_plan)}
    except (ImportError, TypeError):
        return {"tp_plan": tp_plan}


def _moved(model: PreTrainedModel, device: str | torch.device | None) -> PreTrainedModel:
    """On the device. Loaders of packed weights may have chosen one, on which they stay unless
    another is asked for."""
    if device is None and getattr(model, "hf_device_map", None):
        return model
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        moved: PreTrainedModel = model.to(device)  # type: ignore[arg-type]
        return moved
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"the model cannot be moved to device {device!r}: {error}") from error


def load_kept(name: str | Path) -> TransformersLM:
    """`load(name)` for a drafter: one that was loaded before is shared (`specdec.models.kept`)."""
    folder = BUNDLED.get(str(name), Path(name).expanduser())
    return kept(("model", str(name)), folder, lambda: load(name))


def _from_disk(
    name: str,
    dtype: Any,
    revision: str | None,
    options: Mapping[str, Any],
    trust_remote_code: bool,
    context: int | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    folder: Path | None = BUNDLED.get(name, Path(name).expanduser())
    if folder is not None and os.path.isdir(folder):  # False, too, for names that no file can have
        _check_weights(folder)
        name = str(folder)
    elif name in BUNDLED or name.startswith((".", "/", "~")):
        raise ValueError(f"no model folder at {folder}")
    else:
        folder = None
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(
                f"dtype must be a torch dtype such as 'float32' or 'bfloat16', got {dtype!r}"
            )
        dtype = getattr(torch, dtype)
    config = _config(name, folder, hub)
    if config.is_encoder_decoder:
        raise ValueError(f"{name} cannot score a token tree: it is an encoder-decoder model")
    if context is not None:
        stretch(config.get_text_config(), context, name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype or "auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **hub,
            **options,
        )
    except OSError as error:
        raise _unread(name, folder, error) from error
    except SafetensorError as error:
        raise ValueError(
            f"{name}: a weights file is no whole safetensors file ({error}); copy it again"
        ) from error
    # a quantisation or an attention whose package is not installed; an index that is no JSON
    except (ImportError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load the weights of {name!r}: {error}") from error
    model, found = loaded
    check_loaded(name, found)
    return model.eval(), _tokenizer(name, folder, hub)


def _unread(name: str, folder: Path | None, error: OSError) -> ValueError:
    hint = "" if folder else ", neither a local folder nor a reachable hub id"
    return ValueError(f"cannot load {name!r}{hint}: {error}")


def _config(name: str, folder: Path | None, hub: Mapping[str, Any]) -> Any:
    """Raises ValueError for an invalid config, and for a broken file next to it that transformers
    would silently ignore."""
    try:
        config = AutoConfig.from_pretrained(name, **hub)
    except OSError as error:
        raise _unread(name, folder, error) from error
    except Exception as error:  # what a config's own checks raise is of many kinds
        raise ValueError(
            f"config.json of {name!r} describes no model that can be made: {error}"
        ) from error
    beside = folder / "generation_config.json" if folder else None
    if beside is not None and beside.exists():
        try:
            json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{beside} is no JSON ({error}); copy it again, or remove it and its "
                "end-of-sequence ids"
            ) from error
    return config


def stretch(config: Any, context: int, name: str) -> None:
    """Give a text config `context` positions, by YaRN. Raises ValueError for a model that has as
    many, or whose positions are not plain rotary ones."""
    trained = int(getattr(config, "max_position_embeddings", None) or 0)
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if integer("context", context, 1) <= trained:
        raise ValueError(
            f"context={context} is for more positions than {name} was trained for; it has {trained}"
        )
    if rope.get("rope_type") != "default":
        raise ValueError(
            f"context={context} stretches plain rotary positions (rope_type default), and {name} "
            f"has {rope.get('rope_type') or 'others'}; leave it out"
        )
    config.rope_parameters = {
        **rope,
        "rope_type": "yarn",
        "factor": context / trained,
        "original_max_position_embeddings": trained,
    }
    config.max_position_embeddings = context


# buffers that old files hold
OPTIONAL = re.compile(r"(inv_freq|masked_bias|\.attn\.bias|position_ids)$")


def check_loaded(name: str, found: Mapping[str, Any]) -> None:
    """Raise ValueError, naming keys, if weights and config do not belong together. transformers
    would fill a missing weight with random values and drop unknown ones.

    found: its loading info. It does not list tied weights, or weights that a family calls optional.
    """
    missing = sorted(key for key in found["missing_keys"] if not OPTIONAL.search(key))
    extra = sorted(key for key in found["unexpected_keys"] if not OPTIONAL.search(key))
    other = sorted(
        f"{key} is {tuple(stored)}, the config says {tuple(wanted)}"
        for key, stored, wanted in found["mismatched_keys"]
    )
    parts = [("missing", missing), ("not expected", extra), ("of another shape", other)]
    told = [f"{what}: {some(keys)}" for what, keys in parts if keys]
    if told or found.get("error_msgs"):
        raise ValueError(
            f"the weights of {name} do not belong to its config; "
            f"{'; '.join(told) or found['error_msgs']}. A model like that would decode with random "
            "layers: restore the file that was lost, or the config that the weights were saved "
            "with"
        )


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by name, as for `load`, without the model. Raises ValueError if
    there is none."""
    folder = BUNDLED.get(name, Path(name).expanduser())
    found = _tokenizer(str(folder) if folder.is_dir() else name, folder, {})
    if found is None:
        raise ValueError(
            f"no tokenizer of {name!r}: name 'demo', a model's folder, or a reachable hub id"
        )
    return found


def _tokenizer(
    name: str, folder: Path | None, hub: Mapping[str, Any]
) -> PreTrainedTokenizerBase | None:
    """None for a model without a tokenizer: prompts are ids then. Raises ValueError for a tokenizer
    that cannot be read."""
    there = [file for file in TOKENIZER_FILES if folder and (folder / file).exists()]
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **hub)
        return tokenizer
    except Exception as error:  # the tokenizers library raises Exception itself for broken files
        if not there and isinstance(error, (OSError, ValueError, KeyError)):
            return None
        raise ValueError(
            f"{name} has a tokenizer ({', '.join(there) or 'on the hub'}) that cannot be read "
            f"({type(error).__name__}: {error}); copy it again, or remove it and give prompts as "
            "ids"
        ) from error


def _check_weights(folder: Path) -> None:
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder} has no config.json; a model folder is what save_pretrained writes"
        )
    weight_files(
        folder,
        "model = AutoModelForCausalLM.from_pretrained(FOLDER); model.save_pretrained(FOLDER, "
        "safe_serialization=True)",
    )


def weight_files(folder: Path, convert: str) -> list[Path]:
    """The safetensors files of a folder. Pickles are refused; `convert` says how to convert
    them."""
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    pickles = [
        path.name
        for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
        for path in folder.glob(pattern)
    ]
    if pickles:
        raise ValueError(
            f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when it is "
            f"read; convert it once, where you trust it: {convert}"
        )
    raise ValueError(f"{folder} has a config.json but no weights (*.safetensors)")


def deepen(model: PreTrainedModel, extra_layers: int) -> PreTrainedModel:
    """A copy with `extra_layers` more layers that add exactly 0 to the stream: the same logits, bit
    for bit.

    Raises ValueError for families whose layers do not end in o_proj and down_proj, and for packed
    weights.
    """
    if is_quantized(model):
        raise ValueError(
            f"extra_layers copies layers and sets weights to zero, and those of "
            f"{type(model).__name__} are packed (quantised); load the weights that it was made "
            "from, with extra_layers and quantize"
        )
    model = copy.deepcopy(model)
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    projections = ("self_attn.o_proj", "mlp.down_proj")
    if layers is None or not all(_has(layers[-1], path) for path in projections):
        raise ValueError(
            f"extra_layers needs layers with {' and '.join(projections)}; {type(model).__name__} "
            "has none"
        )
    for _ in range(extra_layers):
        layer = copy.deepcopy(layers[-1])
        for path in projections:
            for weight in layer.get_submodule(path).parameters():
                nn.init.zeros_(weight)
        for module in layer.modules():
            if "layer_idx" in vars(module):
                module.layer_idx = len(layers)
            if "config" in vars(module):
                module.config = decoder.config  # one config for all layers, as in every other layer
        layers.append(layer)
    config = model.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = [*config.layer_types, *[config.layer_types[-1]] * extra_layers]
    config.num_hidden_layers += extra_layers
    return model


def _has(module: nn.Module, path: str) -> bool:
    try:
        return module.get_submodule(path) is not None
    except AttributeError:
        return False
