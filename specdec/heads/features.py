"""Drafting on the target's features: one decoder layer that, from a token and the feature before
it, guesses the next feature.

The pair at index j is (token x_{j+1}, feature f_j), so features lag tokens by one. A round adds
num_accepted + 1 new pairs; the last one is the root with the state before it. Pairs are always read
with the target's own features. Inside a tree these do not exist yet, so a node takes the layer's
output at its parent.

Letters: B rows, b rows of one call, T tokens, N nodes, m nodes of a level, K taps, d hidden size, V
vocabulary.
"""

import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor
from torch.nn import Module
from transformers.cache_utils import Cache

from specdec.chance import Draws
from specdec.drafting.by_level import Grown
from specdec.drafting.shape import BY_NODES, BY_VALUE, HeadShapeArguments, Shape
from specdec.errors import integer
from specdec.heads.decoder_drafter import DecoderDrafter
from specdec.heads.decoder_head import DecoderHead
from specdec.heads.decoder_layer import Unrolled, decoder_of
from specdec.heads.head import Guess, Head, random_head, static_tree, with_states
from specdec.heads.packing import documents_of, of_pairs
from specdec.interfaces import LanguageModel, LendsHead, lends_head
from specdec.models.masks import Masks
from specdec.models.whole import Passes, Piece, padded
from specdec.state import State
from specdec.tree import MOST_NODES, TokenTree


class FeatureHead(DecoderHead):
    """A decoder layer over (embedding, feature). Each concrete head defines what is fused, fed in
    and read out."""

    steps: int = 1  # of training on its own states
    depths: int = 1  # tokens that one pass guesses, with masks for those behind the first
    anchors: int = 32  # pairs of a window behind which training puts masks

    def _build(self, layer: dict[str, Any]) -> None:
        self.decoder = decoder_of(layer)
        self.hidden_size = int(self.decoder.config.hidden_size)

    @property
    def layer(self) -> Module:
        """The decoder's first one, and mostly its only one."""
        return self.decoder.get_submodule("layers.0")

    @classmethod
    @abstractmethod
    def for_target(cls, target: LendsHead, steps: int = 1) -> "FeatureHead":
        """Untrained. steps: how far training unrolls it on its own states."""

    def embed(self, tokens: Tensor, target: LendsHead) -> Tensor:
        """(..., d) of tokens (...): the target's embedding, unless the head has its own."""
        return target.embed(tokens)

    @abstractmethod
    def fuse(self, taps: Tensor) -> Tensor:
        """Features (B, T, d) of the target's states (B, T, K, d)."""

    @abstractmethod
    def enter(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """The layer's input (B, T, d)."""

    def leave(self, out: Tensor) -> Tensor:
        """The features that the layer's output (B, T, d) is."""
        return out

    @abstractmethod
    def logits(self, features: Tensor, target: LendsHead) -> Tensor:
        """(B, T, V') of the layer's output (B, T, d), over the head's own vocabulary."""

    def forward(
        self,
        embeddings: Tensor,
        features: Tensor,
        position_ids: Tensor,
        attention_mask: Masks,
        past_key_values: Cache | None,
        use_cache: bool = True,
    ) -> Tensor:
        """The features (B, T, d) that the layer guesses."""
        out: Tensor = self.decoder(
            inputs_embeds=self.enter(embeddings, features),
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        ).last_hidden_state
        return self.leave(out)

    def guesses(self, ids: Tensor, taps: Tensor, target: LendsHead) -> list[Guess]:
        embeddings, features = self.embed(ids, target), self.fuse(taps)[:, :-1]
        pairs = ids.shape[1] - 1
        number, place = of_pairs(documents_of(ids, target.eos_ids if self.apart else ()))
        unrolled, found = Unrolled(number, place), []
        for step in range(self.steps):
            length = pairs - step
            positions = place[:, :length] + step
            mask = unrolled.mask(length, self.decoder.config)
            features = self(
                embeddings[:, 1 + step :], features[:, :length], positions, mask, unrolled
            )
            found.append(
                Guess(self.logits(features, target), 1 + step, self.guessed_states(features))
            )
        return found

    def masks(self) -> tuple[Tensor, Tensor]:
        """The embedding and the feature (d,) of a token that is not known yet, of heads with
        several `depths`."""
        raise NotImplementedError(f"{type(self).__name__} guesses one token per pass")

    def guessed_states(self, features: Tensor) -> Tensor | None:
        """The guess at the target's "head" state, for heads whose features are that."""
        return None


def shape_for(
    head: Head | type[Head], given: HeadShapeArguments, depth: int, draw: str = "ranked"
) -> Shape:
    """The shape that a head's drafter is asked for. Unless given, trees by value, sequoia and
    static ones have 24 nodes, a ranked one expands 6 nodes a level by 6 tokens, and what is sampled
    is a chain."""
    depth = integer("depth", given.get("depth", depth), 1, MOST_NODES)
    draw, tree = given.get("draw", draw), given.get("tree")
    nodes, branching = given.get("nodes"), given.get("branching")
    acceptance = given.get("acceptance")
    if nodes is None and tree is None and draw in (*BY_NODES, "static"):
        nodes = 24
    if draw == "static":
        shape = static_tree(head, nodes, tree, None, depth)
        return Shape(depth, draw=draw, tree=shape, acceptance=acceptance)
    if tree is not None:
        raise ValueError(f"`tree`, a list of rank paths, is for draw='static'; got draw={draw!r}")
    if branching is None:
        branching = 6 if draw in BY_VALUE else 1
    return Shape(depth, branching, draw, nodes, acceptance=acceptance, stop=given.get("stop"))


class New(NamedTuple):
    """Pairs that a round brought."""

    counts: list[int]  # of each row
    tokens: Tensor  # (B, T)
    taps: Tensor  # (B, T, K, d)


class FeatureDrafter(DecoderDrafter):
    """Grows a `Shape` with a FeatureHead. One pass per level for the whole frontier; the LM head
    runs on the frontier only."""

    Kind: ClassVar[type[FeatureHead]]
    heads: FeatureHead
    _heads: FeatureHead

    def __init__(
        self, heads: str | Path | FeatureHead, **shape: Unpack[HeadShapeArguments]
    ) -> None:
        found = heads if isinstance(heads, FeatureHead) else self.Kind.load_kept(heads)
        super().__init__(found, shape_for(found, shape, depth=5))

    @classmethod
    def tiny(
        cls, target: LanguageModel, draft: LanguageModel, **arguments: Any
    ) -> "FeatureDrafter":
        lender = lends_head(target, cls.Kind.kind)
        heads = random_head(lambda: cls.Kind.for_target(lender), target.dtype)
        return cls(**{**arguments, "heads": heads})

    def _inputs(self, one: Tensor) -> dict[str, Tensor]:
        return {"embeddings": one, "features": torch.zeros_like(one)}

    @property
    def grows_whole(self) -> bool:
        return True

    @property
    def _scratch(self) -> int:
        return self.max_nodes

    @property
    def _reach(self) -> int:
        return self.shape.slots

    def _read_prompts(self, state: State, rows: Sequence[int], counts: list[int]) -> None:
        """The pair of the last state is left out: its token is the root."""
        taps, widest, every = state.last.taps, max(counts), len(rows) == state.rows
        assert taps is not None
        tokens = (state.tokens if every else state.tokens[list(rows)])[:, 1 : widest + 1]
        over = self._memory.reading(widest, None if every else rows, prompt=True, counts=counts)
        embeddings, features = self._entering(tokens, taps[:, :widest])
        self._memory.run(self._run, over, embeddings=embeddings, features=features)
        self._memory.commit(counts, None if every else rows)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        new = self._new(state)
        if new is None or state.deepest < 1:  # the latter: all texts end with this round
            return TokenTree.root(state.roots, self.law)
        grown = self._as_a_whole(new, with_states(state), chance)
        if grown is None:
            grown = self.grow(self._read(new), self._score, with_states(state), chance)
        return grown.tree

    def _new(self, state: State) -> New | None:
        """The pairs that the last round brought. None where no row has any."""
        taps, counts = state.last.taps, self._brought(state)
        widest = max(counts)
        if taps is None or widest == 0:
            return None
        lengths = state.on_host.lengths
        first = [length - count for length, count in zip(lengths, counts, strict=True)]
        return New(counts, state.tokens_from(first, widest), taps[:, :widest])

    def _read(self, new: New) -> Tensor:
        """(B, 1, V) logits after the roots."""
        counts, tokens, taps = new
        # More than a round brings: it was left out of rounds, and reads as a prompt is read.
        late = tokens.shape[1] > self.shape.depth + 1
        over = self._memory.reading(tokens.shape[1], prompt=late, counts=counts)
        embeddings, features = self._entering(tokens, taps)
        out = self._memory.run(self._run, over, embeddings=embeddings, features=features)
        self._memory.commit(counts, root=True)
        if min(counts) == max(counts):
            self._features = out[:, -1:]
        else:
            last = torch.tensor([max(count - 1, 0) for count in counts], device=taps.device)
            self._features = out[torch.arange(len(taps), device=taps.device), last][:, None]
        return self._all_logits(self._features)

    def _entering(self, tokens: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and features (B, T, d) of pairs."""
        return self._heads.embed(tokens, self._target), self._heads.fuse(taps)

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        over = self._memory.scoring(tree, start)
        return self._next(tree, start, partial(self._memory.run, self._run, over))

    def _next(self, tree: TokenTree, start: int, run: Callable[..., Tensor]) -> Tensor:
        """(B, m, V) of nodes >= start: each builds on the layer's output at its parent."""
        parents = tree.parents[:, start:].clamp(min=0)
        size = self._features.shape[2]
        before = self._features.gather(1, parents[:, :, None].expand(-1, -1, size))
        new = run(
            embeddings=self._heads.embed(tree.tokens[:, start:], self._target), features=before
        )
        self._features = torch.cat([self._features, new], 1)
        return self._all_logits(new)

    def _as_a_whole(self, new: New, state: State, chance: Draws) -> Grown | None:
        """The whole draft in one compiled function, where that is possible."""
        wholes = self._wholes
        if wholes is None or max(new.counts) > wholes.deepest + 1:
            return None
        whole, most = wholes.next(state), wholes.deepest + 1
        given = None if whole is None else whole.tensors(state, chance)
        if whole is None or given is None:
            return None
        shape = whole.shape

        def make(passes: Passes, inputs: dict[str, Tensor]) -> tuple[list[Tensor], Any]:
            tokens, taps = inputs["tokens"], inputs["taps"]
            embeddings, features = self._entering(tokens, taps)
            self._features = passes.read(embeddings=embeddings, features=features)
            logits = self._all_logits(self._features)

            def score(tree: TokenTree, start: int) -> Tensor:
                return self._next(tree, start, partial(passes.score, tree, start))

            return whole.grow(logits, score, passes.newest(tokens)[:, 0], inputs)

        given["tokens"], given["taps"] = padded(new.tokens, most), padded(new.taps, most)
        key = (whole.key, most, weakref.ref(self._target))
        piece = Piece(key, new.counts, given, shape.slots, shape.depth, make)
        found = self._model.at_once(self._memory, piece)
        return None if found is None else wholes.grown(whole, *found, state)

    def _all_logits(self, features: Tensor) -> Tensor:
        """Over the target's vocabulary: tokens that the head does not know are impossible."""
        logits = self._heads.logits(features, self._target)
        known = self._heads.token_ids
        if known is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self.heads.vocabulary), -torch.inf)
        whole[..., known] = logits
        return whole
