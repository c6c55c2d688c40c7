"""Where the tokens of a pass lie: slots in the KV cache, positions, and masks that say who sees whom.

It knows trees and caches; it has never heard of a model. Whoever runs decoder layers over trees asks here: the target, a
draft model, a trained layer of its own.

Letters: B rows, N nodes, n nodes of this pass, T slots.
"""

from typing import Any

import torch
from torch import Tensor

from specdec import attention
from specdec.cache import KVCache, LayerShape
from specdec.support import LayerKind
from specdec.tree import TokenTree

Masks = Tensor | dict[str, Tensor | None] | None


class Placement:
    """The cache of one decoder, and for each pass the positions (B, n) and additive masks (B, 1, n, T) that its layers take.

    kinds            the kinds of attention layers; a decoder with several gets a dict of masks
    implementation   the attention that the layers run with; only our own takes None for "sees everything"
    """

    def __init__(self, kinds: list[LayerKind], implementation: str, name: str) -> None:
        self.kinds, self.implementation, self.name = kinds, implementation, name
        self.cache: KVCache | None = None
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def open(self, shapes: list[LayerShape], rows: int, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.device, self.dtype = device, dtype
        self.cache = KVCache(shapes, rows, slots, dtype, device)

    def opened(self) -> KVCache:
        if self.cache is None:
            raise ValueError(f"{self.name}: open(rows, slots) before the first pass")
        return self.cache

    def reading(self, rows: int, length: int) -> tuple[Tensor, Masks]:
        """For `length` more tokens of each row, each seeing all before it. Commit them afterwards."""
        cache = self.opened()
        first, uniform, empty = cache.lengths, cache.uniform, not any(cache.lengths)
        slots = cache.aim(first, length)
        depths = torch.arange(length, device=self.device)[None]
        positions = (self._column(first, uniform) + depths).expand(rows, -1)
        causal = (depths[0][:, None] >= depths).expand(rows, -1, -1)
        plain = empty or (length == 1 and uniform)
        return positions, self.masks(causal, depths.expand(rows, -1), 0, first, slots, plain)

    def scoring(self, tree: TokenTree, start: int) -> tuple[Tensor, Masks]:
        """For nodes >= start of a tree, each seeing what is committed and its own ancestors."""
        cache = self.opened()
        if start == 0 or cache.roots is None:
            cache.roots = list(cache.lengths)
        roots, uniform = cache.roots, min(cache.roots) == max(cache.roots)
        slots = cache.aim([root + start for root in roots], tree.num_nodes - start)
        positions = self._column(roots, uniform) + tree.depths[:, start:]
        plain = uniform and tree.is_chain and start == tree.num_nodes - 1  # one node, and it sees everything
        return positions, self.masks(tree.ancestors[:, start:], tree.depths, start, roots, slots, plain)

    def _column(self, numbers: list[int], uniform: bool) -> Tensor | int:
        return numbers[0] if uniform else torch.tensor(numbers, device=self.device)[:, None]

    def masks(self, ancestors: Tensor, depths: Tensor, start: int, roots: list[int], slots: int, plain: bool) -> Masks:
        """Additive masks (B, 1, n, T), one per kind of attention layer. A node sees the committed slots before the root
        and its own ancestors (B, n, N); with a window, only those fewer than `window` positions back. `plain`: causal
        over an empty cache or one node that sees everything, which need no mask where the window does not bite."""
        deepest = max(roots) + depths.shape[1]
        visible: Tensor | None = None
        folded: dict[str, Tensor | None] = {}
        for kind in self.kinds:
            bites = kind.size is not None and deepest > kind.size
            if plain and not bites and self.implementation == attention.NAME:
                folded[kind.name] = None
                continue
            if visible is None:
                visible = self._visible(ancestors, roots, slots)
                whole = self._additive(visible)
            folded[kind.name] = (
                self._additive(visible & self._near(kind, depths, start, roots, slots)) if bites else whole
            )
        return folded if len(folded) > 1 else next(iter(folded.values()))

    def _visible(self, ancestors: Tensor, roots: list[int], slots: int) -> Tensor:
        """(B, n, T) bool."""
        rows, queries, nodes = ancestors.shape
        if min(roots) == max(roots):
            visible = torch.ones(rows, queries, slots, dtype=torch.bool, device=ancestors.device)
            visible[:, :, roots[0] : roots[0] + nodes] = ancestors[:, :, : slots - roots[0]]
            return visible
        first = torch.tensor(roots, device=ancestors.device)[:, None]
        node = torch.arange(slots, device=ancestors.device) - first
        inside = ((node >= 0) & (node < nodes))[:, None]
        own = ancestors.gather(2, node.clamp(0, nodes - 1)[:, None].expand(-1, queries, -1))
        return (node < 0)[:, None] | (own & inside)

    def _near(self, kind: Any, depths: Tensor, start: int, roots: list[int], slots: int) -> Tensor:
        """(B, n, T) bool: positions (not slots) that the window reaches."""
        first = torch.tensor(roots, device=depths.device)[:, None]
        slot = torch.arange(slots, device=depths.device)
        node = (slot - first).clamp(0, depths.shape[1] - 1)
        seen = torch.where(slot < first, slot, first + depths.gather(1, node))
        return kind.reaches((first + depths)[:, start:, None], seen[:, None])

    def _additive(self, visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(self.dtype).min)[:, None]
