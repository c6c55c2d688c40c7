"""Drafters whose declared law is not the one that they draw from, and some that only look so."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drafters.small_model import SmallModel
from specdec import Drafter, Sampling, SiblingLaw, State, TokenTree
from specdec.chance import Draws, Sites

Change = Callable[[TokenTree], TokenTree]


class Forwarded(Draws):
    """The draws of another chance."""

    def __init__(self, inner: Draws) -> None:
        self.inner = inner

    def bernoulli(self, p: Tensor, at: Sites, purpose: str) -> Tensor:
        return self.inner.bernoulli(p, at, purpose)

    def categorical(self, law: Tensor, at: Sites, purpose: str) -> Tensor:
        return self.inner.categorical(law, at, purpose)

    def without_replacement(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self.inner.without_replacement(law, k, at, purpose)

    def independent(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self.inner.independent(law, k, at, purpose)


class MostProbable(Forwarded):
    """Argmax and top-k, called samples."""

    def without_replacement(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return law.sort(dim=-1, descending=True, stable=True).indices[:, :k]

    def independent(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self.without_replacement(law, k, at, purpose)


class SortedByQ(Forwarded):
    """Sampled siblings, handed over in the order of q."""

    def without_replacement(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        drawn = super().without_replacement(law, k, at, purpose)
        return drawn.gather(
            1, law.gather(1, drawn).sort(dim=-1, descending=True, stable=True).indices
        )


class BestOfMore(Forwarded):
    """A beam: one sibling more is drawn than kept, and the least probable is dropped."""

    def without_replacement(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        drawn = super().without_replacement(law, k + 1, at, purpose)
        kept = (
            law.gather(1, drawn)
            .sort(dim=-1, descending=True, stable=True)
            .indices[:, :k]
            .sort(-1)
            .values
        )
        return drawn.gather(1, kept)


class WithoutReplacement(Forwarded):
    """Called "with replacement"."""

    def independent(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return super().without_replacement(law, k, at, purpose)


class Drafting(SmallModel):
    """The small-model drafter with other draws, or with its trees changed afterwards."""

    def __init__(
        self, draws: type[Forwarded] | None = None, change: Change | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.draws, self.change = draws, change

    def begin(self, target: Any, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        if self.change is merged_as_wor:
            self.law = SiblingLaw.WOR

    def propose(self, state: State, chance: Draws) -> TokenTree:
        tree = super().propose(state, self.draws(chance) if self.draws else chance)
        return self.change(tree) if self.change and tree.num_nodes > 1 else tree


def merged(tree: TokenTree) -> TokenTree:
    """Siblings with one token become one node; their children are its children, and duplicates
    among those merge too."""
    parents = tree.parents.clone()
    for row in range(tree.rows):
        first: dict[tuple[int, int], int] = {}
        stands = {0: 0}
        for node in range(1, tree.num_nodes):
            if parents[row, node] < 0:
                continue
            above = stands[int(parents[row, node])]
            mine = first.setdefault((above, int(tree.tokens[row, node])), node)
            stands[node] = mine
            parents[row, node] = above if mine == node else -1
    return TokenTree(tree.tokens, parents, tree.law, tree.q)


def merged_as_wor(tree: TokenTree) -> TokenTree:
    return merged(tree).drawn_from(SiblingLaw.WOR, tree.q)


def reranked(tree: TokenTree) -> TokenTree:
    """The four most probable of all drawn nodes are kept: survival reveals the token."""
    assert tree.q is not None
    parents = tree.parents.clone()
    for row in range(tree.rows):
        worth = [1.0] * tree.num_nodes
        drafted = [node for node in range(1, tree.num_nodes) if parents[row, node] >= 0]
        for node in drafted:
            above = int(parents[row, node])
            worth[node] = worth[above] * float(tree.q[row, above, tree.tokens[row, node]])
        for node in sorted(drafted, key=lambda node: (-worth[node], node))[4:]:
            parents[row, node] = -1
    return TokenTree(tree.tokens, parents, tree.law, tree.q)


class SecondIfImprobable(Drafter):
    """One level. After the first child is drawn and kept, a second is drawn if q gave the first
    less than a quarter: the width depends on a value, but nothing is dropped. Right for rules that
    judge child after child; it is no fixed width."""

    law = SiblingLaw.WOR
    max_nodes = 3

    def __init__(self, model: Any, fixed_width: bool = False) -> None:
        self.model, self.fixed_width = model, fixed_width

    def propose(self, state: State, chance: Draws) -> TokenTree:
        if state.deepest < 1:
            return TokenTree.root(state.roots, self.law)
        rows = len(state.on_host.lengths)
        roots, live = torch.arange(rows), state.live & (state.room > 1)
        q = torch.stack([self.model.law(tuple(self._prefix(state, row))) for row in range(rows)])
        zero = torch.zeros_like(roots)
        first = chance.categorical(q, Sites(roots, zero, zero, zero, live), "draft")
        improbable = q.gather(1, first[:, None])[:, 0] < 0.25
        rest = q.scatter(1, first[:, None], 0.0)
        more = live & improbable & (rest.sum(1) > 0)
        second = chance.categorical(
            torch.where(more[:, None], rest, q), Sites(roots, zero, zero + 1, zero, more), "draft"
        )
        tokens = torch.stack([state.roots, first, second], 1)
        parents = torch.stack([zero - 1, torch.where(live, 0, -1), torch.where(more, 0, -1)], 1)
        laws = torch.cat([q[:, None], torch.zeros(rows, 2, q.shape[1], dtype=q.dtype)], 1)
        return TokenTree(tokens, parents, self.law, laws, depth=1, width=2)

    def _prefix(self, state: State, row: int) -> list[int]:
        return state.text(row, self.model.prompt)
