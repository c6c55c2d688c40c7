"""Block heads in the layouts that others publish: the releases of DFlash (2602.06036) and DSpark
(2607.05147), and `speculators`.

Two conventions differ by one, and a wrong reading still drafts, only badly:

             layers                                block_size
    ours     `taps`: the layers that states enter  `block`: tokens that are guessed
    DFlash   `target_layer_ids`: that they leave   the root counted, which guesses nothing
    DSpark   `target_layer_ids`: that they leave   the root counted, which guesses too
    speculators   `aux_hidden_state_layer_ids`: that they enter
                  the root counted; whether it guesses is `sample_from_anchor`
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specdec.errors import integer
from specdec.heads import speculators
from specdec.heads.decoder_layer import published_layers
from specdec.heads.files import Published, renamed
from specdec.heads.head import EMBEDDING, LM_HEAD
from specdec.models.support import SLIDING

KINDS = ("dflash", "dspark")
VALUES = {  # config keys for which only these values work here, and what another one means
    "projector_type": ((None, *KINDS), "corrects its laws by another network than dspark's"),
    "causal": ((None, False), "has blocks whose tokens see earlier ones only"),
    "is_causal": ((None, False), "has blocks whose tokens see earlier ones only"),
}
MARKOV_VALUES = {
    "markov_head_type": ((None, "vanilla"), "has a Markov head that also sees the states"),
    "enable_confidence_head": ((None, True), "has no confidence head"),
}
DSPARK_NAMES = {  # ours -> the published checkpoints'
    "markov_head.W1": "markov_head.markov_w1.weight",
    "markov_head.W2": "markov_head.markov_w2.weight",  # transposed
    "confidence_head.": "confidence_head.proj.",
}


def kind_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str | None:
    """Which of KINDS a folder holds; None for neither."""
    named = speculators.type_of(config)
    if named is not None:
        return named if named in KINDS else None
    if "dflash_config" not in config and "target_layer_ids" not in config:
        return None
    markov = config.get("markov_rank") or any(name.startswith("markov_head.") for name in weights)
    return "dspark" if markov else "dflash"


def published(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], from_anchor: bool
) -> Published:
    """What such a folder holds. from_anchor: whether the root guesses, where the config does not
    say it. Raises ValueError for what is missing, and for what these heads cannot do."""
    if speculators.type_of(config):
        needed = ("draft_vocab_size", "block_size", "aux_hidden_state_layer_ids", "mask_token_id")
        flat = {"model_type": "qwen3", **speculators.flattened(config, needed)}
        if flat.get("vocab_size") is None:
            raise ValueError(f"{speculators.LAYERS} lacks vocab_size, the target's vocabulary")
        taps = _layers(flat, "aux_hidden_state_layer_ids")
        _check_windows(flat)
    else:
        flat = _of_a_release(config)
        taps = [layer + 1 for layer in _layers(flat, "target_layer_ids")]
    _check_values(flat, VALUES)
    vocabulary, hidden = flat["vocab_size"], flat.get("hidden_size")
    if flat.get("draft_vocab_size") not in (None, vocabulary):
        raise ValueError(
            f"the head has a vocabulary of its own, of {flat['draft_vocab_size']} tokens; here "
            f"block heads guess all of the target's ({vocabulary})"
        )
    if flat.get("target_hidden_size") not in (None, hidden):
        raise ValueError(
            f"the head is {hidden} wide and its target {flat['target_hidden_size']}; here both "
            "are the same"
        )
    from_anchor = bool(flat.get("sample_from_anchor", from_anchor))
    settings = {
        "layers": published_layers(flat),
        "vocabulary": vocabulary,
        "taps": taps,
        "block": _block(flat["block_size"], from_anchor),
        "mask_token": flat["mask_token_id"],
        "from_anchor": from_anchor,
    }
    kept = {name: weight for name, weight in weights.items() if name not in speculators.NOT_OURS}
    if "d2t" in kept and not kept["d2t"].any():  # the head knows all tokens: no table is needed
        kept = {name: weight for name, weight in kept.items() if name not in ("d2t", "t2d")}
    shared = tuple(name for name in (EMBEDDING, LM_HEAD) if name in kept)
    return Published(settings, kept, shared=shared, target_layers=config.get("num_target_layers"))


def with_markov(found: Published, config: Mapping[str, Any]) -> Published:
    """The same with what DSpark adds: the rank, and its weights as ours are."""
    config = {**config, **(config.get("dflash_config") or {})}
    _check_values(config, MARKOV_VALUES)
    weights, matrices = dict(found.weights), ("markov_head.W1", "markov_head.W2")
    names = {} if any(name in weights for name in matrices) else DSPARK_NAMES
    first, second = (renamed(name, names) for name in matrices)
    rank = config.get("markov_rank")
    if first in weights and weights[first].dim() == 2:
        rank = weights[first].shape[1]
    if rank is None:
        raise ValueError(f"no matrix {first}, and the config lacks markov_rank")
    if names and second in weights:
        weights[second] = weights[second].T
    guess = weights.get("confidence_head.proj.weight")
    if guess is not None and config.get("confidence_head_with_markov") is False:
        # It does not look at the token before: its weights there are 0.
        weights["confidence_head.proj.weight"] = torch.nn.functional.pad(guess, (0, rank))
    settings = {**found.settings, "rank": rank}
    return found._replace(settings=settings, weights=weights, names=names)


def _check_values(
    config: Mapping[str, Any], known: Mapping[str, tuple[tuple[Any, ...], str]]
) -> None:
    if unable := [why for key, (values, why) in known.items() if config.get(key) not in values]:
        raise ValueError(f"the head {' and '.join(unable)}, which is not supported here")


def _of_a_release(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what `dflash_config` holds beside the rest; DSpark's has it there anyway."""
    own = config.get("dflash_config") or {}
    inside = "dflash_config." if "dflash_config" in config else ""
    flat = {**config, **own}
    lacking = [
        f"{place}{key}"
        for key, place in (
            ("target_layer_ids", inside),
            ("mask_token_id", inside),
            ("block_size", ""),
            ("vocab_size", ""),
        )
        if flat.get(key) is None
    ]
    if lacking:
        raise ValueError(f"the config lacks {', '.join(lacking)}")
    return flat


def _layers(config: Mapping[str, Any], key: str) -> list[int]:
    """The numbers of layers under a key."""
    found = config[key]
    if not isinstance(found, list) or not found:
        raise ValueError(f"{key} must be a list of numbers of layers, got {found!r}")
    return [integer(key, layer) for layer in found]


def _block(given: Any, from_anchor: bool) -> int:
    """Tokens that a block of `block_size` places guesses."""
    least = 1 if from_anchor else 2
    size = integer("block_size", given)
    if size < least:
        guesses = "guesses too" if from_anchor else "guesses nothing"
        raise ValueError(
            f"block_size is {size}; the root counts and {guesses}, so a block that guesses a token "
            f"has at least {least}"
        )
    return size - int(not from_anchor)


def _check_windows(config: Mapping[str, Any]) -> None:
    """Raise ValueError where a layer has a window and sees earlier tokens of the block only."""
    windows = SLIDING in (config.get("layer_types") or ())
    if windows and not config.get("sliding_window_non_causal", False):
        raise ValueError(
            "the head has layers with a sliding window, whose block tokens see earlier ones only; "
            "here all tokens of a block see one another (sliding_window_non_causal)"
        )
