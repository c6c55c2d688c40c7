"""Drafting on the target's features: one decoder layer that, from a token and the feature before
it, guesses the next feature.

The pair at index j is (token x_{j+1}, feature f_j), so features lag tokens by one. A round adds
num_accepted + 1 new pairs; the last one is the root with the state before it. Pairs are always read
with the target's own features. Inside a tree these do not exist yet, so a node takes the layer's
output at its parent.

Letters: B rows, b rows of one call, T tokens, N nodes, m nodes of a level, K taps, d hidden size, V
vocabulary.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor
from torch.nn import Module
from transformers.cache_utils import Cache

from specdec.chance import Draws
from specdec.drafting.shape import (
    BY_NODES,
    BY_VALUE,
    FEW_VARIANTS,
    HeadShapeArguments,
    Shape,
    TreeDrafter,
)
from specdec.errors import integer
from specdec.heads.decoder_head import DecoderHead
from specdec.heads.decoder_layer import Unrolled, decoder_of, shape_of
from specdec.heads.head import (
    FirstRounds,
    Guess,
    Head,
    check_target,
    random_head,
    static_tree,
    with_states,
)
from specdec.interfaces import LanguageModel, LendsHead, compile_of, lends_head
from specdec.models import attention
from specdec.models.compiled import CompiledModel
from specdec.models.masks import Masks
from specdec.models.memory import Layout, Memory, as_it_is
from specdec.models.support import layer_kinds
from specdec.sampling import Sampling
from specdec.state import State
from specdec.tree import MOST_NODES, TokenTree


class FeatureHead(DecoderHead):
    """A decoder layer over (embedding, feature). Each concrete head defines what is fused, fed in
    and read out."""

    steps: int = 1  # of training on its own states

    def _build(self, layer: dict[str, Any]) -> None:
        self.decoder = decoder_of(layer)
        self.hidden_size = int(self.decoder.config.hidden_size)

    @property
    def layer(self) -> Module:
        """The decoder's only one."""
        return self.decoder.get_submodule("layers.0")

    @classmethod
    @abstractmethod
    def for_target(cls, target: LendsHead, steps: int = 1) -> "FeatureHead":
        """Untrained. steps: how far training unrolls it on its own states."""

    @abstractmethod
    def fuse(self, taps: Tensor) -> Tensor:
        """Features (B, T, d) of the target's states (B, T, K, d)."""

    @abstractmethod
    def enter(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """The layer's input (B, T, d)."""

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
        """The layer's output (B, T, d): the features that it guesses."""
        guessed: Tensor = self.decoder(
            inputs_embeds=self.enter(embeddings, features),
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        ).last_hidden_state
        return guessed

    def guesses(self, ids: Tensor, taps: Tensor, target: LendsHead) -> list[Guess]:
        embeddings, features = target.embed(ids), self.fuse(taps)[:, :-1]
        rows, pairs = len(ids), ids.shape[1] - 1
        unrolled, found = Unrolled(), []
        for step in range(self.steps):
            length = pairs - step
            positions = (torch.arange(length, device=ids.device) + step).expand(rows, -1)
            mask = unrolled.mask(length, self.decoder.config, ids.device)
            features = self(
                embeddings[:, 1 + step :], features[:, :length], positions, mask, unrolled
            )
            found.append(
                Guess(self.logits(features, target), 1 + step, self.guessed_states(features))
            )
        return found

    def guessed_states(self, features: Tensor) -> Tensor | None:
        """The guess at the target's "head" state, for heads whose features are that."""
        return None


def shape_for(head: Head, given: HeadShapeArguments, depth: int, draw: str = "ranked") -> Shape:
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


class FeatureDrafter(TreeDrafter):
    """Grows a `Shape` with a FeatureHead. One pass per level for the whole frontier; the LM head
    runs on the frontier only."""

    Kind: ClassVar[type[FeatureHead]]
    weight_arguments = frozenset({"heads"})
    variants: ClassVar[Sequence[Mapping[str, Any]]] = FEW_VARIANTS

    def __init__(
        self, heads: str | Path | FeatureHead, **shape: Unpack[HeadShapeArguments]
    ) -> None:
        self.heads = heads if isinstance(heads, FeatureHead) else self.Kind.load(heads)
        super().__init__(shape_for(self.heads, shape, depth=5))
        self.taps = self.heads.taps
        self._compiled: dict[Any, CompiledModel] = {}  # by device and dtype

    @classmethod
    def tiny(
        cls, target: LanguageModel, draft: LanguageModel, **arguments: Any
    ) -> "FeatureDrafter":
        lender = lends_head(target, cls.Kind.kind)
        heads = random_head(lambda: cls.Kind.for_target(lender), target.dtype)
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
        # It grows with the texts.
        self._memory = Memory(compiled.layout, rows, 0, target.dtype, target.device, bool(compile))
        self.opened = (self._memory,)
        self._first_rounds = FirstRounds(self.heads)

    def _compilable(self, device: torch.device, dtype: torch.dtype) -> CompiledModel:
        """Passes of the heads; what is compiled is kept for runs to come."""
        heads = self.heads.on(device, dtype).runner()
        kinds, kept = layer_kinds(heads.decoder.config), attention.choose(self.heads.decoder)
        layout = Layout(self.Kind.kind, [self._layer_shape(heads)], kinds, kept)
        return CompiledModel(heads, layout, dtype)

    def _layer_shape(self, heads: FeatureHead) -> Any:
        zero = torch.zeros(1, 1, dtype=torch.long, device=self._target.device)
        one = self._target.embed(zero)
        mask = one.new_zeros(1, 1, 1, 1)
        return shape_of(
            lambda cache: heads(one, torch.zeros_like(one), zero, mask, cache), heads.decoder
        )

    def enter(self, rows: Sequence[int], state: State) -> None:
        """Read the pairs of these rows' prompts except the last one, whose token is the root."""
        self._memory.release(rows)
        self._memory.reserve(state.committed.shape[1] + self.max_nodes)
        taps = state.last.taps
        counts = [max(state.on_host.lengths[row] - 2, 0) for row in rows]
        widest = max(counts)
        if taps is None or widest == 0:
            return
        every = len(rows) == state.rows
        tokens = (state.tokens if every else state.tokens[list(rows)])[:, 1 : widest + 1]
        over = self._memory.reading(widest, None if every else rows, prompt=True)
        embeddings, features = self._target.embed(tokens), self._heads.fuse(taps[:, :widest])
        self._memory.run(self._run, over, embeddings=embeddings, features=features)
        self._memory.commit(counts, None if every else rows)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        logits = self._read_new(state)
        if logits is None or state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        return self.grow(logits, self._score, with_states(state), chance).tree

    def observe(self, state: State) -> None:
        self._first_rounds.see(state)

    def _read_new(self, state: State) -> Tensor | None:
        """Read the pairs that the last round brought: (B, 1, V) logits after the roots. None where
        no row has any."""
        taps, host = state.last.taps, state.on_host
        if taps is None:  # prompts of one token: the first states come with the first round
            return None
        counts = [
            accepted + 1 if live and length > 1 else 0
            for accepted, live, length in zip(
                state.last.num_accepted, host.live, host.lengths, strict=True
            )
        ]
        widest = max(counts)
        if widest == 0:
            return None
        first = [length - count for length, count in zip(host.lengths, counts, strict=True)]
        tokens = state.tokens_from(first, widest)
        over = self._memory.reading(widest)
        embeddings, features = self._target.embed(tokens), self._heads.fuse(taps[:, :widest])
        out = self._memory.run(self._run, over, embeddings=embeddings, features=features)
        self._memory.commit(counts, root=True)
        if min(counts) == max(counts):
            self._features = out[:, widest - 1 :]
        else:
            last = torch.tensor([max(count - 1, 0) for count in counts], device=taps.device)
            self._features = out[torch.arange(state.rows, device=taps.device), last][:, None]
        return self._all_logits(self._features)

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        """(B, m, V) of nodes >= start: each builds on the layer's output at its parent."""
        parents = tree.parents[:, start:].clamp(min=0)
        size = self._features.shape[2]
        before = self._features.gather(1, parents[:, :, None].expand(-1, -1, size))
        over = self._memory.scoring(tree, start)
        embeddings = self._target.embed(tree.tokens[:, start:])
        new = self._memory.run(self._run, over, embeddings=embeddings, features=before)
        self._features = torch.cat([self._features, new], 1)
        return self._all_logits(new)

    def _all_logits(self, features: Tensor) -> Tensor:
        """Over the target's vocabulary: tokens that the head does not know are impossible."""
        logits = self._heads.logits(features, self._target)
        known = self._heads.token_ids
        if known is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self.heads.vocabulary), -torch.inf)
        whole[..., known] = logits
        return whole
