"""Attention of a few queries over a memory. Query heads that share a KV head are folded into the
query length, so grouped K and V are never copied per query head. (transformers' own SDPA path makes
these copies whenever there is a mask.)

Registered with transformers under the name `NAME`. It runs on a shallow copy of the model,
`rewired`, so the user's model is never written to.

Letters: B rows, H query heads, K KV heads, G = H / K, N queries, T slots, D head size.
"""

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from specdec.errors import Unsupported

NAME, NOTED = "specdec", "specdec_noted"
FEW = 48  # folded queries up to which one fused SDPA call beats two matrix products on a CPU
AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)

_weights: ContextVar[list[Tensor] | None] = ContextVar("noted_weights", default=None)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (B, H, N, D), key and value (B, K, T, D), additive mask (B, 1, N, T). No mask means:
    one query that sees everything, or a causal pass over an empty memory. Returns (B, N, H, D)."""
    rows, heads, queries, size = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    scale = size**-0.5 if scaling is None else scaling
    if attention_mask is None and queries > 1:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1
        )
        return out.transpose(1, 2).contiguous(), None
    folded = query.reshape(rows, kv_heads, groups * queries, size)
    if query.device.type != "cpu" or groups * queries <= FEW:
        mask = _fold(attention_mask, groups)
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    else:
        scores = torch.matmul(folded * scale, key.transpose(2, 3))
        if attention_mask is not None:
            scores = scores.view(rows, heads, queries, -1).add_(attention_mask).view_as(scores)
        out = torch.matmul(scores.softmax(-1), value)
    out = out.reshape(rows, heads, queries, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None  # some families view it


def attend_noted(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The same; `noted_weights` collects what the queries attend to, (B, K, T), added up."""
    rows, heads, queries, size = query.shape
    groups = heads // key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    folded = query.reshape(rows, key.shape[1], groups * queries, size)
    scores = torch.matmul(folded * scale, key.transpose(2, 3))
    scores = scores.view(rows, heads, queries, -1).add_(attention_mask).view_as(scores)
    weights = scores.softmax(-1)
    noted = _weights.get()
    if noted is not None:
        noted.append(weights.sum(2))
    out = torch.matmul(weights, value).reshape(rows, heads, queries, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None


@contextmanager
def noted_weights() -> Iterator[list[Tensor]]:
    """What each layer in turn attended to (`attend_noted`); each thread its own."""
    noted: list[Tensor] = []
    token = _weights.set(noted)
    try:
        yield noted
    finally:
        _weights.reset(token)


def _fold(mask: Tensor | None, groups: int) -> Tensor | None:
    """The mask repeated for each member of a group, made once per pass: the layers of a pass share
    one mask object. A compiler that traces the pass does this by itself."""
    if mask is None or groups == 1:
        return mask
    if torch.compiler.is_compiling():
        return mask.repeat(1, 1, groups, 1)
    folded: Tensor | None = getattr(mask, "folded", None)
    if folded is None:
        folded = mask.repeat(1, 1, groups, 1)
        mask.folded = folded  # type: ignore[attr-defined]
    return folded


AttentionInterface.register(NAME, attend)
AttentionInterface.register(NOTED, attend_noted)


# -------------------------------------------------------------------------------------- choosing


def own(model: PreTrainedModel) -> str:
    """The attention for a pass as the user's model would run it: its own, except that SDPA or eager
    replaces flash attention, which not every device and dtype supports."""
    current = str(model.config.get_text_config()._attn_implementation)
    if current in ("eager", "sdpa"):
        return current
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


def choose(model: PreTrainedModel) -> str:
    """Ours wherever attention goes through transformers' interface and SDPA is allowed; else SDPA
    or eager, which take any mask. (An attention without 4-D masks, such as flash attention, is
    never kept.)"""
    current = model.config.get_text_config()._attn_implementation
    interface = getattr(model, "_supports_attention_backend", False)
    ours = getattr(model, "_supports_sdpa", False) and interface
    if current == "eager" or ours:
        return "eager" if current == "eager" else NAME
    return "sdpa" if current == "sdpa" else "eager"


# -------------------------------------------------------------------------------- shallow copies


def rewired(model: AnyModel, implementation: str) -> AnyModel:
    """The model with another attention: the same weights in other shells, with configs of their
    own.

    Raises Unsupported where transformers no longer keeps its choice of attention in the config.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    text._attn_implementation = implementation
    if text._attn_implementation != implementation:
        raise _moved("its configs no longer take `_attn_implementation`")
    before, after = _configs(model.config), _configs(config)
    if len(before) != len(after):
        raise _moved("copies of its configs differ from the originals")
    new_configs = {id(old): new for old, new in zip(before, after, strict=True)}
    shells: dict[int, nn.Module] = {}
    copied: AnyModel = _rewired(model, new_configs, shells)
    return copied


def _rewired(
    module: Any, configs: dict[int, PreTrainedConfig], shells: dict[int, nn.Module]
) -> Any:
    if id(module) in shells:
        return shells[id(module)]
    shell = shells[id(module)] = shallow(module)
    for name, value in vars(module).items():
        if id(value) in configs:
            setattr(shell, name, configs[id(value)])
    for name, child in module._modules.items():
        if child is not None:
            shell._modules[name] = _rewired(child, configs, shells)
    return shell


def shallow(module: Any) -> Any:
    """The same weights and submodules in another shell: putting other submodules or hooks into it
    changes only this one. What is bound to the module (accelerate's hooks) is bound to the
    shell."""
    shell = copy.copy(module)
    own_parts = vars(shell)
    for name, value in vars(module).items():
        if name == "_modules" or name.endswith("_hooks") or "_hooks_" in name:
            if isinstance(value, dict):
                own_parts[name] = copy.copy(value)
        elif isinstance(value, types.MethodType) and value.__self__ is module:
            own_parts[name] = types.MethodType(value.__func__, shell)
        elif isinstance(value, functools.partial) and value.args[:1] == (module,):
            own_parts[name] = functools.partial(
                value.func, shell, *value.args[1:], **value.keywords
            )
    return shell


def _configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A config and those inside it, always in the same order."""
    found = [config]
    for _, value in sorted(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            found += _configs(value)
    return found


def _moved(what: str) -> Unsupported:
    import transformers

    return Unsupported(
        f"this version of transformers ({transformers.__version__}) has changed what specdec leans "
        f"on: {what}. The versions that work are in constraints.txt"
    )
