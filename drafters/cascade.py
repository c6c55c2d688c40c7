"""Lookup if it expects enough, else another drafter: chosen for each row in each round.

The lookup says how many accepted tokens it expects (SuffixDecoding 2411.04975, 3.3: a hybrid takes
the lookup's draft if its score reaches what the model's drafts usually get). This number is a
function of the committed text, and the choice is made before anything is drawn.

A tree has one sibling law. If both draft chains, the tree has the law of the second: a looked-up
token counts as a draw from the point mass on it, which the tree records as its q. Every other
mixture declares DET, which is safe for all trees.

Letters: B rows, N nodes, V vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import Drafter, LanguageModel, Sampling, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.mixture import common_law, point_masses
from specdec.errors import number
from specdec.plugins import build, find
from specdec.tree import Structure

Choice = str | Mapping[str, Any] | Drafter


class Cascade(Drafter):
    """first      a drafter that says how many accepted tokens it expects, such as suffix
    then       the drafter of the other rows, such as small_model
    threshold  accepted tokens that `first` must expect, or else `then` drafts

    Either is a name, {"name": ..., argument: value}, or a drafter.
    """

    variants = (
        {
            "first": {"name": "suffix", "nodes": 2, "tree": False},
            "then": {"name": "small_model", "depth": 2},
            "threshold": 0.3,
        },
        {
            "first": {"name": "suffix", "nodes": 3},
            "then": {"name": "small_model", "depth": 2},
            "threshold": 0.3,
        },
    )

    def __init__(
        self, first: Choice = "suffix", then: Choice = "small_model", threshold: float = 2.0
    ) -> None:
        self.first, self.then = _drafter(first), _drafter(then)
        self.threshold = number("threshold", threshold, 0)
        if self.first.expected is None:
            raise ValueError(
                f"first={type(self.first).__name__} does not say how many accepted tokens it "
                "expects of its trees, so there is nothing to choose by; take suffix"
            )
        for each in (self.first, self.then):
            if each.taps:
                raise ValueError(
                    f"a cascade leaves out rounds of each of its drafters, and "
                    f"{type(each).__name__} reads the target's hidden states of every round; take "
                    "one that does not, such as small_model"
                )
        self.learns = self.first.learns or self.then.learns

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Cascade":
        made = {**arguments}
        for part, usual in (("first", "suffix"), ("then", "small_model")):
            choice = made.get(part, usual)
            if not isinstance(choice, Drafter):
                made[part] = find("drafter", choice).made_tiny(target, draft)
        return cls(**made)

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        self.first, self.then = parts = copy.copy(self.first), copy.copy(self.then)
        for each in parts:
            each.begin(target, rows, sampling)
        if self.first.law is not SiblingLaw.DET:
            raise ValueError(
                f"the first drafter of a cascade looks up what it drafts (DET); "
                f"{type(self.first).__name__} samples ({self.first.law.name}): put it second"
            )
        self.chain = self.first.chain and self.then.chain
        self.law = common_law(parts)
        self.max_nodes = max(each.max_nodes for each in parts)
        self.runners_up = max(each.runners_up for each in parts)
        self.opened = (*self.first.opened, *self.then.opened)
        self._vocabulary = target.vocabulary
        self._exact = torch.float64 if target.dtype == torch.float64 else torch.float32
        self._second: list[bool] = [False] * rows  # rows whose last tree `then` drafted

    def enter(self, rows: Sequence[int], state: State) -> None:
        self.first.enter(rows, state)
        self.then.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        looked_up = self.first.propose(state, chance)
        expected = self.first.expected or [0.0] * state.rows
        live = state.on_host.live
        second = [
            alive and each < self.threshold for alive, each in zip(live, expected, strict=True)
        ]
        drafted = self.then.propose(self._for_second(state, second), chance)
        self.aside, self._second = self.then.aside, second
        return self._merged(looked_up, drafted, second)

    def _for_second(self, state: State, rows: list[bool]) -> State:
        """The state with those rows live, and with the last round as `then` knows it."""
        last = state.last
        if last.drafted is not None:
            own = zip(last.drafted, self._second, strict=True)
            last = last._replace(drafted=[count if mine else 0 for count, mine in own])
        return replace(state, on_host=state.on_host._replace(live=rows), last=last)

    def observe(self, state: State) -> None:
        self.first.observe(state)
        self.then.observe(state)

    def leave(self, rows: Sequence[int]) -> None:
        self.first.leave(rows)
        self.then.leave(rows)

    def forget(self) -> None:
        self.first.forget()
        self.then.forget()

    def _merged(self, first: TokenTree, then: TokenTree, second: list[bool]) -> TokenTree:
        """Each row's tree is that of one of them, with its own node numbers."""
        if first.num_nodes == 1:
            return then.drawn_from(self.law, None if self.law is SiblingLaw.DET else then.q)
        device, nodes = first.tokens.device, max(first.num_nodes, then.num_nodes)
        by_then = torch.tensor(second, device=device)[:, None]

        def chosen(one: Tensor, other: Tensor, filling: int) -> Tensor:
            ours, theirs = (
                pad(each, (0, nodes - each.shape[1]), value=filling) for each in (one, other)
            )
            return torch.where(by_then, theirs, ours)

        tokens = chosen(first.tokens, then.tokens, 0)
        if self.chain:
            lengths = chosen(first.used, then.used, 0).sum(1) - 1
            q = None if self.law is SiblingLaw.DET else self._laws(tokens, then.q, by_then)
            return TokenTree.chain(tokens, lengths, self.law, q)
        depth, width = max(first.depth, then.depth), max(first.width, then.width)
        parents = chosen(first.parents, then.parents, -1)
        return TokenTree(tokens, Structure.of(parents, depth=depth, width=width))

    def _laws(self, tokens: Tensor, q: Tensor | None, by_then: Tensor) -> Tensor:
        """(B, N, V): the point mass on the next node's token, or what the second drew from."""
        dtype = self._exact if q is None else q.dtype
        certain = point_masses(tokens, self._vocabulary, dtype)
        if q is None:
            return certain
        wide = pad(q, (0, 0, 0, tokens.shape[1] - q.shape[1]))
        return torch.where(by_then[:, :, None], wide, certain)


def _drafter(choice: Choice) -> Drafter:
    if isinstance(choice, Drafter):
        return choice
    found: Drafter = build("drafter", choice)
    return found
