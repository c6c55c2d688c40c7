"""Who sees whom in a pass: additive attention masks over the slots of a memory.

Letters: B rows, N nodes of a tree, n nodes of this pass, T slots, W = WIDEST nodes.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.models.support import LayerKind
from specdec.tree import Structure

WIDEST = 64  # nodes of a tree whose passes are compiled
Masks = Tensor | dict[str, Tensor | None] | None


def masks(
    kinds: list[LayerKind],
    ancestors: Tensor,
    depths: Tensor,
    start: int,
    roots: list[int],
    slots: int,
    dtype: torch.dtype,
    maskless: bool,
) -> Masks:
    """Additive masks (B, 1, n, T), one per kind of attention layer; a dict where there are several.

    A node sees the committed slots before the root and its own ancestors (B, n, N); where a layer
    has a window, only positions that it reaches. depths (B, N); roots: the slot of each root, which
    is its position too. maskless: the pass is causal over nothing, or one node that sees
    everything, which needs no mask where no window bites.
    """
    deepest = max(roots) + depths.shape[1]
    visible: Tensor | None = None
    found: dict[str, Tensor | None] = {}
    for kind in kinds:
        bites = kind.size is not None and deepest > kind.size
        if maskless and not bites:
            found[kind.name] = None
            continue
        if visible is None:
            visible = _visible(ancestors, roots, slots)
            whole = _additive(visible, dtype)
        near = None
        if bites:
            first = torch.tensor(roots, device=depths.device)[:, None]
            near = visible & _near(kind, depths, first, (first + depths)[:, start:], slots)
        found[kind.name] = whole if near is None else _additive(near, dtype)
    return found if len(found) > 1 else next(iter(found.values()))


def masks_at(
    kinds: list[LayerKind],
    ancestors: Tensor,
    depths: Tensor,
    first: Tensor,
    positions: Tensor,
    slots: int,
    dtype: torch.dtype,
) -> Masks:
    """The same where lengths are tensors: first (B, 1), the slot of each root; positions (B, n) of
    the queries."""
    visible = _visible_at(ancestors, first, slots)
    found: dict[str, Tensor | None] = {}
    for kind in kinds:
        near = None if kind.size is None else _near(kind, depths, first, positions, slots)
        found[kind.name] = _additive(visible if near is None else visible & near, dtype)
    return found if len(found) > 1 else next(iter(found.values()))


def masks_again(
    kinds: list[LayerKind], positions: Tensor, slots_of: Tensor, slots: int, dtype: torch.dtype
) -> Masks:
    """For tokens that repeat committed ones in other slots: positions and slots_of (B, n). Each
    sees the committed slots before its position, and itself."""
    slot = torch.arange(slots, device=positions.device)
    itself = slot == slots_of[:, :, None]
    mask = _additive((slot < positions[:, :, None]) | itself, dtype)
    return {kind.name: mask for kind in kinds} if len(kinds) > 1 else mask


@lru_cache(256)  # structures are compared by identity; those that repeat are padded once
def tree_of(structure: Structure, start: int, nodes: int) -> tuple[Tensor, Tensor]:
    """Depths (B, W) of a tree's nodes; and who of them is an ancestor of nodes >= start, (B, n, W)
    bool. Padding has none."""
    missing = WIDEST - structure.num_nodes
    short = nodes - (structure.num_nodes - start)
    depths = pad(structure.depths, (0, missing))
    return depths, pad(structure.ancestors[:, start:], (0, missing, 0, short))


def _visible(ancestors: Tensor, roots: list[int], slots: int) -> Tensor:
    """(B, n, T) bool."""
    rows, queries, nodes = ancestors.shape
    if min(roots) == max(roots):
        visible = torch.ones(rows, queries, slots, dtype=torch.bool, device=ancestors.device)
        visible[:, :, roots[0] : roots[0] + nodes] = ancestors[:, :, : slots - roots[0]]
        return visible
    return _visible_at(ancestors, torch.tensor(roots, device=ancestors.device)[:, None], slots)


def _visible_at(ancestors: Tensor, first: Tensor, slots: int) -> Tensor:
    """(B, n, T) bool; first (B, 1)."""
    queries, nodes = ancestors.shape[1:]
    node = torch.arange(slots, device=ancestors.device) - first
    inside = ((node >= 0) & (node < nodes))[:, None]
    own = ancestors.gather(2, node.clamp(0, nodes - 1)[:, None].expand(-1, queries, -1))
    return (node < 0)[:, None] | (own & inside)


def _near(kind: LayerKind, depths: Tensor, first: Tensor, positions: Tensor, slots: int) -> Tensor:
    """(B, n, T) bool: which positions (not slots) the layer reaches from `positions` (B, n)."""
    slot = torch.arange(slots, device=depths.device)
    node = (slot - first).clamp(0, depths.shape[1] - 1)
    seen = torch.where(slot < first, slot, first + depths.gather(1, node))
    return kind.reaches(positions[:, :, None], seen[:, None])


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]
