"""A draft model that learns to guess several tokens in one pass (PARD 2504.18583): behind some
tokens of a window it reads mask tokens, and its law after each is compared with the target's.

    t0 t1 t2 t3 t4   MASK MASK   MASK MASK     two anchors, t1 and t2, blocks of three tokens
                     at 2, 3     at 3, 4       positions; each sees the text up to its anchor

Letters: B windows, T tokens, A anchors, V vocabulary.
"""

import torch
from torch import Tensor, nn

from experiments.training.losses import distance
from specdec.errors import integer
from specdec.heads.anchors import drawn_anchors, for_attention, packed_mask, packed_positions


def loss(
    draft: nn.Module,
    target: nn.Module,
    ids: Tensor,
    kind: str,
    block: int,
    anchors: int,
    mask_token: int,
    depth_weight: float,
    random: torch.Generator,
) -> Tensor:
    """Mean distance (`experiments.training.losses`) of q to p: at every position of ids (B, T) for
    the first token of a block of `block`, at the masks behind `anchors` positions for the others.
    The i-th token, from 0, counts depth_weight ** i.

    Raises ValueError for windows without room for a block.
    """
    (rows, length), places = ids.shape, integer("block", block, 2) - 1
    if length <= places:
        raise ValueError(
            f"windows of {length} tokens have no room for a block of {block}; raise context"
        )
    with torch.no_grad():
        p = target(input_ids=ids, use_cache=False).logits.float().softmax(-1)
    chosen = drawn_anchors(rows, length - places, anchors, ids.device, random)
    masks = ids.new_full((rows, chosen.shape[1] * places), mask_token)
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    mask = packed_mask(causal, chosen + 1, causal[:places, :places])
    positions = torch.arange(length, device=ids.device).expand(rows, -1)
    logits = draft(
        input_ids=torch.cat([ids, masks], 1),
        position_ids=packed_positions(positions, chosen, places),
        attention_mask=for_attention(mask, draft.config),
        use_cache=False,
    ).logits
    guesses = logits[:, length:].unflatten(1, (-1, places))
    total, weights = distance(p.flatten(0, 1), logits[:, :length].flatten(0, 1), kind).mean(), 1.0
    row = torch.arange(rows, device=ids.device)[:, None]
    for place in range(places):
        truth, weight = p[row, chosen + 1 + place], depth_weight ** (place + 1)
        part = distance(truth.flatten(0, 1), guesses[:, :, place].flatten(0, 1), kind).mean()
        total, weights = total + weight * part, weights + weight
    return total / weights
