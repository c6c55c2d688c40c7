"""Lookup if it expects enough, else another drafter: chosen for each row in each round.

The lookup says how many accepted tokens it expects (SuffixDecoding 2411.04975, 3.3: a hybrid takes
the lookup's draft if its score reaches what the model's drafts usually get). By tokens alone the
model would be asked too often, since its rounds take longer: `threshold: auto` compares the seconds
that a round's tokens save with those that it takes (`specdec.drafting.turns`). Either way the
choice is a function of earlier rounds and the committed text, made before anything is drawn.

A tree has one sibling law. By `auto` a round has the law of the drafter whose trees it has, so that
a looked-up tree is judged as one. In rounds that mix rows of both, and by a number in all rounds
(what becomes of a row may not depend on its neighbours), two chains have the law of the second: a
looked-up token counts as a draw from the point mass on it, which the tree records as its q. Every
other mixture declares DET, which is safe for all trees.

Letters: B rows, N nodes, V vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec import Costs, Drafter, LanguageModel, Sampling, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.mixture import common_law, point_masses
from specdec.drafting.remembered import Owner, forget, remembered
from specdec.drafting.stopwatch import Stopwatch
from specdec.drafting.turns import Turns
from specdec.errors import number
from specdec.interfaces import compile_of
from specdec.pairing import name_of
from specdec.plugins import build, find
from specdec.pricing import known
from specdec.pricing.measure import here, label
from specdec.ranks import refuse_own_clocks
from specdec.tree import Structure

AUTO = "auto"
Choice = str | Mapping[str, Any] | Drafter


class Cascade(Drafter):
    """first      a drafter that says how many accepted tokens it expects, such as suffix
    then       the drafter of the other rows, such as small_model
    threshold  accepted tokens that `first` must expect, or else `then` drafts; auto: by what both
               bring and take, one decision for all rows
    costs      of auto. null: rounds take what the clock says, so that runs do not repeat | auto |
               FILE | a specdec.Costs

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
        {
            "first": {"name": "suffix", "nodes": 2, "tree": False},
            "then": {"name": "small_model", "depth": 1},
        },
        {
            "first": {"name": "suffix", "nodes": 3},
            "then": {"name": "small_model", "depth": 1, "branching": 2},
        },
    )

    def __init__(
        self,
        first: Choice = "suffix",
        then: Choice = "small_model",
        threshold: float | str = AUTO,
        costs: known.Choice | None = None,
    ) -> None:
        self.first, self.then = _drafter(first), _drafter(then)
        by_price = threshold == AUTO
        self.threshold = None if by_price else number("threshold", threshold, 0)
        if costs is not None and not by_price:
            raise ValueError(f"costs are for threshold=auto, and it is {threshold}: leave out one")
        self.choice = None if costs is None else known.check_choice(costs)
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
        self.learns = by_price or self.first.learns or self.then.learns
        self._owner = Owner()

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Cascade":
        made = {"threshold": AUTO, **arguments}
        for part, usual in (("first", "suffix"), ("then", "small_model")):
            choice = made.get(part, usual)
            if not isinstance(choice, Drafter):
                made[part] = find("drafter", choice).made_tiny(target, draft)
        if made["threshold"] == AUTO and not isinstance(made.get("costs"), Costs):
            # times that are measured would not repeat
            one, other = (Costs.written(here(target), label(made[p])) for p in ("first", "then"))
            made["costs"] = one.joined([other])
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
        if self.threshold is None and self.then.law is not SiblingLaw.DET:
            self.other_laws = frozenset({SiblingLaw.DET}) | self.then.other_laws
            self.law = self.then.law
        self.max_nodes = max(each.max_nodes for each in parts)
        self.runners_up = max(each.runners_up for each in parts)
        self.best_tokens = max(each.best_tokens for each in parts)
        self.opened = (*self.first.opened, *self.then.opened)
        self._vocabulary = target.vocabulary
        self._exact = torch.float64 if target.dtype == torch.float64 else torch.float32
        self._second: list[bool] = [False] * rows  # rows whose last tree `then` drafted
        self._turns: Turns | None = None
        if self.threshold is None:
            self._begin_turns(target, rows, sampling)

    def _begin_turns(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        """By the clock a run begins with what earlier ones have learned; by a table, anew."""
        self._kept, self._tables = {}, []
        if self.choice is None:
            refuse_own_clocks(target, "cascade with threshold=auto")
            self._kept = remembered(self._owner, target, rows, sampling)
        else:
            parts = self.first, self.then
            self._tables = [known.costs_for(self.choice, target, each, rows) for each in parts]
        self._sampled, self._compiled = not sampling.greedy, bool(compile_of(target))
        self._watch = Stopwatch(self.opened)
        before = self._kept.get("cascade")
        turns = self._turns = Turns(rows) if before is None else before.next_run(rows)
        self._earlier = turns.model.rounds, turns.lookup.rounds  # of earlier runs

    def enter(self, rows: Sequence[int], state: State) -> None:
        self.first.enter(rows, state)
        self.then.enter(rows, state)
        for row in rows:
            if self._turns is not None:
                self._turns.lookup.forget(row)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        if self._turns is not None:
            self._watch.start(state)
            host = state.on_host
            self._before = {row: host.lengths[row] for row, live in enumerate(host.live) if live}
        self._live = list(state.on_host.live)
        looked_up = self.first.propose(state, chance)
        second = self._rows_of_second(looked_up, state)
        drafted = self.then.propose(self._for_second(state, second), chance)
        self.aside, self._second = self.then.aside, second
        merged = self._merged(looked_up, drafted, second)
        self._size = merged.num_nodes, merged.depth
        return merged

    def _rows_of_second(self, looked_up: TokenTree, state: State) -> list[bool]:
        expected = self.first.expected or [0.0] * state.rows
        if self._turns is not None:
            return self._turns.choose(looked_up, expected, state)
        least, live = self.threshold or 0.0, state.on_host.live
        return [alive and each < least for alive, each in zip(live, expected, strict=True)]

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
        if self._turns is not None and self._watch.runs:
            seconds, lengths = self._watch.stop(), state.on_host.lengths
            if self._tables:
                seconds = self._by_table(state)
            added = sum(lengths[row] - length for row, length in self._before.items())
            nodes = self._size[0] - 1
            self._turns.went(self._second, added, seconds, nodes, state)

    def _by_table(self, state: State) -> float:
        """Seconds of the round that is over."""
        asked = any(self._second)
        table, drafter = self._tables[asked], self.then if asked else self.first
        context = max(state.on_host.lengths)
        how = self._sampled, self._compiled
        return table.curves(label(drafter), context, state.rows, *how).round(*self._size)

    def leave(self, rows: Sequence[int]) -> None:
        self.first.leave(rows)
        self.then.leave(rows)
        if self._turns is not None:
            self._kept["cascade"] = self._turns

    def forget(self) -> None:
        self.first.forget()
        self.then.forget()
        forget(self._owner)

    def account(self) -> dict[str, dict[str, Any]]:
        """Rounds of either in this run, and the threshold as it is now."""
        turns = self._turns
        if turns is None:
            return {}
        asked = turns.model.rounds - self._earlier[0]
        looked_up, least = turns.lookup.rounds - self._earlier[1], turns.threshold
        says = f"cascade: {asked} rounds asked {name_of(self.then)}, {looked_up} looked up"
        if least is not None:
            says += f", which pays from {least:.1f} expected tokens on"
        found = {"says": says, "asked": asked, "looked_up": looked_up, "threshold": least}
        return {"cascade": found}

    def _merged(self, first: TokenTree, then: TokenTree, second: list[bool]) -> TokenTree:
        """Each row's tree is that of one of them, with its own node numbers."""
        if self.other_laws and not any(second):
            return first
        if self.other_laws and second == self._live:
            return then
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
