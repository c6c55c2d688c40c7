"""A drafter that is asked in some rounds only. It catches up when it is asked again.

Rounds without it are rounds in which it drafted nothing. It sees them in `observe`, and what their
passes said of the target's hidden states is kept here: for the drafter, all that was committed
since it was last asked is one long round. What it reads of a text, it reads then, in one pass.

Letters: B rows, T tokens, W the most tokens that any row has added, K taps, d hidden size.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specdec.chance import Draws
from specdec.interfaces import Drafter, LanguageModel
from specdec.sampling import Sampling
from specdec.state import State
from specdec.tree import TokenTree


class Occasional:
    """Of one run. `drafter` is the run's own copy."""

    def __init__(
        self, drafter: Drafter, target: LanguageModel, rows: int, sampling: Sampling
    ) -> None:
        self.drafter = copy.copy(drafter)
        self.drafter.begin(target, rows, sampling)
        self._fresh = [False] * rows  # rows for which it has not been asked yet
        self._asked = False  # in the round that is under way, or was the last
        self._states: list[Tensor] = []  # (B, T, K, d) of the rounds that went by without it
        self._counts: list[list[int]] = []  # how many of each row's T are of its text

    def enter(self, rows: Sequence[int], state: State) -> None:
        for row in rows:
            self._fresh[row] = True
            for counts in self._counts:
                counts[row] = 0
        self.drafter.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        """The drafter's trees, after it has caught up."""
        trees = self.drafter.propose(self._caught_up(state), chance)
        self._asked = True
        self._fresh = [
            fresh and not live for fresh, live in zip(self._fresh, state.on_host.live, strict=True)
        ]
        return trees

    def skip(self, state: State) -> None:
        """This round goes by without it."""
        if self.drafter.taps and state.last.taps is not None:
            self._states.append(state.last.taps)
            self._counts.append(_new_states(state))
        self._asked = False

    def observe(self, state: State) -> None:
        self.drafter.observe(state if self._asked else _undrafted(state))

    def leave(self, rows: Sequence[int]) -> None:
        self.drafter.leave(rows)

    def _caught_up(self, state: State) -> State:
        """The state as the drafter would know it if all since it was last asked were one round."""
        if state.on_host.fresh != self._fresh:
            state = replace(state, on_host=state.on_host._replace(fresh=list(self._fresh)))
        if not self._asked:
            state = _undrafted(state)
        if not self._states:
            return state
        states, counts = [*self._states, state.last.taps], [*self._counts, _new_states(state)]
        self._states, self._counts = [], []
        taps, total = _joined([one for one in states if one is not None], np.array(counts))
        accepted = [max(count - 1, 0) for count in total]
        return replace(state, last=state.last._replace(taps=taps, num_accepted=accepted))


def _new_states(state: State) -> list[int]:
    """How many states of each row `last.taps` holds. After a prompt of one token there is none."""
    host = state.on_host
    return [
        accepted + 1 if live and length > 1 else 0
        for accepted, live, length in zip(
            state.last.num_accepted, host.live, host.lengths, strict=True
        )
    ]


def _joined(states: Sequence[Tensor], counts: np.ndarray) -> tuple[Tensor, list[int]]:
    """(B, W, K, d): the first counts[i, b] of each row of states[i], one after another; and how
    many each row has."""
    total = counts.sum(0)
    index = np.zeros((len(total), max(int(total.max()), 1)), dtype=np.int64)
    first = np.cumsum([0, *(one.shape[1] for one in states[:-1])])
    for row in range(len(total)):
        columns = [start + np.arange(n) for start, n in zip(first, counts[:, row], strict=True)]
        index[row, : total[row]] = np.concatenate(columns)
    whole = torch.cat(list(states), 1)
    rows = torch.arange(len(total), device=whole.device)[:, None]
    return whole[rows, torch.from_numpy(index).to(whole.device)], total.tolist()


def _undrafted(state: State) -> State:
    """The same, where nothing of the last round's tree is the drafter's."""
    if state.last.drafted is None:
        return state
    return replace(state, last=state.last._replace(drafted=[0] * state.rows))
