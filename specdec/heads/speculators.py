"""The `speculators` layout of EAGLE-3 heads, which vLLM serves: its config.json, read and written.

In addition to the native layout, it names the verifier (here: the target), how to propose, and the
layers whose entering states are read. The layer's own config is under `transformer_layer_config`,
and its keys begin with layers.0 instead of midlayer. Source: the configs that the vLLM project's
`speculators` library writes and vLLM reads.
"""

from collections.abc import Sequence
from typing import Any

from specdec.interfaces import Tap

ALGORITHM = "eagle3"
NAMES = {"midlayer.": "layers.0."}  # native -> here
NOT_HERE = {
    "fc_norm": "norms each tap before it is fused",
    "norm_output": "feeds its normed output back",
    "embed_requires_grad": "has a trained embedding of its own",
}


def flattened(config: dict[str, Any]) -> dict[str, Any]:
    """The same config in the native layout: the layer's settings beside the head's. Raises
    ValueError for what is missing or not an EAGLE-3 head."""
    found = config.get("speculators_model_type")
    if found != ALGORITHM:
        raise ValueError(
            f"a speculators head of type {found!r}; of this layout, {ALGORITHM!r} can be read"
        )
    missing = [
        key
        for key in ("transformer_layer_config", "draft_vocab_size", "norm_before_residual")
        if config.get(key) is None
    ]
    if missing:
        raise ValueError(f"the config lacks {', '.join(missing)}, which the speculators layout has")
    layer = config["transformer_layer_config"]
    if not isinstance(layer, dict):
        raise ValueError(f"transformer_layer_config must be an object, got {layer!r}")
    return {
        **layer,
        **{key: value for key, value in config.items() if key != "transformer_layer_config"},
    }


def written(
    layer: dict[str, Any],
    vocabulary: int,
    draft_vocabulary: int,
    taps: Sequence[Tap],
    verifier: str,
    architectures: Sequence[str],
    norms: dict[str, bool],
    dtype: str,
    tokens: int = 5,
) -> dict[str, Any]:
    """config.json. layer: as `specdec.heads.decoder_layer.layer_config` gives it; verifier: the
    target's name or path; tokens: how many a server drafts per round unless it is told. Raises
    ValueError for what the layout has no place for."""
    family = layer["model_type"]
    if family != "llama":
        raise ValueError(
            f"the head's layer is of the family {family!r}; those who serve the layout build a "
            "Llama layer from it, which has other weights or other attention"
        )
    if not all(isinstance(tap, int) for tap in taps):
        raise ValueError(
            f"the head reads {list(taps)}; the layout has a place for the numbers of layers only"
        )
    rope = dict(layer.get("rope_parameters") or {})
    # what readers before transformers 5 know
    older = {"rope_theta": rope.get("rope_theta", 10000.0), "rope_scaling": None}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": ALGORITHM,
        "speculators_config": {
            "algorithm": ALGORITHM,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": tokens}],
            "verifier": {"name_or_path": verifier, "architectures": list(architectures)},
        },
        "draft_vocab_size": draft_vocabulary,
        **norms,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": list(taps) or None,
        "tie_word_embeddings": False,
        "dtype": dtype,
        "transformer_layer_config": {
            **layer,
            **older,
            "vocab_size": vocabulary,
            "tie_word_embeddings": False,
        },
    }
