"""Any drafter under a bank: rounds in which the bank does not trust it are plain rounds.

A plain round is one of the drafter `none`: an empty tree, for which the drafter is not asked. The
hidden states that it wants are still taken, since there is no second time to take them.

Whether a round has drafts depends on what earlier rounds took and brought, on nothing that is drawn
in it. So the siblings' law is the drafter's own. One decision holds for all rows.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from specdec.chance import Draws
from specdec.drafting.bank import Bank, NoHarm
from specdec.drafting.occasional import Occasional
from specdec.interfaces import Drafter, LanguageModel, OpenedCompiled
from specdec.measuring.decision import Decision
from specdec.pairing import name_of
from specdec.sampling import Sampling
from specdec.state import State
from specdec.tree import TokenTree


class Banked(Drafter):
    """drafter under a bank; clock: seconds, for tests."""

    def __init__(
        self, drafter: Drafter, settings: NoHarm, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.inner, self.settings, self._clock = drafter, settings, clock
        self.yaml_name, self.learns = name_of(drafter), drafter.learns
        self._declare(drafter)

    def _declare(self, drafter: Drafter) -> None:
        """What the loop asks of a drafter is the drafter's own."""
        self.law, self.chain, self.fixed_width = drafter.law, drafter.chain, drafter.fixed_width
        self.max_nodes, self.taps = drafter.max_nodes, drafter.taps
        self.runners_up, self.best_tokens = drafter.runners_up, drafter.best_tokens
        self.opened = drafter.opened

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        self._drafter = Occasional(self.inner, target, rows, sampling)
        self._declare(self._drafter.drafter)
        self.bank = Bank(self.settings)
        self._memories: list[OpenedCompiled] | None = None

    def enter(self, rows: Sequence[int], state: State) -> None:
        self._drafter.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        host = state.on_host
        self._began, self._compiled = self._clock(), self._compiling(state)
        left = max(room for room, live in zip(host.room, host.live, strict=True) if live)
        self._drafted = self.bank.speculates(left)
        self.decision = self._decided()
        self._before = sum(host.lengths), sum(host.live)
        if self._drafted:
            trees = self._drafter.propose(state, chance)
            self.aside = self._drafter.drafter.aside
        else:
            self._drafter.skip(state)
            trees, self.aside = TokenTree.root(state.roots, self.law), None
        self._drafting = self._clock() - self._began
        self._offers = trees.num_nodes > 1
        return trees

    def observe(self, state: State) -> None:
        self._drafter.observe(state)
        seconds = self._clock() - self._began - (self._compiling(state) - self._compiled)
        lengths, live = self._before
        added = (sum(state.on_host.lengths) - lengths) / live
        self.bank.note(self._drafted, added, seconds)
        if self._drafted and not self._offers:
            self.bank.note_undrafted(seconds - self._drafting)

    def _decided(self) -> Decision:
        bank = self.bank
        if not self._drafted:
            return Decision(None, 1.0, bank.plain, bank.balance)
        return Decision(self.yaml_name, bank.tau, bank.usual, bank.balance)

    def _compiling(self, state: State) -> float:
        """Seconds of this run so far, of the target and of the drafter."""
        if self._memories is None:
            memories = (state.memory, *self.opened)
            self._memories = [one for one in memories if isinstance(one, OpenedCompiled)]
        return sum(each.seconds for one in self._memories for each in one.compiled)

    def leave(self, rows: Sequence[int]) -> None:
        self._drafter.leave(rows)

    def forget(self) -> None:
        self.inner.forget()

    def account(self) -> dict[str, dict[str, Any]]:
        return {"no_harm": self.bank.as_dict(), **self._drafter.drafter.account()}

    def settings_in_effect(self) -> dict[str, Any]:
        return self.inner.settings_in_effect()


def under_bank(drafter: Drafter, no_harm: Any) -> Drafter:
    """The drafter, under a bank if `no_harm` asks for one (see `NoHarm.asked`)."""
    settings = NoHarm.asked(no_harm)
    return drafter if settings is None else Banked(drafter, settings)
