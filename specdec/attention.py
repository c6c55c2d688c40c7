"""Attention of a few queries over a cache. Query heads that share a KV head are folded into the query length, so that
grouped K and V are never copied out per query head, which transformers' own SDPA path does whenever there is a mask.

Registered with transformers under the name `NAME`; models choose it while `TransformersLM` runs them.

Letters: B rows, H query heads, K KV heads, G = H / K, N queries, T slots, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel

NAME = "specdec"
FEW = 48  # folded queries up to which one fused SDPA call beats two matrix products on a CPU (measured, README)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query (B, H, N, D), key and value (B, K, T, D), additive mask (B, 1, N, T). No mask means: one query that sees
    everything, or a causal pass over an empty cache. Returns (B, N, H, D)."""
    rows, heads, queries, size = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    scale = size**-0.5 if scaling is None else scaling
    if attention_mask is None and queries > 1:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1)
        return out.transpose(1, 2).contiguous(), None
    folded = query.reshape(rows, kv_heads, groups * queries, size)
    if query.device.type != "cpu" or groups * queries <= FEW:
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=_fold(attention_mask, groups), scale=scale)
    else:
        scores = torch.matmul(folded * scale, key.transpose(2, 3))
        if attention_mask is not None:
            scores = scores.view(rows, heads, queries, -1).add_(attention_mask).view_as(scores)
        out = torch.matmul(scores.softmax(-1), value)
    return out.reshape(rows, heads, queries, value.shape[-1]).transpose(
        1, 2
    ).contiguous(), None  # some families view it


def _fold(mask: Tensor | None, groups: int) -> Tensor | None:
    """The mask repeated for each member of a group, made once per pass: the layers of a pass share one mask object."""
    if mask is None or groups == 1:
        return mask
    folded = getattr(mask, "folded", None)
    if folded is None:
        folded = mask.repeat(1, 1, groups, 1)
        mask.folded = folded  # type: ignore[attr-defined]
    return folded


def plain(model: PreTrainedModel) -> str:
    """The attention for a pass as the user's model would make it: its own, unless that is one that not every device and dtype
    has (flash attention), for which SDPA or eager stand in."""
    current = str(model.config.get_text_config()._attn_implementation)
    if current in ("eager", "sdpa"):
        return current
    return "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"


CHOICE = "_attn_implementation_internal"  # where a transformers config keeps its choice


def choose(model: PreTrainedModel) -> str:
    """Ours wherever attention goes through transformers' interface and SDPA is allowed; else SDPA or eager, which take any
    mask. (An attention without 4-D masks, such as flash attention, is never kept.)"""
    current = model.config.get_text_config()._attn_implementation
    ours = getattr(model, "_supports_sdpa", False) and getattr(model, "_supports_attention_backend", False)
    if current == "eager" or ours:
        return "eager" if current == "eager" else NAME
    return "sdpa" if current == "sdpa" else "eager"


@contextmanager
def using(config: Any, implementation: str) -> Iterator[None]:
    """A model as it is, with another attention for the time of a pass. `config` is the text config that its layers share."""
    settings = vars(config)  # the property behind this key costs more than a layer of a small model
    before = settings[CHOICE]
    settings[CHOICE] = implementation
    try:
        yield
    finally:
        settings[CHOICE] = before


AttentionInterface.register(NAME, attend)
