"""A small language model with the target's tokenizer drafts chains and trees.

Leviathan et al. 2211.17192; trees as in SpecInfer 2305.09781, RSD 2402.14160, Sequoia 2402.12374, SpecHub 2411.05289, DySpec
2410.11744 and EAGLE-2 2406.16858. Its KV cache is kept in step by the accepted path; one forward pass per depth.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec import Drafter, LanguageModel, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.growth import Grown, adaptive, levels, ranked
from specdec.load import load

LAWS = {"wor": SiblingLaw.WOR, "wr": SiblingLaw.WR, "hub": SiblingLaw.HUB, "topk": SiblingLaw.DET}


class SmallModel(Drafter):
    """Drafts with `model`: a name or path for `specdec.load`, a transformers model, or a LanguageModel.

    depth      levels of the tree, or tokens of the chain
    branching  children per node, one number or one per depth; 1 everywhere is a chain
    draw       auto (= wor) | wor | wr | hub | topk | ranked (DET: the best `nodes` by cumulative probability, expanding
               `branching` per level) | adaptive (WOR: decide on a site, then draw there, `nodes` in all)
    nodes      drafted nodes of ranked and adaptive trees, the root not counted

    At temperature 0 there is nothing to draw: siblings are the most probable tokens, DET.
    """

    def __init__(
        self,
        model: Any = "demo-draft",
        depth: int = 4,
        branching: int | Sequence[int] = 1,
        draw: str = "auto",
        nodes: int | None = None,
    ) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be an integer >= 1, got {depth!r}")
        if draw not in ("auto", "ranked", "adaptive", *LAWS):
            raise ValueError(f"draw must be auto, wor, wr, hub, topk, ranked or adaptive, got {draw!r}")
        widths = [branching] * depth if isinstance(branching, int) else list(branching)
        if len(widths) != depth or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in widths):
            raise ValueError(
                f"branching must be one integer >= 1, or one for each of {depth} depths; got {branching!r}"
            )
        self.by_value = draw in ("ranked", "adaptive")
        if self.by_value and (nodes is None or nodes < depth):
            raise ValueError(f"draw={draw!r} needs nodes >= depth ({depth}), the number of drafted nodes; got {nodes}")
        if not self.by_value and nodes is not None:
            raise ValueError(f"nodes is for draw='ranked' and 'adaptive'; a {draw} tree has as many as branching says")
        self.depth, self.branching, self.draw, self.nodes = depth, widths, draw, nodes or 0
        self.width = widths[0] if widths[0] > 1 else max(2, -(-self.nodes // 2))  # of a ranked tree's levels
        total, level = 1, 1
        for k in widths:
            level *= k
            total += level
        self.max_nodes = 1 + self.nodes if self.by_value else total
        self.chain = not self.by_value and max(widths) == 1
        self.model: LanguageModel = model if hasattr(model, "score") else load(model)
        self._grown: Grown | None = None

    @property
    def cache_bytes(self) -> int:
        return self.model.cache_bytes

    def begin(self, target: Any, state: State) -> None:
        if self.model.vocabulary != target.vocabulary:
            raise ValueError(
                f"the draft model has a vocabulary of {self.model.vocabulary} tokens, the target of {target.vocabulary}; "
                "a draft model needs the target's tokenizer"
            )
        self.law = self._law(state)
        self.fixed_width = self.draw != "adaptive"
        lengths, room = state.on_host.lengths, state.on_host.room
        scored = max(self.max_nodes, 1 + (self.depth - 1) * self.width if self.by_value else 0)
        slots = max(length + more for length, more in zip(lengths, room, strict=True)) + scored
        self.model.open(len(lengths), slots)
        self._seen = [0] * len(lengths)
        self._grown = None

    def _law(self, state: State) -> SiblingLaw:
        if state.sampling.greedy or self.draw == "ranked":
            return SiblingLaw.DET
        return LAWS.get(self.draw, SiblingLaw.WOR)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        self._keep_accepted(state)
        if state.deepest < 1 or max(state.on_host.lengths) + self.depth > self.model.context:
            return TokenTree.root(state.roots, self.law)
        logits = self._read_new(state)
        self._grown = self._grow(logits, state, chance)
        return self._grown.tree

    def _grow(self, logits: Tensor, state: State, chance: Draws) -> Grown:
        if self.draw == "ranked" or (self.draw == "adaptive" and state.sampling.greedy):
            return ranked(logits, self._score, state, self.depth, self.width, self.nodes)
        if self.draw == "adaptive":
            return adaptive(logits, self._score, state, chance, self.depth, self.nodes)
        return levels(logits, self._score, state, chance, self.branching, self.law)

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        return self.model.score(tree, start).logits

    def _keep_accepted(self, state: State) -> None:
        """What of the accepted path lies in the cache becomes committed. The leaf of a full path was never scored."""
        if self._grown is None or state.last.verdict is None:
            return
        inner = self._grown.inner.cpu().numpy()
        path, live = state.last.verdict.path.numpy(), state.on_host.live
        kept = np.where(path > 0, np.take_along_axis(inner, path.clip(0), 1), -1)  # the path in the cache's own numbers
        counts = (kept > 0).sum(1) * np.array(live)
        self.model.keep(torch.from_numpy(kept), torch.from_numpy(counts))
        self._seen = [seen + count for seen, count in zip(self._seen, counts.tolist(), strict=True)]
        self._grown = None

    def _read_new(self, state: State) -> Tensor:
        """Read what was committed since (the leaf that was never scored, and the root); (B, 1, V) logits after the root."""
        lengths, live = state.on_host.lengths, state.on_host.live
        counts = [length - seen if alive else 0 for length, seen, alive in zip(lengths, self._seen, live, strict=True)]
        widest = max(counts)
        if min(self._seen) == max(self._seen):
            tokens = state.tokens[:, self._seen[0] : self._seen[0] + widest]
        else:
            first = torch.tensor(self._seen, device=state.tokens.device)[:, None]
            index = first + torch.arange(widest, device=state.tokens.device)
            tokens = state.tokens.gather(1, index.clamp(max=state.tokens.shape[1] - 1))
        logits = self.model.read(tokens, torch.tensor(counts)).logits
        self._seen = [length if alive else seen for length, seen, alive in zip(lengths, self._seen, live, strict=True)]
        return logits
