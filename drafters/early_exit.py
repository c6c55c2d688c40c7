"""The target's first E layers, its final norm and its LM head draft; the verifying pass resumes at layer E.

LayerSkip 2404.16710. Every drafted node, leaves included, goes through the lower layers once, into its own slot of the target's
cache; the stream that leaves them is handed over with the tree, and scoring it runs only the layers from E on. Good only for
targets that were trained to exit early, as the bundled demo target was.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec import Drafter, LanguageModel, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.growth import Grown
from specdec.heads import Guess, Head, check_target, random_head
from specdec.part import check_own_layers
from specdec.shape import FEW_VARIANTS, STOPPED, Shape
from specdec.stopping import Stop


class ExitAdapter(Head):
    """x + W2 SiLU(W1 norm(x)) on the stream that leaves layer E - 1, before the target's own final norm and head. It begins as the
    identity. (Kangaroo's adapter is an attention layer; without attention there is no cache to keep.)"""

    kind = "early_exit"

    def __init__(self, hidden_size: int, vocabulary: int, exit: int, width: int) -> None:
        super().__init__()
        self.settings = {"hidden_size": hidden_size, "vocabulary": vocabulary, "exit": exit, "width": width}
        self.hidden_size, self.vocabulary, self.exit, self.taps = hidden_size, vocabulary, exit, (exit,)
        self.norm = nn.RMSNorm(hidden_size)
        self.into, self.out = nn.Linear(hidden_size, width, bias=False), nn.Linear(width, hidden_size, bias=False)
        nn.init.zeros_(self.out.weight)

    @classmethod
    def for_target(cls, target: Any, exit: int, width: int | None = None) -> "ExitAdapter":
        return cls(target.hidden_size, target.vocabulary, exit, width or 2 * target.hidden_size)

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.out(F.silu(self.into(self.norm(stream.to(self.norm.weight.dtype)))))

    def guesses(self, ids: Tensor, taps: Tensor, target: Any) -> list[Guess]:
        return [Guess(target.head(target.final_norm(self(taps[:, :, 0]))), 0)]


class EarlyExit(Drafter):
    """Drafts chains and trees (`specdec.shape.Shape`) with the target's lower layers.

    exit    E, how many layers draft
    heads   a trained adapter between exit and head: a folder, or ExitAdapter; null: none
    """

    weights = frozenset({"exit", "heads"})
    variants = (*FEW_VARIANTS, {"depth": 2, "draw": "adaptive", "nodes": 3}, *STOPPED)

    def __init__(
        self,
        exit: int,
        depth: int = 4,
        branching: int | Sequence[int] = 1,
        draw: str = "auto",
        nodes: int | None = None,
        stop: Stop | Mapping[str, float] | None = None,
        heads: str | Path | ExitAdapter | None = None,
    ) -> None:
        if isinstance(exit, bool) or not isinstance(exit, int) or exit < 1:
            raise ValueError(f"exit must be a number of layers >= 1, got {exit!r}")
        self.exit = exit
        self.heads = heads if heads is None or isinstance(heads, ExitAdapter) else ExitAdapter.load(heads)
        if self.heads is not None and self.heads.exit != exit:
            raise ValueError(f"the adapter was trained for exit={self.heads.exit}, got exit={exit}")
        self.shape = Shape(depth, branching, draw, nodes, stop=stop)
        self.max_nodes, self.chain, self.fixed_width = self.shape.max_nodes, self.shape.chain, self.shape.fixed_width
        if self.shape.by_value:  # nodes that a ranked tree has scored and does not keep lie there too
            self.max_nodes += self.shape.slots
        self.target: Any = None

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "EarlyExit":
        heads = random_head(lambda: ExitAdapter.for_target(target, 1), target.dtype)
        return cls(**{**arguments, "exit": 1, "heads": heads})

    def begin(self, target: Any, state: State) -> None:
        self.law = self.shape.law(state.sampling.greedy)
        if target is self.target:
            return
        check_own_layers(target, "early_exit")
        if self.heads is not None:
            check_target(self.heads, target)
            self.heads.to(device=target.device, dtype=target.dtype)
        self.model = target.lower(self.exit, self.heads)
        self.target = target

    def propose(self, state: State, chance: Draws) -> TokenTree:
        root = TokenTree.root(state.roots, self.law)
        if state.deepest < 1:
            return root
        self._states: list[Tensor] = []
        grown = self.shape.grow(self._score(root, 0), self._score, state, chance)
        return self._through(grown)

    def _score(self, tree: TokenTree, start: int, last_only: bool = False) -> Tensor:
        logits = self.model.score(tree, start, last_only)
        self._scored = tree
        self._states.append(self.model.states)
        return logits

    def _through(self, grown: Grown) -> TokenTree:
        """The tree with the states of all its nodes, whose slots the lower layers have written."""
        tree, scored = grown.tree, self._scored.num_nodes
        if self.shape.by_value and tree.law is SiblingLaw.DET:
            numbers = self._renumber(grown)
            states = torch.cat(self._states, 1)
            states = states.gather(1, numbers[:, :, None].expand(-1, -1, states.shape[-1]))
            self.model.rearrange(numbers)
        else:  # the tree's own numbers
            if scored < tree.num_nodes:
                self._score(tree, scored, last_only=True)
            states = torch.cat(self._states, 1)
        return tree.resumed(self.exit, states)

    def _renumber(self, grown: Grown) -> Tensor:
        """Run what a ranked tree has kept but never scored behind all that was scored; (B, N) where each node lies now."""
        tree, inner, scored = grown.tree, grown.inner, self._scored
        missing = tree.used & (inner < 0)
        missing[:, 0] = False
        count = int(missing.sum(1).max())
        if not count:
            return inner.clamp(min=0)
        nodes = missing.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        parents = inner.gather(1, tree.parents.gather(1, nodes).clamp(min=0))
        self._score(
            scored.grow(tree.tokens.gather(1, nodes), torch.where(missing.gather(1, nodes), parents, -1)),
            scored.num_nodes,
            last_only=True,
        )
        behind = scored.num_nodes + missing.cumsum(1) - 1
        return torch.where(missing, behind, inner.clamp(min=0))
