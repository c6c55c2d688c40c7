"""What an engine gives back for a request: a handle, and in the end a result."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from specdec.groups import Group
from specdec.output import Event
from specdec.requests import Request
from specdec.tickets import CANCELLED, Ticket


class Times(NamedTuple):
    """Seconds since the engine was made. None: it did not come to that."""

    submitted: float
    admitted: float | None  # it got its first seat
    first_token: float | None
    finished: float | None


@dataclass(frozen=True)
class Result:
    """What came of a request."""

    text: str | None  # without its stop string; None for a target without a tokenizer
    tokens: list[int]
    finish_reason: str  # "eos" | "stop" | "length" | "cancelled" | "failed"
    times: Times
    set_aside: int  # how often it lost its seat because memory was short
    error: Exception | None = None  # why it failed


class Work(NamedTuple):
    """What a handle needs of its engine."""

    step: Callable[[], object]  # a round
    end: Callable[[Ticket], None]  # this request is over


class Handle(Ticket):
    """A request of an engine. `result()` decodes until it is over; `async for event in handle`
    does the same step by step, and lets other tasks run after every round."""

    def __init__(
        self, number: int, request: Request, group: Group, tokenizer: Any, work: Work, now: float
    ) -> None:
        super().__init__(number, request, group, tokenizer)
        self._work = work
        self.events: list[Event] = []  # so far
        self.times = Times(now, None, None, None)

    def __repr__(self) -> str:
        state = self.finish_reason or f"{len(self.emission.tokens)} tokens so far"
        return f"<request {self.number}: {state}>"

    @property
    def finish_reason(self) -> str | None:
        """None: it is not over."""
        return self.emission.finish_reason

    def result(self) -> Result:
        """What came of it. Rounds are run until it is over, for all requests of the engine."""
        while not self.over:
            self._work.step()
        emission = self.emission
        assert emission.finish_reason is not None
        return Result(
            emission.whole_text(),
            list(emission.tokens),
            emission.finish_reason,
            self.times,
            self.set_aside,
            self.error,
        )

    def cancel(self) -> bool:
        """End it where it is. False: it was over already, and stays as it is."""
        if self.over:
            return False
        self.end(CANCELLED)
        self._work.end(self)
        return True

    async def __aiter__(self) -> AsyncIterator[Event]:
        seen = 0
        while True:
            while seen < len(self.events):
                seen += 1
                yield self.events[seen - 1]
            if self.over:
                return
            self._work.step()
            await asyncio.sleep(0)
