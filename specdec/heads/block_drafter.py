"""Drafting with a `BlockHead`: one pass over the new context and the block, then a tree of any
shape from the block's laws.

Letters: B rows, n tokens of a pass, m nodes of a level, D guessed tokens, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from specdec.chance import Draws
from specdec.drafting.marginal import depths_from, laws_at
from specdec.drafting.shape import FEW_VARIANTS, HeadShapeArguments, TreeDrafter
from specdec.heads.block import BlockHead
from specdec.heads.decoder_layer import shape_of
from specdec.heads.features import shape_for
from specdec.heads.head import FirstRounds, check_target, random_head
from specdec.interfaces import LanguageModel, compile_of, kv_of, lends_head
from specdec.models import attention
from specdec.models.compiled import CompiledModel
from specdec.models.memory import Layout, as_it_is
from specdec.models.paged import opened
from specdec.models.support import layer_kinds
from specdec.sampling import Sampling
from specdec.state import State
from specdec.tree import Structure, TokenTree

SAMPLED: tuple[Mapping[str, Any], ...] = (  # siblings drawn from a block's laws
    *FEW_VARIANTS,
    {"depth": 2, "branching": [2, 1], "draw": "wr"},
    {"depth": 2, "draw": "sequoia", "nodes": 3, "acceptance": [0.6, 0.3]},
)


class BlockDrafter(TreeDrafter):
    """Grows a `Shape` of at most the block's depth with a `BlockHead`."""

    Kind: ClassVar[type[BlockHead]]
    weight_arguments = frozenset({"heads"})
    variants: ClassVar[Sequence[Mapping[str, Any]]] = SAMPLED

    def __init__(self, heads: str | Path | BlockHead, **shape: Unpack[HeadShapeArguments]) -> None:
        self.heads = heads if isinstance(heads, BlockHead) else self.Kind.load(heads)
        block = self.heads.block
        if shape.get("depth") is None:
            shape["depth"] = block
        super().__init__(shape_for(self.heads, shape, depth=block))
        if self.shape.depth > block:
            raise ValueError(
                f"depth={self.shape.depth}, but the {self.Kind.kind} head guesses blocks of "
                f"{block} tokens; ask for a depth of at most {block}"
            )
        self.taps = self.heads.taps
        self._compiled: dict[Any, CompiledModel] = {}  # by device and dtype

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "BlockDrafter":
        lender = lends_head(target, cls.Kind.kind)
        heads = random_head(lambda: cls.Kind.for_target(lender, layers=1, block=3), target.dtype)
        return cls(**{**arguments, "heads": heads})

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        self._target = lends_head(target, self.Kind.kind)
        check_target(self.heads, self._target)
        self._target.check_head()
        self.taps = self.heads.taps_for(target)
        where = target.device, target.dtype
        self._heads = self.heads.on(*where).runner()
        if where not in self._compiled:
            self._compiled[where] = self._compilable(*where)
        compiled, compile = self._compiled[where], compile_of(target)
        self._run = as_it_is(self._heads)
        if compile:
            self._run = compiled.forward(compile == "require", self._heads)
        # It grows with the texts, unless the target's memory has a size.
        kv = replace(kv_of(target), dtype="model")
        self._memory = opened(
            kv, compiled.layout, rows, 0, target.dtype, target.device, bool(compile)
        )
        self._memory.reach = self.heads.places
        self.opened = (self._memory,)
        self._first_rounds = FirstRounds(self.heads)

    def _compilable(self, device: torch.device, dtype: torch.dtype) -> CompiledModel:
        """Passes of the heads; what is compiled is kept for runs to come."""
        heads = self.heads.on(device, dtype).runner()
        config, kept = heads.decoder.config, attention.choose(self.heads.decoder)
        one = next(heads.parameters()).new_zeros(1, 1, heads.hidden_size)
        zero, no = one.new_zeros(1, 1).long(), one.new_zeros(1, 1, 1).bool()
        mask = one.new_zeros(1, 1, 1, 1)
        shape = shape_of(lambda cache: heads(one, no, zero, mask, cache), heads.decoder)
        shapes = [shape] * int(config.num_hidden_layers)
        return CompiledModel(
            heads, Layout(self.Kind.kind, shapes, layer_kinds(config), kept), dtype
        )

    def enter(self, rows: Sequence[int], state: State) -> None:
        """Read the context of these rows' prompts, but for the token before the root, whose state
        comes with the first round."""
        self._memory.release(rows)
        self._memory.occupy(rows)
        self._memory.reserve(state.committed.shape[1] + self.max_nodes + self.heads.places)
        taps = state.last.taps
        counts = [max(state.on_host.lengths[row] - 2, 0) for row in rows]
        if taps is not None and any(counts):
            self._read(taps, counts, None if len(rows) == state.rows else rows)

    def _read(self, taps: Tensor, counts: list[int], rows: Sequence[int] | None = None) -> None:
        """Context without a block: the first `counts` states of some rows."""
        over = self._memory.reading(max(counts), rows, prompt=True, counts=counts)
        context = self._heads.fuse(taps[:, : max(counts)])
        everything = torch.ones_like(context[:, :, :1], dtype=torch.bool)
        self._memory.run(self._run, over, states=context, is_context=everything)
        self._memory.commit(counts, rows)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        self._known = self._guess(state)
        if state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        roots = state.roots[:, None]
        return self.grow(
            self._behind(torch.zeros_like(roots), roots), self._score, state, chance
        ).tree

    def observe(self, state: State) -> None:
        self._first_rounds.see(state)

    def _guess(self, state: State) -> Tensor:
        """(B, D, V) the block's logits; on the way, read the context that the last round
        brought."""
        host, taps = state.on_host, state.last.taps
        counts = [
            accepted + 1 if taps is not None and live and length > 1 else 0
            for accepted, live, length in zip(
                state.last.num_accepted, host.live, host.lengths, strict=True
            )
        ]
        if taps is not None and max(counts) > self.shape.depth + 1:
            # More than a round brings: it was left out of rounds, and reads as a prompt is read.
            self._read(taps, counts)
            counts = [0] * state.rows
        states = block = self._heads.embedded(state.roots, self._target)
        widest, places = max(counts), block.shape[1]
        if taps is not None and widest:
            states = torch.cat([self._heads.fuse(taps[:, :widest]).to(block.dtype), block], 1)
        kept = _arranged(tuple(counts), places, state.device)
        if min(counts) < widest:
            states = states.gather(1, kept.order[:, :, None].expand_as(states))
        over = self._memory.scoring(TokenTree(kept.order, kept.structure), 0)
        out = self._memory.run(self._run, over, states=states, is_context=kept.is_context)
        self._memory.commit(counts)
        rows = torch.arange(state.rows, device=state.device)[:, None]
        guesses = kept.guesses[:, places - self.heads.block :][:, : self.shape.depth]
        self._outputs = self._heads.norm(out[rows, guesses])
        return self._target.head(self._outputs)

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        return self._behind(depths_from(tree, start, self._known), tree.tokens[:, start:])

    def _behind(self, depths: Tensor, tokens: Tensor) -> Tensor:
        """(B, m, V) logits behind nodes of these depths and tokens (B, m)."""
        return self._heads.after(laws_at(self._known, depths), tokens)


class _Arranged:
    """How context and block share a row of n tokens: the row's new context, its block, padding."""

    def __init__(self, counts: tuple[int, ...], places: int, device: torch.device) -> None:
        widest = max(counts)
        number = torch.arange(widest + places, device=device).expand(len(counts), -1)
        count = torch.tensor(counts, device=device)[:, None]
        inside = number < count + places
        self.order = torch.where(number < count, number, number - count + widest)  # (B, n)
        self.order = torch.where(inside, self.order, 0)
        self.is_context = (number < count)[:, :, None]  # (B, n, 1)
        self.guesses = count + torch.arange(places, device=device)  # (B, places)
        nodes = number.shape[1]
        seen = inside[:, None, :].expand(-1, nodes, -1)
        self.structure = Structure(number - 1, number, seen, nodes - 1, nodes - 1, False)


@lru_cache(256)
def _arranged(counts: tuple[int, ...], places: int, device: torch.device) -> _Arranged:
    return _Arranged(counts, places, device)
