"""A small Llama-style target, trained with layer dropout and an early-exit loss (LayerSkip,
2404.16710, sections 3 and 4.1) so that its own lower layers make a fair drafter."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from experiments.training.text import Stream


def layer_dropout(layer: int, layers: int, largest: float) -> float:
    """LayerSkip, equation 1: the chance to skip a layer grows exponentially from 0 at the first to
    `largest` at the last."""
    return largest * (math.exp(layer * math.log(2) / (layers - 1)) - 1)


def loss(
    model: LlamaForCausalLM,
    ids: Tensor,
    random: torch.Generator,
    dropout: float,
    exits: list[int],
    weight: float,
) -> Tensor:
    """Next-token cross-entropy of ids (B, T) plus `weight` times that of one early exit, drawn from
    `exits` (LayerSkip's rotational curriculum). Exit e reads the stream after e layers through the
    final norm and the shared head; half of the rows pay for it."""
    inner = model.model
    hidden = inner.embed_tokens(ids)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    rotary = inner.rotary_emb(hidden, positions)
    draws = torch.rand(len(inner.layers), generator=random).tolist()
    leave_at = exits[int(torch.randint(len(exits), (), generator=random))] if exits else -1
    early = hidden
    for number, layer in enumerate(inner.layers):
        if draws[number] >= layer_dropout(number, len(inner.layers), dropout):
            output = layer(hidden, position_ids=positions, position_embeddings=rotary)
            hidden = output[0] if isinstance(output, tuple) else output
        if number + 1 == leave_at:
            early = hidden
    total = _cross_entropy(model, inner.norm(hidden), ids)
    if not exits:
        return total
    half = max(1, len(ids) // 2)
    exit_loss = _cross_entropy(model, inner.norm(early[:half]), ids[:half])
    return (total + weight * exit_loss) / (1 + weight)


def _cross_entropy(model: nn.Module, hidden: Tensor, ids: Tensor) -> Tensor:
    logits = model.lm_head(hidden[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def bits_per_byte(
    model: nn.Module, stream: Stream, context: int, windows: int, batch: int = 8
) -> dict[str, float]:
    """Nats per token over the first `windows` windows of a held-out stream, and bits per byte of
    the text they stand for."""
    windows = min(windows, len(stream.ids) // context)
    ids = torch.from_numpy(
        stream.ids[: windows * context].reshape(windows, context).astype("int64")
    )
    device = next(model.parameters()).device
    total = (
        sum(
            float(_cross_entropy_of(model, rows.to(device))) * len(rows)
            for rows in ids.split(batch)
        )
        / windows
    )
    return {
        "nats_per_token": total,
        "bits_per_byte": total / math.log(2) * len(stream.ids) / stream.bytes,
    }


def _cross_entropy_of(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
