"""A drafter whose trees are as large as pays on this machine: which sites, how many nodes, how
deep, whether at all.

A node is worth the chance that it is accepted, and costs lambda, the tokens that a second brings in
the long run, times the seconds that it adds to the round (`specdec.pricing`). Drafters that grow
trees from laws are steered while they grow: sampled trees decide before they draw. Trees of other
drafters are pruned when they are finished, and are DET.

Letters: B rows, N nodes, n nodes that are left.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specdec import Costs, Drafter, LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.errors import switch
from specdec.plugins import build, find
from specdec.pricing import files, known
from specdec.pricing.by_price import ByPrice, Learnt
from specdec.pricing.kinds import DEEPEST, LARGEST, WIDEST, Bounds, governed
from specdec.pricing.live import Live
from specdec.pricing.measure import here, idle, label
from specdec.pricing.noted import Noted
from specdec.pricing.pruning import Pruned, pruned
from specdec.ranks import refuse_own_clocks
from specdec.tree import SiblingLaw


def _variant(drafter: Mapping[str, Any], **more: Any) -> Mapping[str, Any]:
    return {"drafter": {"name": "small_model", "depth": 2, **drafter}, "depth": 2, **more}


class Priced(Drafter):
    """drafter  whose trees are shaped: a name, {"name": ..., argument: value}, or a drafter
    costs    auto (measured on first use, then from the cache folder), the file of a cost table, or
             a `specdec.Costs`
    depth, nodes, width   the largest trees: levels, drafted nodes, children of a node
    strict   refuse a table of another machine or model, instead of a warning
    live     correct the table by the times of the run, whose decisions then do not repeat
    learnt   a file that `save` wrote: chances of acceptance to start from
    """

    learns = True
    variants = (
        _variant({}),
        _variant({"branching": 2}, nodes=2, width=2),
        {**_variant({"branching": 2, "draw": "wr"}, nodes=2, width=2), "depth": 1},
        _variant({"branching": 2, "draw": "ranked", "nodes": 3}, nodes=3, width=2),
        {"drafter": {"name": "suffix", "nodes": 3}},
    )

    def __init__(
        self,
        drafter: str | Mapping[str, Any] | Drafter = "small_model",
        costs: known.Choice = known.AUTO,
        depth: int = DEEPEST,
        nodes: int = LARGEST,
        width: int = WIDEST,
        strict: bool = False,
        live: bool = False,
        learnt: str | Path | None = None,
    ) -> None:
        self.drafter: Drafter = (
            drafter if isinstance(drafter, Drafter) else build("drafter", drafter)
        )
        if isinstance(self.drafter, Priced):
            raise ValueError(
                "priced shapes the trees of another drafter; its own are shaped already"
            )
        self.choice = known.check_choice(costs)
        self.bounds = Bounds(depth, nodes, width)
        self.strict, self.live = switch("strict", strict), switch("live", live)
        self.learnt = Learnt(self.bounds.depth)
        if learnt is not None:
            self.learnt.restore(files.load(learnt))

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Priced":
        """With a table that is written down: times that are measured would not repeat."""
        inner = arguments.get("drafter", "small_model")
        if not isinstance(inner, Drafter):
            inner = find("drafter", inner).made_tiny(target, draft)
        costs = arguments.get("costs")
        if not isinstance(costs, Costs):
            costs = Costs.written(here(target), label(inner))
        return cls(**{**arguments, "drafter": inner, "costs": costs})

    def save(self, path: str | Path) -> None:
        """Write what was learnt of survivals, for `learnt`."""
        files.save(path, self.learnt.state())

    # ------------------------------------------------------------------------------------ a run

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        if self.live:
            refuse_own_clocks(target, "priced with live=true")
        self.costs = known.costs_for(
            self.choice, target, self.drafter, rows, self.bounds, self.strict
        )
        sampled = not sampling.greedy
        self._policy = ByPrice(self.learnt, self.costs, self.drafter, target, sampled)
        self._inner, self._governed = governed(
            self.drafter, self._policy, self.bounds, sampling, target
        )
        inner = self._inner
        inner.begin(target, rows, sampling)
        self._steered = self._governed is not None and inner.law is self._governed.law
        self.law = inner.law if self._steered else SiblingLaw.DET
        self.chain = inner.chain if self._steered else False
        self.max_nodes, self.taps, self.opened = inner.max_nodes, inner.taps, inner.opened
        self.runners_up, self.best_tokens = inner.runners_up, inner.best_tokens
        self._live = Live() if self.live else None
        self._rounds = self._drafted = 0
        if self.live:
            print(
                "priced: live=true measures while it decodes; runs do not repeat", file=sys.stderr
            )

    def enter(self, rows: Sequence[int], state: State) -> None:
        self._policy.enter(rows, state.rows)
        self._inner.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        policy, live = self._policy, state.on_host.live
        policy.begin(state, self._live)
        drafts = self.learnt.pause.drafts()
        if self._governed is not None:
            self._governed.pausing, self._governed.noted = not drafts, None
        # what reads the target's hidden states has to read those of every round
        asked = state if drafts or self._inner.taps else idle(state)
        self._pruned: Pruned | None = None
        tree = self._inner.propose(asked, chance)
        self.aside = self._inner.aside
        noted = self._governed.noted if self._governed is not None else None
        if noted is None and drafts and tree.num_nodes > 1:
            tree, noted = self._prune(tree, state)
        elif noted is None:
            tree, noted = TokenTree.root(state.roots, self.law), Noted.empty(state.rows)
        self.decision = policy.decide(noted, live)
        self._rounds, self._drafted = self._rounds + 1, self._drafted + (tree.num_nodes > 1)
        return tree

    def _prune(self, tree: TokenTree, state: State) -> tuple[TokenTree, Noted]:
        self._whole = tree
        self._pruned = left = pruned(self._policy, tree, state, self._inner.shares)
        inner = self._inner.aside
        self.aside = left.numbers if inner is None else torch.cat([left.numbers, inner], 1)
        return left.tree, left.noted

    def observe(self, state: State) -> None:
        self._policy.learn(state)
        self._inner.observe(
            state if self._pruned is None else self._as_drafted(state, self._pruned)
        )

    def _as_drafted(self, state: State, left: Pruned) -> State:
        """The last round in the inner drafter's own node numbers. A drafter that asks for the best
        tokens after each node is shown the pruned tree: they belong to its nodes."""
        last = state.last
        if last.aside is None or last.verdict is None or self._inner.best_tokens:
            return state
        size = left.numbers.shape[1]
        numbers, aside = last.aside[:, :size], last.aside[:, size:]
        path = last.verdict.path
        own = np.where(path > 0, np.take_along_axis(numbers, path.clip(0), 1), -1)
        verdict = last.verdict._replace(path=own)
        last = last._replace(
            trees=self._whole, verdict=verdict, aside=aside if aside.shape[1] else None
        )
        return replace(state, last=last)

    def leave(self, rows: Sequence[int]) -> None:
        self._inner.leave(rows)

    def forget(self) -> None:
        self.learnt.forget()
        self.drafter.forget()

    def account(self) -> dict[str, dict[str, Any]]:
        """Rounds, those that drafted, and the seconds that deciding and learning took."""
        drafted, rounds, seconds = self._drafted, self._rounds, self._policy.seconds
        says = f"priced: {drafted} of {rounds} rounds drafted, deciding took {seconds:.2f} s"
        own = {"says": says, "rounds": rounds, "drafted": drafted, "deciding_seconds": seconds}
        return {"priced": own, **self._inner.account()}

    def settings_in_effect(self) -> dict[str, Any]:
        """With the table itself, by which another run decides the same."""
        return {
            "drafter": {"name": label(self.drafter), **self.drafter.settings_in_effect()},
            "costs": self.costs.as_dict() if self.costs else str(self.choice),
        }
