"""A small language model with the target's tokenizer drafts chains and trees.

Leviathan et al. 2211.17192; trees as in SpecInfer 2305.09781, RSD 2402.14160, Sequoia 2402.12374, SpecHub 2411.05289, DySpec
2410.11744 and EAGLE-2 2406.16858. Its KV cache is kept in step by the accepted path; one forward pass per depth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec import Drafter, LanguageModel, State, TokenTree
from specdec.chance import Draws
from specdec.growth import Grown
from specdec.load import load
from specdec.shape import STOPPED, VARIANTS, Shape
from specdec.stopping import Stop


class SmallModel(Drafter):
    """Drafts with `model`: a name or path for `specdec.load`, a transformers model, or a LanguageModel.

    depth, branching, draw, nodes, stop: see `specdec.shape.Shape`.
    """

    weights = frozenset({"model"})
    variants = (*VARIANTS, *STOPPED)

    def __init__(
        self,
        model: Any = "demo-draft",
        depth: int = 4,
        branching: int | Sequence[int] = 1,
        draw: str = "auto",
        nodes: int | None = None,
        stop: Stop | Mapping[str, float] | None = None,
    ) -> None:
        self.shape = Shape(depth, branching, draw, nodes, stop=stop)
        self.max_nodes, self.chain, self.fixed_width = self.shape.max_nodes, self.shape.chain, self.shape.fixed_width
        self.model: LanguageModel = model if hasattr(model, "score") else load(model)
        self._grown: Grown | None = None

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "SmallModel":
        return cls(**{**arguments, "model": draft})

    @property
    def cache_bytes(self) -> int:
        return self.model.cache_bytes

    def begin(self, target: Any, state: State) -> None:
        if self.model is target:
            raise ValueError(
                "the draft model is the target's own object, and one object has one cache; load the model a second time, or give "
                "target.model, which shares the weights"
            )
        if self.model.vocabulary != target.vocabulary:
            raise ValueError(
                f"the draft model has a vocabulary of {self.model.vocabulary} tokens, the target of {target.vocabulary}; "
                "a draft model needs the target's tokenizer"
            )
        self.law = self.shape.law(state.sampling.greedy)
        lengths, room = state.on_host.lengths, state.on_host.room
        slots = max(length + more for length, more in zip(lengths, room, strict=True)) + self.shape.slots
        self.model.open(len(lengths), slots)
        self._seen = [0] * len(lengths)
        self._grown = None

    def propose(self, state: State, chance: Draws) -> TokenTree:
        self._keep_accepted(state)
        state = self._within_context(state)
        if state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        logits = self._read_new(state)
        self._grown = self.shape.grow(logits, self._score, state, chance)
        return self._grown.tree

    def _within_context(self, state: State) -> State:
        """The same state with those rows live that the draft model has positions for: each row on its own."""
        host, most = state.on_host, self.model.context - self.shape.depth
        if max(host.lengths) <= most:
            return state
        live = [alive and length <= most for alive, length in zip(host.live, host.lengths, strict=True)]
        return replace(state, on_host=host._replace(live=live))

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
