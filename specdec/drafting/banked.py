"""Any drafter under a bank: rounds in which the bank does not trust it are plain rounds.

A plain round is one of the drafter `none`: an empty tree, for which the drafter is not asked. The
hidden states that it wants are still taken, since there is no second time to take them.

Whether a round has drafts depends on what earlier rounds took and brought, on nothing that is drawn
in it. So the siblings' law is the drafter's own. One decision holds for all rows of one sampling.
Where rows of other samplings decode in the same round, a bank is charged its rows' share of the
time.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from specdec.chance import Draws
from specdec.drafting.bank import Bank, NoHarm
from specdec.drafting.occasional import Occasional
from specdec.drafting.remembered import forget, owner_of, remembered
from specdec.drafting.stopwatch import Stopwatch
from specdec.interfaces import Drafter, LanguageModel, compile_of
from specdec.measuring.chosen import Chosen
from specdec.pairing import name_of
from specdec.pricing.known import check_choice, costs_for
from specdec.pricing.measure import label
from specdec.ranks import refuse_own_clocks
from specdec.sampling import Sampling
from specdec.state import State, tokens_added
from specdec.tree import TokenTree


class Banked(Drafter):
    """drafter under a bank. owner: what remembers the bank from run to run; None: the drafter's
    object. clock: seconds, for tests."""

    def __init__(
        self,
        drafter: Drafter,
        settings: NoHarm,
        owner: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if settings.costs is not None:
            check_choice(settings.costs)
        self.inner, self.settings, self._clock = drafter, settings, clock
        self._owner = drafter if owner is None else owner
        self.yaml_name, self.learns = name_of(drafter), True  # one decision for all rows
        self._declare(drafter)

    def _declare(self, drafter: Drafter) -> None:
        """What the loop asks of a drafter is the drafter's own."""
        self.law, self.other_laws = drafter.law, drafter.other_laws
        self.chain, self.fixed_width = drafter.chain, drafter.fixed_width
        self.max_nodes, self.taps = drafter.max_nodes, drafter.taps
        self.runners_up, self.best_tokens = drafter.runners_up, drafter.best_tokens
        self.opened, self.costs = drafter.opened, drafter.costs

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        if self.settings.costs is None:
            refuse_own_clocks(target, "no_harm")
        self._drafter = Occasional(self.inner, target, rows, sampling)
        self._declare(self._drafter.drafter)
        self._watch = Stopwatch(self.opened, self._clock)
        self._compiled = bool(compile_of(target))
        self._table, self._sampled = self._table_for(target, rows), not sampling.greedy
        self._kept: dict[str, Bank] = {}
        if self.settings.remember and self._table is None:
            self._kept = remembered(self._owner, target, rows, sampling)
        before = self._kept.get("bank")
        self.bank = Bank(self.settings) if before is None else before.next_run(self.settings)

    def _table_for(self, target: LanguageModel, rows: int) -> Any:
        if self.settings.costs is None:
            return None
        return costs_for(self.settings.costs, target, self.inner, rows)

    def enter(self, rows: Sequence[int], state: State) -> None:
        self._drafter.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        host, drafter = state.on_host, self._drafter.drafter
        self._watch.start(state)
        self._before, self._share = host, state.share
        if self._table is not None:
            self.bank.by_table = self._curves(state, None).plain * state.share
        left = max(room for room, live in zip(host.room, host.live, strict=True) if live)
        self._drafted = self.bank.speculates(left)
        if self._drafted:
            trees = self._drafter.propose(state, chance)
            self.aside, self.decision = drafter.aside, drafter.decision
        else:
            self._drafter.skip(state)
            trees = TokenTree.root(state.roots, self.law)
            self.aside = self.decision = None
        self.chosen = self._chosen()
        self._drafting = self._watch.so_far()
        self._nodes, self._levels = trees.num_nodes, trees.depth
        return trees

    def observe(self, state: State) -> None:
        self._drafter.observe(state)
        added = tokens_added(self._before, state.on_host)
        if self._table is not None:
            self.bank.note(self._drafted, added, self._by_table(state) * self._share)
            return
        seconds = self._watch.stop() * self._share
        self.bank.note(self._drafted, added, seconds)
        if self._drafted and self._nodes == 1:
            self.bank.note_undrafted(seconds - self._drafting * self._share)

    def _curves(self, state: State, drafter: str | None) -> Any:
        return self._table.curves(
            drafter, max(state.on_host.lengths), state.rows, self._sampled, self._compiled
        )

    def _by_table(self, state: State) -> float:
        """Seconds of this round."""
        if not self._drafted:
            return float(self._curves(state, None).plain)
        return float(self._curves(state, label(self.inner)).round(self._nodes, self._levels))

    def _chosen(self) -> Chosen:
        bank = self.bank
        if not self._drafted:
            return Chosen(None, 1.0, bank.plain, bank.balance)
        inner = self._drafter.drafter.chosen
        if inner is not None:
            return inner._replace(balance=bank.balance)
        return Chosen(self.yaml_name, bank.tau, bank.usual, bank.balance)

    def leave(self, rows: Sequence[int]) -> None:
        self._drafter.leave(rows)
        self._kept["bank"] = self.bank

    def forget(self) -> None:
        self.inner.forget()
        forget(self._owner)

    def account(self) -> dict[str, dict[str, Any]]:
        return {"no_harm": self.bank.as_dict(), **self._drafter.drafter.account()}

    def settings_in_effect(self) -> dict[str, Any]:
        return self.inner.settings_in_effect()


def under_bank(drafter: Drafter, no_harm: Any, choice: Any = None) -> Drafter:
    """The drafter, under a bank if `no_harm` asks for one (see `NoHarm.asked`) or, if nothing is
    said (None), if the drafter wants one. choice: what it was made from."""
    settings = NoHarm.asked(drafter.careful if no_harm is None else no_harm)
    if settings is None:
        return drafter
    return Banked(drafter, settings, owner_of(choice))
