"""Medusa: K heads on the target's last hidden state guess the next tokens independently of one
another (Cai et al. 2401.10774).

Head k sees the state at position t and predicts token t + 2 + k; the target itself predicts t + 1.
The tree is static: its node at depth d with rank r carries head d's r-th best token, whatever the
path above.

Letters: B rows, K heads, R ranks, N nodes, d hidden size, V vocabulary.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec import Drafter, LanguageModel, Sampling, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.static import structure_of
from specdec.errors import switch
from specdec.heads.files import Published
from specdec.heads.head import (
    FirstRounds,
    Guess,
    Head,
    check_target,
    newest_states,
    random_head,
    static_tree,
    with_states,
)
from specdec.interfaces import LendsHead, compile_of, lends_head
from specdec.models.functions import CompiledFunctions, RunOf
from specdec.probs import top


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
    """K heads: residual blocks, then a linear map to the vocabulary, which is each head's own or
    (tied) the target's LM head. Keys are those of the published checkpoints."""

    kind = "medusa"
    taps = ("head",)

    def __init__(
        self, hidden_size: int, vocabulary: int, heads: int = 3, blocks: int = 1, tied: bool = False
    ) -> None:
        super().__init__()
        sizes = {
            "hidden_size": hidden_size,
            "vocabulary": vocabulary,
            "heads": heads,
            "blocks": blocks,
        }
        self.settings = {**sizes, "tied": switch("tied", tied)}
        self.hidden_size, self.vocabulary, self.blocks, self.tied = (
            hidden_size,
            vocabulary,
            blocks,
            tied,
        )
        for _ in range(heads):
            own = [] if tied else [nn.Linear(hidden_size, vocabulary, bias=False)]
            self.append(nn.Sequential(*(Residual(hidden_size) for _ in range(blocks)), *own))

    @classmethod
    def for_target(
        cls, target: LendsHead, heads: int = 3, blocks: int = 1, tied: bool = False
    ) -> "MedusaHeads":
        """Untrained: each head begins as the target's LM head."""
        made = cls(target.hidden_size, target.vocabulary, heads, blocks, tied)
        with torch.no_grad():
            for head in made if not tied else ():
                head.get_parameter(f"{blocks}.weight").copy_(target.head_weight)
        return made

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """Medusa's own layout, whose keys are ours: `medusa_num_heads`, `medusa_num_layers`. Sizes
        are those of the weights."""
        if "medusa_num_heads" not in config:
            return None
        heads, blocks = int(config["medusa_num_heads"]), int(config.get("medusa_num_layers", 1))
        out = weights.get(f"0.{blocks}.weight")
        if out is None or out.dim() != 2:
            raise ValueError(
                f"no matrix 0.{blocks}.weight, the last map of the first of {heads} Medusa heads"
            )
        sizes = {"hidden_size": out.shape[1], "vocabulary": out.shape[0]}
        return Published({**sizes, "heads": heads, "blocks": blocks}, weights)

    def guesses(self, ids: Tensor, taps: Tensor, target: LendsHead) -> list[Guess]:
        states, read = taps[:, :, -1], target.head if self.tied else nn.Identity()
        return [Guess(read(head(states[:, : -k - 1])), k + 1) for k, head in enumerate(self)]


_stacking = threading.Lock()


class Stacked:
    """The heads as one product per layer, for drafting. Their parameters become views of stacked
    memory: nothing is doubled, and what is trained later is seen."""

    def __init__(self, heads: MedusaHeads, read_out: Callable[[Tensor], Tensor]) -> None:
        self.heads = len(heads)
        with _stacking:
            self.blocks = [
                (
                    _stack(heads, f"{block}.linear.weight").transpose(1, 2),
                    _stack(heads, f"{block}.linear.bias")[:, None],
                )
                for block in range(heads.blocks)
            ]
            if not heads.tied:
                out = _stack(heads, f"{heads.blocks}.weight").transpose(1, 2)
                read_out = lambda x: torch.bmm(x, out)  # noqa: E731
        self.read_out = read_out

    def __call__(self, states: Tensor) -> Tensor:
        """(B, d) -> (K, B, V)."""
        x = states.expand(self.heads, -1, -1)
        for weight, bias in self.blocks:
            x = x + F.silu(torch.baddbmm(bias, x, weight))
        return self.read_out(x)


def _stack(heads: MedusaHeads, name: str) -> Tensor:
    """(K, ...) of one parameter of every head."""
    weights = [head.get_parameter(name) for head in heads]
    first = weights[0]
    step = first.numel() * first.element_size()
    if all(w.data_ptr() == first.data_ptr() + n * step for n, w in enumerate(weights)):
        return first.data.as_strided((len(weights), *first.shape), (first.numel(), *first.stride()))
    together = torch.stack([weight.data for weight in weights])
    for weight, view in zip(weights, together, strict=True):
        weight.data = view
    return together


# What was compiled of each set of heads.
_compiled: weakref.WeakKeyDictionary[MedusaHeads, CompiledFunctions] = weakref.WeakKeyDictionary()


class Medusa(Drafter):
    """Siblings are DET: the heads' best tokens.

    heads      a folder, "demo-medusa", or MedusaHeads
    nodes      size of the tree built greedily from the accuracies that training measured, the root
               not counted
    tree       a list of rank paths instead, e.g. [[0], [1], [0, 0]]
    branching  a Cartesian tree instead: children per node at each depth
    """

    law = SiblingLaw.DET
    taps = ("head",)
    weight_arguments = frozenset({"heads"})
    variants = ({"tree": [[0], [1], [0, 0], [0, 1]]}, {"branching": [1, 1]}, {"branching": [2, 1]})

    def __init__(
        self,
        heads: str | Path | MedusaHeads = "demo-medusa",
        nodes: int | None = 24,
        tree: Sequence[Sequence[int]] | None = None,
        branching: Sequence[int] | None = None,
    ) -> None:
        self.heads = heads if isinstance(heads, MedusaHeads) else MedusaHeads.load_kept(heads)
        self.tree = static_tree(self.heads, nodes, tree, branching, len(self.heads))
        self.max_nodes = 1 + self.tree.nodes
        self.chain = self.tree.is_chain

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Medusa":
        paths, widths = arguments.get("tree") or [], arguments.get("branching") or []
        depth = max([len(widths), *map(len, paths)]) or 3  # as many heads as the tree is deep
        lender = lends_head(target, "medusa")
        heads = random_head(lambda: MedusaHeads.for_target(lender, depth), target.dtype)
        return cls(**{**arguments, "heads": heads})

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        lender = lends_head(target, "medusa")
        check_target(self.heads, lender)
        if self.heads.tied:
            lender.check_head()
        self._tree = self.tree.within(target.vocabulary)
        ranks = max(self._tree.ranks_needed)
        stacked = Stacked(self.heads.on(target.device, target.dtype), lender.head)
        cells = [
            (depth - 1) * ranks + rank
            for depth, rank in zip(self._tree.depths, self._tree.ranks, strict=True)
        ]
        places = torch.tensor(cells, device=target.device)

        def best(states: Tensor) -> Tensor:
            """(B, N - 1) tokens of the tree."""
            logits = stacked(states)
            heads, rows, vocabulary = logits.shape
            found = top(logits.view(-1, vocabulary), ranks).view(heads, rows, -1)
            return found.transpose(0, 1).flatten(1)[:, places]

        kept = _compiled.setdefault(self.heads, CompiledFunctions())
        key = (weakref.ref(target), target.device, target.dtype, tuple(cells))
        self._best = RunOf("medusa", best, key, kept, compile_of(target))
        self.opened = (self._best,)
        self._first_rounds = FirstRounds(self.heads)

    def observe(self, state: State) -> None:
        self._first_rounds.see(state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        newest = newest_states(state)
        if newest is None or state.deepest < 1:
            return TokenTree.root(state.roots)
        tokens = torch.cat([state.roots[:, None], self._best(newest)], 1)
        return TokenTree(tokens, structure_of(self._tree, with_states(state)))

    def settings_in_effect(self) -> dict[str, Any]:
        return {"nodes": self.tree.nodes, "tree": [list(path) for path in self.tree.paths]}
