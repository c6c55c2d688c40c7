"""Attention of a tree's nodes over a long memory in two parts: the prefix, which all of them see,
needs no mask; the tree is small. Merged by log-sum-exp (as in FlashDecoding, 2311.01282). Timed
against the attention that passes use (`specdec.models.attention`).

Letters: H query heads, K KV heads, G = H / K, N nodes, L prefix, D head size. One row.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from specdec.models import attention


class Sizes(NamedTuple):
    """Of a model's attention."""

    heads: int
    kv_heads: int
    size: int
    layers: int

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        heads = int(config.num_attention_heads)
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        return cls(heads, kv_heads, int(size), int(config.num_hidden_layers))


class Inputs(NamedTuple):
    """Of one pass over N nodes after L tokens; the tree is binary."""

    query: Tensor  # (1, H, N, D)
    keys: list[Tensor]  # of each layer (1, K, L + N, D)
    values: list[Tensor]
    seen: Tensor  # (N, N) bool: ancestors

    @classmethod
    def random(cls, sizes: Sizes, context: int, nodes: int, dtype: torch.dtype) -> "Inputs":
        random = torch.Generator().manual_seed(0)

        def draw(heads: int, length: int) -> Tensor:
            return torch.randn(1, heads, length, sizes.size, generator=random).to(dtype)

        length = context + nodes
        seen = torch.eye(nodes, dtype=torch.bool)
        for node in range(1, nodes):
            seen[node] |= seen[(node - 1) // 2]
        keys, values = (
            [draw(sizes.kv_heads, length) for _ in range(sizes.layers)] for _ in range(2)
        )
        return cls(draw(sizes.heads, nodes), keys, values, seen)


Way = Callable[[Inputs], Tensor]


def whole(given: Inputs) -> Tensor:
    """(1, N, H, D) of the last layer: as passes do it, with one mask for all layers."""
    nodes, length = given.query.shape[2], given.keys[0].shape[2]
    mask = torch.zeros(1, 1, nodes, length, dtype=given.query.dtype)
    least = torch.finfo(mask.dtype).min
    mask[0, 0, :, length - nodes :].masked_fill_(~given.seen, least)
    out = given.query
    for keys, values in zip(given.keys, given.values, strict=True):
        out, _ = attention.attend(nn.Identity(), given.query, keys, values, mask)
    return out


def in_two_parts(given: Inputs) -> Tensor:
    """The same. A query's output over both parts is the mean of its outputs over each, weighted by
    exp of their log-sum-exps."""
    _, heads, nodes, size = given.query.shape
    kv_heads = given.keys[0].shape[1]
    context, scale = given.keys[0].shape[2] - nodes, size**-0.5
    folded = given.query.reshape(1, kv_heads, -1, size)
    least = torch.finfo(torch.float32).min
    hidden = torch.zeros(nodes, nodes).masked_fill_(~given.seen, least)
    hidden = hidden.repeat(heads // kv_heads, 1)
    out = given.query
    for keys, values in zip(given.keys, given.values, strict=True):
        # float32 sums; the operator behind scaled_dot_product_attention, which keeps them to itself
        prefix, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            folded, keys[:, :, :context], values[:, :, :context], scale=scale
        )
        scores = (folded * scale) @ keys[:, :, context:].transpose(2, 3)
        scores = scores.float() + hidden
        own = scores.logsumexp(-1, keepdim=True)
        tree = (scores - own).exp().to(values.dtype) @ values[:, :, context:]
        share = torch.sigmoid(own - total.view_as(own)).to(tree.dtype)
        out = torch.lerp(prefix, tree, share)
    return out.reshape(1, heads, nodes, size).transpose(1, 2).contiguous()


@torch.inference_mode()
def times(given: Inputs, ways: Sequence[Way], repeats: int) -> list[float]:
    """Median seconds of each way for all layers; the ways take turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 2):
        for way, own in zip(ways, seconds, strict=True):
            began = time.perf_counter()
            way(given)
            if turn > 1:
                own.append(time.perf_counter() - began)
    return [median(own) for own in seconds]
