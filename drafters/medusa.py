"""Medusa: K heads on the target's last hidden state guess the next tokens independently of one another (Cai et al. 2401.10774).

Head k sees the state at position t and predicts token t + 2 + k; the target itself predicts t + 1. The tree is static: its
node at depth d with rank r carries head d's r-th best token, whatever the path above.

Letters: B rows, K heads, R ranks, N nodes, d hidden size, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec import Drafter, LanguageModel, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.heads import Guess, Head, Published, check_target, has_state, last_states, random_head, static_tree
from specdec.sampling import top


class Residual(nn.Module):
    """x + SiLU(W x + b), which starts as the identity."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class MedusaHeads(Head, nn.ModuleList):
    """K heads: residual blocks, then a linear map to the vocabulary, which is each head's own or (tied) the target's LM head.
    Keys are those of the published checkpoints."""

    kind = "medusa"
    taps = ("head",)

    def __init__(self, hidden_size: int, vocabulary: int, heads: int = 3, blocks: int = 1, tied: bool = False) -> None:
        super().__init__()
        sizes = {"hidden_size": hidden_size, "vocabulary": vocabulary, "heads": heads, "blocks": blocks}
        self.settings = {**sizes, "tied": tied}
        self.hidden_size, self.vocabulary, self.blocks, self.tied = hidden_size, vocabulary, blocks, tied
        for _ in range(heads):
            own = [] if tied else [nn.Linear(hidden_size, vocabulary, bias=False)]
            self.append(nn.Sequential(*(Residual(hidden_size) for _ in range(blocks)), *own))

    @classmethod
    def for_target(cls, target: Any, heads: int = 3, blocks: int = 1, tied: bool = False) -> "MedusaHeads":
        """Untrained: each head begins as the target's LM head."""
        made = cls(target.hidden_size, target.vocabulary, heads, blocks, tied)
        with torch.no_grad():
            for head in made if not tied else ():
                head.get_parameter(f"{blocks}.weight").copy_(target.head_weight)
        return made

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """Medusa's own layout, whose keys are ours: `medusa_num_heads`, `medusa_num_layers`. Sizes are those of the weights."""
        if "medusa_num_heads" not in config:
            return None
        heads, blocks = int(config["medusa_num_heads"]), int(config.get("medusa_num_layers", 1))
        out = weights.get(f"0.{blocks}.weight")
        if out is None or out.dim() != 2:
            raise ValueError(f"no matrix 0.{blocks}.weight, the last map of the first of {heads} Medusa heads")
        sizes = {"hidden_size": out.shape[1], "vocabulary": out.shape[0]}
        return Published({**sizes, "heads": heads, "blocks": blocks}, weights)

    def guesses(self, ids: Tensor, taps: Tensor, target: Any) -> list[Guess]:
        states, read = taps[:, :, -1], target.head if self.tied else nn.Identity()
        return [Guess(read(head(states[:, : -k - 1])), k + 1) for k, head in enumerate(self)]


class Batched:
    """The heads as one product per layer, for drafting: the parameters become views of stacked memory, nothing is doubled."""

    def __init__(self, heads: MedusaHeads, target: Any) -> None:
        def stacked(name: str) -> Tensor:
            weights = [head.get_parameter(name) for head in heads]
            together = torch.stack([weight.data for weight in weights])
            for weight, view in zip(weights, together, strict=True):
                weight.data = view
            return together

        self.blocks = [
            (stacked(f"{block}.linear.weight").transpose(1, 2), stacked(f"{block}.linear.bias")[:, None])
            for block in range(heads.blocks)
        ]
        self.heads = len(heads)
        if heads.tied:
            self.read = target.head
        else:
            out = stacked(f"{heads.blocks}.weight").transpose(1, 2)
            self.read = lambda x: torch.bmm(x, out)

    def __call__(self, states: Tensor) -> Tensor:
        """(B, d) -> (K, B, V)."""
        x = states.expand(self.heads, -1, -1)
        for weight, bias in self.blocks:
            x = x + F.silu(torch.baddbmm(bias, x, weight))
        return self.read(x)


class Medusa(Drafter):
    """Siblings are DET: the heads' best tokens.

    heads      a folder, "demo-medusa", or MedusaHeads
    nodes      size of the tree built greedily from the accuracies that training measured, the root not counted
    tree       a list of rank paths instead, e.g. [[0], [1], [0, 0]]
    branching  a Cartesian tree instead: children per node at each depth
    """

    law = SiblingLaw.DET
    taps = ("head",)
    weights = frozenset({"heads"})
    variants = ({"tree": [[0], [1], [0, 0], [0, 1]]}, {"branching": [1, 1]}, {"branching": [2, 1]})

    def __init__(
        self,
        heads: str | Path | MedusaHeads = "demo-medusa",
        nodes: int | None = 24,
        tree: Sequence[Sequence[int]] | None = None,
        branching: Sequence[int] | None = None,
    ) -> None:
        self.heads = heads if isinstance(heads, MedusaHeads) else MedusaHeads.load(heads)
        self.tree = static_tree(self.heads, nodes, tree, branching, len(self.heads))
        self.max_nodes = 1 + self.tree.nodes
        self.chain = self.tree.is_chain

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Medusa":
        paths, widths = arguments.get("tree") or [], arguments.get("branching") or []
        heads = max([len(widths), *map(len, paths)]) or 3  # as many as the tree is deep
        return cls(**{**arguments, "heads": random_head(lambda: MedusaHeads.for_target(target, heads), target.dtype)})

    def begin(self, target: Any, state: State) -> None:
        check_target(self.heads, target)
        self._fitted = self.tree.within(target.vocabulary)
        if self.heads.tied:
            target.check_head()
        self.heads.to(device=target.device, dtype=target.dtype)
        self._guess = Batched(self.heads, target)
        device = target.device
        self._depths = torch.tensor(self._fitted.depths, device=device)
        self._cells = torch.tensor(
            [
                (depth - 1) * max(self._fitted.ranks_needed) + rank
                for depth, rank in zip(self._fitted.depths, self._fitted.ranks, strict=True)
            ],
            device=device,
        )
        rows = len(state.on_host.lengths)
        self._parents = torch.tensor([-1, *self._fitted.parents], device=device).expand(rows, -1)
        # The structure never changes, so who sees whom is worked out once.
        self._full = TokenTree(torch.zeros_like(self._parents), self._parents, levels=self._fitted.depth)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        newest = last_states(state)
        if newest is None or state.deepest < 1:
            return TokenTree.root(state.roots)
        ranks = max(self._fitted.ranks_needed)
        logits = self._guess(newest)
        heads, rows, vocabulary = logits.shape
        best = top(logits.view(-1, vocabulary), ranks).view(heads, rows, -1).transpose(0, 1)
        tokens = torch.cat([state.roots[:, None], best.flatten(1)[:, self._cells]], 1)
        live = [room for room, live in zip(state.on_host.room, state.on_host.live, strict=True) if live]
        if len(live) == rows and min(live) > self._fitted.depth and min(state.on_host.lengths) > 1:
            return self._full.with_tokens(tokens)
        fits = (self._depths < state.room[:, None]) & has_state(state).live[:, None]
        below = torch.where(fits, self._parents[:, 1:], -1)
        return TokenTree(
            tokens, torch.cat([self._parents[:, :1], below], 1), levels=self._fitted.depth, shape_is_known=True
        )
