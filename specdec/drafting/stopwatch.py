"""Seconds of a round, measured inside a drafter: from `propose` to the end of `observe`."""

import time
from collections.abc import Callable, Sequence

from specdec.interfaces import Opened, OpenedCompiled
from specdec.state import State


class Stopwatch:
    """Of one run. What compiling took is left out."""

    def __init__(self, opened: Sequence[Opened], clock: Callable[[], float] = time.perf_counter):
        self.runs = False
        self._opened, self._clock = opened, clock
        self._memories: list[OpenedCompiled] | None = None
        self._began = self._compiled = 0.0

    def start(self, state: State) -> None:
        """A round begins."""
        if self._memories is None:  # the target's own memory is known from the first round on
            memories = (state.memory, *self._opened)
            self._memories = [one for one in memories if isinstance(one, OpenedCompiled)]
        self.runs, self._began, self._compiled = True, self._clock(), self._compiling()

    def so_far(self) -> float:
        return self._clock() - self._began - (self._compiling() - self._compiled)

    def stop(self) -> float:
        self.runs = False
        return self.so_far()

    def _compiling(self) -> float:
        return sum(each.seconds for one in self._memories or () for each in one.compiled)
