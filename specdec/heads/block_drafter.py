"""Drafting with a `BlockHead`: one pass over the new context and the block, then a tree of any
shape from the block's laws.

Letters: B rows, n tokens of a pass, m nodes of a level, D guessed tokens, V vocabulary.
"""

import weakref
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor

from specdec.chance import Draws
from specdec.drafting.by_level import Grown
from specdec.drafting.marginal import depths_from, laws_at
from specdec.drafting.shape import FEW_VARIANTS, HeadShapeArguments
from specdec.heads.block import BlockHead
from specdec.heads.decoder_drafter import DecoderDrafter
from specdec.heads.features import shape_for
from specdec.heads.head import random_head
from specdec.interfaces import LanguageModel, lends_head
from specdec.models.masks import WIDEST
from specdec.models.whole import Passes, Piece, padded
from specdec.state import State
from specdec.tree import Structure, TokenTree

SAMPLED: tuple[Mapping[str, Any], ...] = (  # siblings drawn from a block's laws
    *FEW_VARIANTS,
    {"depth": 2, "branching": [2, 1], "draw": "wr"},
    {"depth": 2, "draw": "sequoia", "nodes": 3, "acceptance": [0.6, 0.3]},
)


class BlockDrafter(DecoderDrafter):
    """Grows a `Shape` of at most the block's depth with a `BlockHead`."""

    Kind: ClassVar[type[BlockHead]]
    heads: BlockHead
    _heads: BlockHead
    variants: ClassVar[Sequence[Mapping[str, Any]]] = SAMPLED

    def __init__(self, heads: str | Path | BlockHead, **shape: Unpack[HeadShapeArguments]) -> None:
        found = heads if isinstance(heads, BlockHead) else self.Kind.load_kept(heads)
        if shape.get("depth") is None:
            shape["depth"] = found.block
        super().__init__(found, shape_for(found, shape, depth=found.block))
        if self.shape.depth > found.block:
            raise ValueError(
                f"depth={self.shape.depth}, but the {self.Kind.kind} head guesses blocks of "
                f"{found.block} tokens; ask for a depth of at most {found.block}"
            )
        self.deepest = found.block

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "BlockDrafter":
        lender = lends_head(target, cls.Kind.kind)
        heads = random_head(lambda: cls.Kind.for_target(lender, layers=1, block=3), target.dtype)
        return cls(**{**arguments, "heads": heads})

    def _inputs(self, one: Tensor) -> dict[str, Tensor]:
        return {"states": one, "is_context": torch.zeros_like(one[:, :, :1], dtype=torch.bool)}

    @property
    def _scratch(self) -> int:
        return self.heads.places

    def _read_prompts(self, state: State, rows: Sequence[int], counts: list[int]) -> None:
        assert state.last.taps is not None
        self._read(state.last.taps, counts, None if len(rows) == state.rows else rows)

    def _read(self, taps: Tensor, counts: list[int], rows: Sequence[int] | None = None) -> None:
        """Context without a block: the first `counts` states of some rows."""
        over = self._memory.reading(max(counts), rows, prompt=True, counts=counts)
        context = self._heads.fuse(taps[:, : max(counts)])
        everything = torch.ones_like(context[:, :, :1], dtype=torch.bool)
        self._memory.run(self._run, over, states=context, is_context=everything)
        self._memory.commit(counts, rows)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        if state.deepest < 1:  # all texts end with this round
            return TokenTree.root(state.roots, self.law)
        counts, taps = self._brought(state), state.last.taps
        if taps is not None and max(counts) > self.shape.depth + 1:
            # More than a round brings: it was left out of rounds, and reads as a prompt is read.
            self._read(taps, counts)
            counts = [0] * state.rows
        grown = self._as_a_whole(counts, state, chance)
        if grown is None:
            self._guess(counts, state)
            grown = self.grow(self._first(state.roots), self._score, state, chance)
        return grown.tree

    def _guess(self, counts: list[int], state: State) -> None:
        """The block's laws; on the way, read the context that the last round brought."""
        states = block = self._heads.embedded(state.roots, self._target)
        widest, places, taps = max(counts), block.shape[1], state.last.taps
        if taps is not None and widest:
            states = torch.cat([self._heads.fuse(taps[:, :widest]).to(block.dtype), block], 1)
        kept, structure = _arranged(tuple(counts), places, state.device)
        if min(counts) < widest:
            states = states.gather(1, kept.order[:, :, None].expand_as(states))
        over = self._memory.scoring(TokenTree(kept.order, structure), 0)
        out = self._memory.run(self._run, over, states=states, is_context=kept.is_context)
        self._memory.commit(counts)
        self._take(out, kept, state.roots)

    def _take(self, out: Tensor, kept: "Arranged", roots: Tensor) -> None:
        """The block's logits `_known` (B, D, V), and the outputs (B, D, d) that they come from.
        roots (B,): the tokens before the block."""
        rows = torch.arange(len(out), device=out.device)[:, None]
        guesses = kept.block[:, self.heads.places - self.heads.block :][:, : self.shape.depth]
        self._outputs = self._heads.norm(out[rows, guesses])
        self._known = self._target.head(self._outputs)

    def _as_a_whole(self, counts: list[int], state: State, chance: Draws) -> Grown | None:
        """The pass and all draws in one compiled function, where that is possible."""
        whole = None if self._wholes is None else self._wholes.next(state)
        most, places = self.shape.depth + 1, self.heads.places
        given = None if whole is None else whole.tensors(state, chance)
        if whole is None or given is None or most + places > WIDEST:
            return None

        def make(passes: Passes, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Any]:
            roots = inputs["roots"]
            block = self._heads.embedded(roots, self._target)
            states = torch.cat([self._heads.fuse(inputs["taps"]).to(block.dtype), block], 1)
            kept = arranged(passes.counts[:, None], most, places)
            states = states.gather(1, kept.order[:, :, None].expand_as(states))
            count = passes.counts + places
            out = passes.together(count, states=states, is_context=kept.is_context)
            self._take(out, kept, roots)
            return whole.grow(self._first(roots), self._score, roots, inputs)

        taps = state.last.taps
        if taps is None:  # prompts of one token have no states yet
            size = state.rows, 1, len(self.taps), self.heads.hidden_size
            taps = torch.zeros(size, dtype=self._target.dtype, device=state.device)
        given["roots"], given["taps"] = state.roots, padded(taps[:, :most], most)
        key = (whole.key, self._own_key, weakref.ref(self._target))
        piece = Piece(key, counts, given, places, 1, make, root=False)
        found = self._model.at_once(self._memory, piece)
        return None if found is None else whole.grown(*found, state)

    @property
    def _own_key(self) -> Hashable:
        """Settings that the laws depend on, besides the shape."""
        return None

    def _first(self, roots: Tensor) -> Tensor:
        """(B, 1, V) logits behind the roots (B,)."""
        return self._behind(torch.zeros_like(roots[:, None]), roots[:, None])

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        return self._behind(depths_from(tree, start, self._known), tree.tokens[:, start:])

    def _behind(self, depths: Tensor, tokens: Tensor) -> Tensor:
        """(B, m, V) logits behind nodes of these depths and tokens (B, m)."""
        return self._heads.after(laws_at(self._known, depths), tokens)


class Arranged(NamedTuple):
    """How context and block share a row of n tokens: the row's new context, its block, padding."""

    order: Tensor  # (B, n) where each is in a row that has room for the widest context
    is_context: Tensor  # (B, n, 1) bool
    is_real: Tensor  # (B, n) bool
    block: Tensor  # (B, places) where the block is


def arranged(count: Tensor, widest: int, places: int) -> Arranged:
    """For `count` (B, 1) new tokens of context, `widest` at most."""
    number = torch.arange(widest + places, device=count.device).expand(len(count), -1)
    is_real = number < count + places
    order = torch.where(number < count, number, number - count + widest)
    order = torch.where(is_real, order, 0)
    block = count + torch.arange(places, device=count.device)
    return Arranged(order, (number < count)[:, :, None], is_real, block)


@lru_cache(256)
def _arranged(
    counts: tuple[int, ...], places: int, device: torch.device
) -> tuple[Arranged, Structure]:
    """And as a tree whose nodes all see one another."""
    found = arranged(torch.tensor(counts, device=device)[:, None], max(counts), places)
    rows, nodes = found.order.shape
    number = torch.arange(nodes, device=device).expand(rows, -1)
    seen = found.is_real[:, None, :].expand(-1, nodes, -1)
    return found, Structure(number - 1, number, seen, nodes - 1, nodes - 1, False)
