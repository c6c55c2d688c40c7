"""The target's first E layers, its final norm and its LM head draft; the verifying pass resumes at
layer E.

LayerSkip 2404.16710. Every drafted node, leaves included, goes through the lower layers once and
writes to its own slot of the target's cache. The stream that leaves these layers is handed over
with the tree, and scoring the tree runs only the layers from E on. This is good only for targets
that were trained to exit early, like the bundled demo target.
"""

from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec import LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.by_level import Grown
from specdec.drafting.shape import FEW_VARIANTS, STOPPED, Shape, ShapeArguments, TreeDrafter
from specdec.heads.head import Guess, Head, check_target, random_head
from specdec.interfaces import LendsHead, lends_head, lends_layers


class ExitAdapter(Head):
    """x + W2 SiLU(W1 norm(x)) on the stream that leaves layer E - 1, before the target's own final
    norm and head. It begins as the identity. (Kangaroo's adapter is an attention layer; without
    attention there is no cache to keep.)"""

    kind = "early_exit"

    def __init__(self, hidden_size: int, vocabulary: int, exit: int, width: int) -> None:
        super().__init__()
        self.settings = {
            "hidden_size": hidden_size,
            "vocabulary": vocabulary,
            "exit": exit,
            "width": width,
        }
        self.hidden_size, self.vocabulary, self.exit, self.taps = (
            hidden_size,
            vocabulary,
            exit,
            (exit,),
        )
        self.norm = nn.RMSNorm(hidden_size)
        self.into, self.out = (
            nn.Linear(hidden_size, width, bias=False),
            nn.Linear(width, hidden_size, bias=False),
        )
        nn.init.zeros_(self.out.weight)

    @classmethod
    def for_target(cls, target: LendsHead, exit: int, width: int | None = None) -> "ExitAdapter":
        return cls(target.hidden_size, target.vocabulary, exit, width or 2 * target.hidden_size)

    def forward(self, stream: Tensor) -> Tensor:
        added: Tensor = self.out(F.silu(self.into(self.norm(stream.to(self.norm.weight.dtype)))))
        return stream + added

    def guesses(self, ids: Tensor, taps: Tensor, target: LendsHead) -> list[Guess]:
        state = target.final_norm(self(taps[:, :, 0]))
        if state is None:
            raise ValueError(
                f"{target.name} does not show its final norm, through which the adapter's output "
                "goes to the LM head; early_exit without an adapter works for it"
            )
        return [Guess(target.head(state), 0)]


class EarlyExit(TreeDrafter):
    """Drafts chains and trees (`specdec.drafting.shape.Shape`) with the target's lower layers.

    exit    E, how many layers draft
    heads   a trained adapter between exit and head: a folder, or ExitAdapter; null: none
    """

    weight_arguments = frozenset({"exit", "heads"})
    variants = (*FEW_VARIANTS, {"depth": 2, "draw": "adaptive", "nodes": 3}, *STOPPED)

    def __init__(
        self,
        exit: int,
        heads: str | Path | ExitAdapter | None = None,
        **shape: Unpack[ShapeArguments],
    ) -> None:
        if isinstance(exit, bool) or not isinstance(exit, int) or exit < 1:
            raise ValueError(f"exit must be a number of layers >= 1, got {exit!r}")
        self.exit = exit
        self.heads: ExitAdapter | None = None
        if heads is not None:
            self.heads = heads if isinstance(heads, ExitAdapter) else ExitAdapter.load(heads)
        if self.heads is not None and self.heads.exit != exit:
            raise ValueError(f"the adapter was trained for exit={self.heads.exit}, got exit={exit}")
        super().__init__(Shape.asked(shape, depth=4))
        if self.shape.by_value:  # the target's memory also holds nodes that are scored but not kept
            self.max_nodes += self.shape.slots

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "EarlyExit":
        lender = lends_head(target, "early_exit")
        heads = random_head(lambda: ExitAdapter.for_target(lender, 1), target.dtype)
        return cls(**{**arguments, "exit": 1, "heads": heads})

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        adapter = None
        if self.heads is not None:
            check_target(self.heads, lends_head(target, "early_exit"))
            adapter = self.heads.on(target.device, target.dtype)
        self._part = lends_layers(target, "early_exit").lower(self.exit, adapter)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        root = TokenTree.root(state.roots, self.law)
        if state.deepest < 1:
            return root
        self._state, self._states = state, list[Tensor]()
        grown = self.grow(self._score(root, 0), self._score, state, chance)
        return self._through(grown)

    def _score(self, tree: TokenTree, start: int, last_only: bool = False) -> Tensor:
        scores = self._part.score(self._state.memory, tree, start, last_only)
        self._scored = tree
        self._states.append(scores.states)
        return scores.logits

    def _through(self, grown: Grown) -> TokenTree:
        """The tree, handed over with the states of all its nodes, which the lower layers have
        seen."""
        tree, scored, source = grown.tree, self._scored.num_nodes, None
        if grown.inner is not None:
            source = self._renumbered(tree, grown.inner)
            states = torch.cat(self._states, 1)
            states = states.gather(1, source[:, :, None].expand(-1, -1, states.shape[-1]))
        else:  # the tree's own numbers
            if scored < tree.num_nodes:
                self._score(tree, scored, last_only=True)
            states = torch.cat(self._states, 1)
        self._part.hand_over(self._state.memory, tree, states, source)
        return tree

    def _renumbered(self, tree: TokenTree, inner: Tensor) -> Tensor:
        """Score the nodes that a ranked tree has kept but never scored, after all scored ones.
        Returns where each node is now, (B, N)."""
        if tree.num_nodes == 1:
            return inner
        scored = self._scored
        missing = tree.used & (inner < 0)
        missing[:, 0] = False
        count = tree.num_nodes - 1  # an upper bound: only the device knows how many are missing
        nodes = missing.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        parents = inner.gather(1, tree.parents.gather(1, nodes).clamp(min=0))
        below = torch.where(missing.gather(1, nodes), parents, -1)
        self._score(
            scored.grow(tree.tokens.gather(1, nodes), below), scored.num_nodes, last_only=True
        )
        behind = scored.num_nodes + missing.cumsum(1) - 1
        return torch.where(missing, behind, inner.clamp(min=0))
