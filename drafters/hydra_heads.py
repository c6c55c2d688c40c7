"""Hydra: Medusa's heads made sequential. Head i also sees the embeddings of the tokens on the path
so far (Ankner et al. 2402.05109), so siblings at different places get different children.

Letters: B rows, T tokens, m nodes of a level, d hidden size, V vocabulary.
"""

from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specdec import LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.shape import FEW_VARIANTS, HeadShapeArguments, TreeDrafter
from specdec.heads.features import shape_for
from specdec.heads.head import (
    FirstRounds,
    Guess,
    Head,
    check_target,
    newest_states,
    random_head,
    with_states,
)
from specdec.interfaces import LendsHead, lends_head


class HydraHeads(Head):
    """Head i: h + MLP(h, e_1 .. e_{i+1}), read out by the target's own LM head. h is the state
    before the root, e_1 the root's embedding; head 0 guesses the root's first child.
    """

    kind = "hydra_heads"
    taps = ("head",)

    def __init__(self, hidden_size: int, vocabulary: int, heads: int = 4) -> None:
        super().__init__()
        self.settings = {"hidden_size": hidden_size, "vocabulary": vocabulary, "heads": heads}
        self.hidden_size, self.vocabulary, self.heads = hidden_size, vocabulary, heads
        self.into = nn.ModuleList(
            [nn.Linear((index + 2) * hidden_size, 2 * hidden_size) for index in range(heads)]
        )
        self.out = nn.ModuleList([nn.Linear(2 * hidden_size, hidden_size) for _ in range(heads)])

    @classmethod
    def for_target(cls, target: LendsHead, heads: int = 4) -> "HydraHeads":
        return cls(target.hidden_size, target.vocabulary, heads)

    def guess(self, index: int, states: Tensor, path: Tensor) -> Tensor:
        """Guessed state (..., d) of head `index`, of states (..., d) and path embeddings (...,
        (index + 1) d)."""
        seen = torch.cat([states, path.to(states.dtype)], -1)
        added: Tensor = self.out[index](F.silu(self.into[index](seen)))
        return states + added

    def guesses(self, ids: Tensor, taps: Tensor, target: LendsHead) -> list[Guess]:
        states, embeddings, found = taps[:, :, -1], target.embed(ids), []
        for index in range(self.heads):
            length = ids.shape[1] - index - 1
            path = torch.cat(
                [embeddings[:, step + 1 : step + 1 + length] for step in range(index + 1)], -1
            )
            guessed = self.guess(index, states[:, :length], path)
            found.append(Guess(target.head(guessed), index + 1, guessed))
        return found


class Hydra(TreeDrafter):
    """heads: a folder, or HydraHeads. draw: static (DET: `tree` as rank paths, or the best `nodes`
    by the accuracies that training measured), ranked, or any of `specdec.drafting.shape.Shape`;
    depth is at most the number of heads."""

    taps = ("head",)
    weight_arguments = frozenset({"heads"})
    variants = (*FEW_VARIANTS, {"depth": 2, "draw": "static", "tree": [[0], [1], [0, 0]]})

    def __init__(
        self, heads: str | Path | HydraHeads | None, **shape: Unpack[HeadShapeArguments]
    ) -> None:
        if heads is None:
            raise ValueError(
                "hydra_heads needs heads: train them with `python -m experiments.train "
                "drafter=hydra_heads target=...`, then give heads=FOLDER"
            )
        self.heads = heads if isinstance(heads, HydraHeads) else HydraHeads.load(heads)
        super().__init__(shape_for(self.heads, shape, depth=4, draw="static"))
        self.deepest = self.heads.heads
        if self.shape.depth > self.heads.heads:
            raise ValueError(
                f"depth is {self.shape.depth}, and there are {self.heads.heads} heads; each "
                "guesses one token further"
            )

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Hydra":
        depth, lender = arguments.get("depth", 4), lends_head(target, "hydra_heads")
        heads = random_head(lambda: HydraHeads.for_target(lender, depth), target.dtype)
        return cls(**{**arguments, "heads": heads})

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        self._target = lends_head(target, "hydra_heads")
        check_target(self.heads, self._target)
        self._target.check_head()
        self._heads = self.heads.on(target.device, target.dtype)
        self._first_rounds = FirstRounds(self.heads)

    def observe(self, state: State) -> None:
        self._first_rounds.see(state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        newest = newest_states(state)
        if newest is None or state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        self._newest = newest[:, None]
        self._paths, self._first, self._level = self._target.embed(state.roots)[:, None], 0, 0
        logits = self._target.head(self._heads.guess(0, self._newest, self._paths))
        return self.grow(logits, self._score, with_states(state), chance).tree

    def _score(self, tree: TokenTree, start: int) -> Tensor:
        """(B, m, V) of the nodes of one more level: the next head, each node with its own path."""
        parents = (tree.parents[:, start:] - self._first).clamp(min=0)
        above = self._paths.gather(1, parents[:, :, None].expand(-1, -1, self._paths.shape[2]))
        self._paths = torch.cat([above, self._target.embed(tree.tokens[:, start:])], -1)
        self._first, self._level = start, self._level + 1
        states = self._newest.expand(-1, self._paths.shape[1], -1)
        return self._target.head(self._heads.guess(self._level, states, self._paths))
