"""Attention over a memory is scaled dot products with every KV head copied for its queries."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from specdec.models.attention import FEW, attend

ROWS, KV_HEADS, SLOTS, SIZE = 2, 2, 70, 4


def both(queries, groups, mask, slots=SLOTS, scaling=None):
    random = torch.Generator().manual_seed(0)

    def drawn(heads, length):
        return torch.randn(ROWS, heads, length, SIZE, generator=random, dtype=torch.float64)

    query, key, value = (
        drawn(KV_HEADS * groups, queries),
        drawn(KV_HEADS, slots),
        drawn(KV_HEADS, slots),
    )
    ours, _ = attend(nn.Identity(), query, key, value, mask, scaling)
    copies = (each.repeat_interleave(groups, 1) for each in (key, value))
    causal = mask is None and queries > 1
    plain = F.scaled_dot_product_attention(
        query, *copies, attn_mask=mask, is_causal=causal, scale=scaling
    )
    return ours, plain.transpose(1, 2)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("queries", [1, 5, FEW, FEW + 9])
def test_masked(queries, groups, scaling):
    """Each query sees other slots; many queries take another way than few."""
    seen = torch.rand(ROWS, 1, queries, SLOTS, generator=torch.Generator().manual_seed(1)) < 0.5
    seen[..., 0] = True
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -1e300)
    ours, plain = both(queries, groups, mask, scaling=scaling)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("queries", "slots"), [(1, SLOTS), (9, 9)])
def test_without_a_mask(queries, slots, groups):
    """One query that sees everything, or a causal pass over nothing else."""
    ours, plain = both(queries, groups, None, slots)
    torch.testing.assert_close(ours, plain)
