"""The `speculators` layout, which vLLM serves: its config.json, read and written.

It names the type of head, the verifier (here: the target), how to propose, and the layers whose
entering states are read. The config of the head's own layers is under `transformer_layer_config`.
The layers are called layers.0, layers.1 and so on, also in heads of one layer. Source: the configs
that the vLLM project's `speculators` library writes and vLLM reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from specdec.errors import integer
from specdec.interfaces import Tap

TYPE, LAYERS = "speculators_model_type", "transformer_layer_config"
EAGLE3_NAMES = {"midlayer.": "layers.0."}  # native -> here
ARCHITECTURES = {  # what serves each type, and the family of the layers that it builds
    "eagle3": ("Eagle3Speculator", "llama"),
    "dflash": ("DFlashSpeculator", "qwen3"),
    "dspark": ("DSparkSpeculator", "qwen3"),
}
# types that are read, and the drafter that uses such heads
DRAFTERS = {**{kind: kind for kind in ARCHITECTURES}, "peagle": "eagle3", "mtp": "mtp"}
READ = tuple(DRAFTERS)
NOT_OURS = ("verifier_norm.weight", "verifier_lm_head.weight")  # copies that training used


def type_of(config: Mapping[str, Any]) -> str | None:
    """The type of head that a config in this layout names. None for other layouts."""
    if TYPE not in config and "speculators_config" not in config:
        return None
    return str(config.get(TYPE) or _inside(config).get("algorithm"))


def verifier_of(config: Mapping[str, Any]) -> str | None:
    """The target that a config in this layout names."""
    verifier = _inside(config).get("verifier")
    name = verifier.get("name_or_path") if isinstance(verifier, dict) else None
    return None if name is None else str(name)


def tokens_of(config: Mapping[str, Any]) -> int | None:
    """How many tokens a server drafts per round unless it is told otherwise."""
    methods = _inside(config).get("proposal_methods")
    first = methods[0] if isinstance(methods, list) and methods else None
    tokens = first.get("speculative_tokens") if isinstance(first, dict) else None
    return None if tokens is None else integer("speculative_tokens", tokens, 1)


def _inside(config: Mapping[str, Any]) -> dict[str, Any]:
    inside = config.get("speculators_config")
    return inside if isinstance(inside, dict) else {}


def advice(kind: str, wanted: str) -> str:
    """The end of an error: what to do with a head of type `kind` that was given to the drafter
    `wanted`."""
    if kind in READ:
        drafter = DRAFTERS[kind]
        return "" if drafter == wanted else f"; load it with the drafter {drafter!r}"
    return f"; no drafter here reads this type. Those that are read: {', '.join(READ)}"


def flattened(config: Mapping[str, Any], needed: Sequence[str]) -> dict[str, Any]:
    """The same config with the layers' settings beside the head's, as other layouts have them.
    Raises ValueError for what is missing."""
    missing = [key for key in (LAYERS, *needed) if config.get(key) is None]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}, which the speculators layout has")
    layers = config[LAYERS]
    if not isinstance(layers, dict):
        raise ValueError(f"{LAYERS} must be an object, got {layers!r}")
    # `model_type` outside names the library's own kind of config.
    own = {key: value for key, value in config.items() if key not in (LAYERS, "model_type")}
    return {**layers, **own}


def written(
    kind: str,
    layers: Mapping[str, Any],
    vocabulary: int,
    taps: Sequence[Tap],
    verifier: str,
    architectures: Sequence[str],
    dtype: str,
    tokens: int,
    **own: Any,
) -> dict[str, Any]:
    """config.json of a head of this type. layers: as `specdec.heads.decoder_layer.layer_config`
    gives it; verifier: the target's name or path; tokens: how many a server drafts per round unless
    it is told; own: what this type alone has. Raises ValueError for what the layout has no place
    for."""
    architecture, family = ARCHITECTURES[kind]
    if layers["model_type"] != family:
        raise ValueError(
            f"the head's layers are of the family {layers['model_type']!r}; those who serve "
            f"{kind} heads of this layout build {family!r} layers from it, which have other "
            f"weights or other attention. Train the head for a target of the family {family!r}"
        )
    if not all(isinstance(tap, int) for tap in taps):
        raise ValueError(
            f"the head reads {list(taps)}; the layout has a place for the numbers of layers only"
        )
    rope = dict(layers.get("rope_parameters") or {})
    # what readers before transformers 5 know
    older = {"rope_theta": rope.get("rope_theta", 10000.0), "rope_scaling": None}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        "architectures": [architecture],
        TYPE: kind,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
            "verifier": {"name_or_path": verifier, "architectures": list(architectures)},
        },
        **own,
        "target_hidden_size": None,
        "tie_word_embeddings": False,
        "dtype": dtype,
        LAYERS: {**layers, **older, "vocab_size": vocabulary, "tie_word_embeddings": False},
    }
