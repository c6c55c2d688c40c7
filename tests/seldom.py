"""A drafter that asks another one in some rounds only, always the same ones."""

from collections.abc import Sequence

from specdec import Drafter, LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.occasional import Occasional

EVERY = 5  # rounds


class Seldom(Drafter):
    """Every fifth round is `inner`'s; in the others nothing is drafted."""

    def __init__(self, inner: Drafter) -> None:
        self.inner = inner

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        self._inner = Occasional(self.inner, target, rows, sampling)
        self._rounds = 0
        for name in ("law", "chain", "max_nodes", "taps", "opened"):
            setattr(self, name, getattr(self._inner.drafter, name))

    def enter(self, rows: Sequence[int], state: State) -> None:
        self._inner.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        self._rounds += 1
        if self._rounds % EVERY:
            self._inner.skip(state)
            return TokenTree.root(state.roots, self.law)
        return self._inner.propose(state, chance)

    def observe(self, state: State) -> None:
        self._inner.observe(state)

    def leave(self, rows: Sequence[int]) -> None:
        self._inner.leave(rows)
