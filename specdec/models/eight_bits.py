"""Keys and values in 8 bits: one scale per token and head, stored behind the numbers.

D numbers become D bytes and a float32 scale of 4 bytes, in one tensor of bytes: moving, copying and
gathering tokens stays what it is for other dtypes. A token's bytes depend on that token alone, so a
node of a tree is stored as plain decoding would store it.
"""

import torch
from torch import Tensor

MOST = 127
SCALE = 4  # bytes of a scale


def width(size: int) -> int:
    """Bytes of a vector of `size` numbers. Scales start at multiples of 4."""
    return _padded(size) + SCALE


def encode(states: Tensor) -> Tensor:
    """(..., D) to bytes (..., width(D))."""
    size = states.shape[-1]
    scale = (states.abs().amax(-1, keepdim=True) / MOST).float()
    divisor = scale.clamp(min=torch.finfo(torch.float32).tiny).to(states.dtype)
    out = torch.zeros(*states.shape[:-1], width(size), dtype=torch.int8, device=states.device)
    out[..., :size] = (states / divisor).round().clamp(-MOST, MOST)
    out[..., -SCALE:] = scale.view(torch.int8)
    return out


def decode(stored: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """What is stored, (..., size) in the model's dtype."""
    scale = stored[..., -SCALE:].view(torch.float32)
    if dtype == torch.float64:
        scale = scale.double()
    numbers = torch.empty(*stored.shape[:-1], size, dtype=dtype, device=stored.device)
    return torch.mul(stored[..., :size], scale, out=numbers)


def _padded(size: int) -> int:
    return -(-size // SCALE) * SCALE
