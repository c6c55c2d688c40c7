"""Training of what guesses several tokens in one pass: a window of text, and behind it blocks that
start at some of its tokens, as one sequence. Each block sees the text before it, and itself.

Letters: B windows, T tokens of a window, A anchors (where blocks start), P places of a block, n =
T + A P tokens of a pass.
"""

from typing import Any

import torch
from torch import Tensor


def drawn_anchors(
    rows: int, possible: int, most: int, device: torch.device, random: torch.Generator | None = None
) -> Tensor:
    """(B, A) different numbers below `possible`, at most `most` of them, in order, for each of
    `rows` windows."""
    drawn = torch.rand(rows, possible, generator=random, device=device if random is None else None)
    found: Tensor = drawn.to(device).topk(min(most, possible), 1).indices
    return found.sort(1).values


def packed_positions(text: Tensor, anchors: Tensor, places: int) -> Tensor:
    """(B, n) of the text's positions (B, T) and those of blocks behind the tokens `anchors` (B,
    A)."""
    first = text.gather(1, anchors)[:, :, None] + 1
    blocks = first + torch.arange(places, device=text.device)
    return torch.cat([text, blocks.flatten(1)], 1)


def packed_numbers(text: Tensor, anchors: Tensor, places: int) -> Tensor:
    """(B, n) of numbers (B, T) of the text's tokens; a block has that of the token before it."""
    return torch.cat([text, text.gather(1, anchors).repeat_interleave(places, 1)], 1)


def packed_mask(text: Tensor, seen: Tensor, own: Tensor) -> Tensor:
    """(B, 1, n, n) bool.

    text (T, T) bool: what the text sees of itself; seen (B, A): how many of its tokens each block
    sees; own (P, P) bool: what a block sees of itself.
    """
    (rows, count), length, places = seen.shape, len(text), len(own)
    blocks = count * places
    of_text = (
        torch.arange(length, device=seen.device) < seen.repeat_interleave(places, 1)[..., None]
    )
    alike = torch.eye(count, dtype=torch.bool, device=seen.device)
    of_blocks = (alike[:, None, :, None] & own[None, :, None, :]).reshape(blocks, blocks)
    above = torch.cat([text, text.new_zeros(length, blocks)], 1).expand(rows, -1, -1)
    below = torch.cat([of_text, of_blocks.expand(rows, -1, -1)], 2)
    mask: Tensor = torch.cat([above, below], 1)[:, None]
    return mask


def for_attention(mask: Tensor, config: Any) -> Tensor:
    """A bool mask as the attention of this config takes it: eager attention adds it to its
    scores."""
    if config._attn_implementation != "eager":
        return mask
    least = torch.finfo(torch.float32).min
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, least)
