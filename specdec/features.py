"""Drafting on the target's features: one decoder layer that, from a token and the feature before it, guesses the next feature.

The pair at index j is (token x_{j+1}, feature f_j), so features lag tokens by one: a round brings num_accepted + 1 new pairs,
the last of them the root with the state before it. Pairs are always read with the target's own features; inside a tree, where
there are none yet, a node takes what the layer said at its parent.

Letters: B rows, T tokens, N nodes, m nodes of a level, K taps, d hidden size, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from specdec import attention
from specdec.chance import Draws
from specdec.checks import drafted
from specdec.heads import Guess, Head, check_target, has_state, random_head, static_tree
from specdec.interfaces import Drafter, LanguageModel, State
from specdec.one_layer import Unrolled, decoder_of, shape_of
from specdec.placement import Masks, Placement
from specdec.shape import BY_VALUE, FEW_VARIANTS, Shape
from specdec.stopping import Stop
from specdec.support import layer_kinds
from specdec.tree import TokenTree


class FeatureHead(Head):
    """A decoder layer over (embedding, feature). What is fused, fed in and read out is the concrete head's."""

    decoder: PreTrainedModel
    steps: int = 1  # of training on its own states

    def _build(self, layer: dict[str, Any]) -> None:
        self.decoder = decoder_of(layer)
        self.hidden_size = int(self.decoder.config.hidden_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As everywhere, for `to` and its like, but frequencies stay as exact as transformers keep them in the target: rounded
        to 16 bits they would turn the 100th token by another angle."""
        exact = {name: buffer for name, buffer in self.named_buffers() if name.endswith("inv_freq")}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            module, _, own = name.rpartition(".")
            setattr(self.get_submodule(module), own, buffer.to(fn(buffer).device))
        return self

    @property
    def layer(self) -> Module:
        """The decoder's only one."""
        return self.decoder.get_submodule("layers.0")

    @classmethod
    @abstractmethod
    def for_target(cls, target: Any, steps: int = 1) -> "FeatureHead":
        """Untrained. steps: how far training unrolls it on its own states."""

    @abstractmethod
    def fuse(self, taps: Tensor) -> Tensor:
        """Features (B, T, d) of the target's states (B, T, K, d)."""

    @abstractmethod
    def enter(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """The layer's input (B, T, d)."""

    @abstractmethod
    def logits(self, features: Tensor, target: Any) -> Tensor:
        """(B, T, V') of the layer's output (B, T, d), over the head's own vocabulary."""

    def forward(
        self, embeddings: Tensor, features: Tensor, positions: Tensor, masks: Masks, cache: Cache | None
    ) -> Tensor:
        """The layer's output (B, T, d): the features that it guesses."""
        return self.decoder(
            inputs_embeds=self.enter(embeddings, features),
            position_ids=positions,
            attention_mask=masks,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def guesses(self, ids: Tensor, taps: Tensor, target: Any) -> list[Guess]:
        embeddings, features = target.embed(ids), self.fuse(taps)[:, :-1]
        rows, pairs = len(ids), ids.shape[1] - 1
        unrolled, found = Unrolled(), []
        for step in range(self.steps):
            length = pairs - step
            positions = (torch.arange(length, device=ids.device) + step).expand(rows, -1)
            mask = unrolled.mask(length, self.decoder.config, ids.device)
            features = self(embeddings[:, 1 + step :], features[:, :length], positions, mask, unrolled)
            found.append(Guess(self.logits(features, target), 1 + step, self.guessed_states(features)))
        return found

    def guessed_states(self, features: Tensor) -> Tensor | None:
        """The guess at the target's "head" state, for heads whose features are that."""
        return None


def shape_for(
    head: Head,
    depth: int,
    branching: int | Sequence[int] | None,
    draw: str,
    nodes: int | None,
    tree: Sequence[Sequence[int]] | None,
    stop: Stop | Mapping[str, float] | None,
) -> Shape:
    """The shape that a head's drafter is asked for. Unless given, trees by value and static ones have 24 nodes, a ranked one
    expands 6 nodes a level by 6 tokens, and what is sampled is a chain."""
    drafted("depth", depth)
    nodes = 24 if nodes is None and draw in (*BY_VALUE, "static") and tree is None else nodes
    if draw == "static":
        return Shape(depth, draw=draw, tree=static_tree(head, nodes, tree, None, depth))
    if tree is not None:
        raise ValueError(f"`tree`, a list of rank paths, is for draw='static'; got draw={draw!r}")
    return Shape(depth, branching if branching is not None else 6 if draw in BY_VALUE else 1, draw, nodes, stop=stop)


class FeatureDrafter(Drafter):
    """Grows a `Shape` with a FeatureHead. One pass per level for the whole frontier; the LM head runs on the frontier only."""

    Kind: ClassVar[type[FeatureHead]]
    weights = frozenset({"heads"})
    variants: ClassVar[Sequence[Mapping[str, Any]]] = FEW_VARIANTS

    def __init__(
        self,
        heads: str | Path | FeatureHead,
        depth: int,
        branching: int | Sequence[int] | None,
        draw: str,
        nodes: int | None,
        tree: Sequence[Sequence[int]] | None,
        stop: Stop | Mapping[str, float] | None,
    ) -> None:
        self.heads = heads if isinstance(heads, FeatureHead) else self.Kind.load(heads)
        self.shape = shape = shape_for(self.heads, depth, branching, draw, nodes, tree, stop)
        self.taps = self.heads.taps
        self.max_nodes, self.chain, self.fixed_width = shape.max_nodes, shape.chain, shape.fixed_width
        decoder = self.heads.decoder
        self._place = Placement(layer_kinds(decoder.config), attention.choose(decoder), self.Kind.kind)

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "FeatureDrafter":
        return cls(**{**arguments, "heads": random_head(lambda: cls.Kind.for_target(target), target.dtype)})

    @property
    def cache_bytes(self) -> int:
        return self._place.cache.nbytes if self._place.cache is not None else 0

    def meet(self, target: Any) -> None:
        self.heads.meet(target)
        self.taps = self.heads.taps

    def begin(self, target: Any, state: State) -> None:
        check_target(self.heads, target)
        target.check_head()
        self.law = self.shape.law(state.sampling.greedy)
        self.heads.to(device=target.device, dtype=target.dtype)
        self._target = target
        lengths, room = state.on_host.lengths, state.on_host.room
        slots = max(length + more for length, more in zip(lengths, room, strict=True)) + self.shape.slots
        self._place.open([self._shape_of_cache()], len(lengths), slots, target.dtype, target.device)

    def _shape_of_cache(self) -> Any:
        one = self._target.embed(torch.zeros(1, 1, dtype=torch.long, device=self._target.device))
        zero = torch.zeros(1, 1, dtype=torch.long, device=one.device)
        mask = one.new_zeros(1, 1, 1, 1)
        return shape_of(lambda cache: self.heads(one, torch.zeros_like(one), zero, mask, cache), self.heads.decoder)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        logits = self._read_new(state)
        if logits is None or state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        return self.shape.grow(logits, self._score, has_state(state), chance).tree

    def _read_new(self, state: State) -> Tensor | None:
        """Read the pairs that the last round brought: (B, 1, V) logits after the roots. None where no row has any."""
        taps, verdict, host = state.last.taps, state.last.verdict, state.on_host
        if taps is None:  # prompts of one token: the first states come with the first round
            return None
        accepted = [length - 2 for length in host.lengths] if verdict is None else verdict.num_accepted.tolist()
        counts = [number + 1 if live else 0 for number, live in zip(accepted, host.live, strict=True)]
        widest = max(counts)
        if widest == 0:
            return None
        seen = [length - count for length, count in zip(host.lengths, counts, strict=True)]
        if len(set(seen)) == 1:
            tokens = state.tokens[:, seen[0] : seen[0] + widest]
        else:
            index = torch.tensor(seen, device=taps.device)[:, None] + torch.arange(widest, device=taps.device)
            tokens = state.tokens.gather(1, index.clamp(max=state.tokens.shape[1] - 1))
        rows = len(counts)
        cache = self._place.opened()
        cache.roots = None
        positions, masks = self._place.reading(rows, widest)
        features = self._run(self._target.embed(tokens), self.heads.fuse(taps[:, :widest]), positions, masks)
        cache.commit(counts)
        if min(counts) == max(counts):
            self._features = features[:, widest - 1 :]
        else:
            last = torch.tensor([max(count - 1, 0) for count in counts], device=taps.device)
            self._features = features[torch.arange(rows, device=taps.device), last][:, None]
        return self._all_logits(self._features)

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        """(B, m, V) of nodes >= start: each stands on what the layer said at its parent."""
        parents = tree.parents[:, start:].clamp(min=0)
        before = self._features.gather(1, parents[:, :, None].expand(-1, -1, self._features.shape[2]))
        positions, masks = self._place.scoring(tree, start)
        fresh = self._run(self._target.embed(tree.tokens[:, start:]), before, positions, masks)
        self._features = torch.cat([self._features, fresh], 1)
        return self._all_logits(fresh)

    def _run(self, embeddings: Tensor, features: Tensor, positions: Tensor, masks: Masks) -> Tensor:
        with attention.using(self.heads.decoder.config, self._place.implementation):
            return self.heads(embeddings, features, positions, masks, self._place.cache)

    def _all_logits(self, features: Tensor) -> Tensor:
        """Over the target's vocabulary: tokens that the head does not know are impossible."""
        logits = self.heads.logits(features, self._target)
        if self.heads.kept is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self.heads.vocabulary), -torch.inf)
        whole[..., self.heads.kept] = logits
        return whole
