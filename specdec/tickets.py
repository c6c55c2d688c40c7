"""Requests under way: what has come of each so far, and the line of those that wait."""

import heapq
from collections.abc import Iterator
from typing import Any

from specdec.groups import Group
from specdec.measuring.report import Served
from specdec.output import Emission, Event
from specdec.requests import Request

CANCELLED, FAILED = "cancelled", "failed"


class Ticket:
    """A request on its way through the seats."""

    def __init__(self, number: int, request: Request, group: Group, tokenizer: Any) -> None:
        self.number, self.request, self.group = number, request, group
        group.requests += 1
        self.emission = Emission.of(request, tokenizer)
        self.error: Exception | None = None  # why it failed
        self.served: Served | None = None  # once it has had a seat
        self.set_aside = 0  # how often it lost its seat to others

    def __lt__(self, other: "Ticket") -> bool:
        """Served before the other: higher priority, then earlier."""
        mine, theirs = self.request.priority, other.request.priority
        return (-mine, self.number) < (-theirs, other.number)

    @property
    def text(self) -> list[int]:
        """The prompt and what came so far."""
        return self.request.prompt + self.emission.tokens

    @property
    def room(self) -> int:
        """Tokens that it may still add."""
        return self.request.max_new_tokens - len(self.emission.tokens)

    @property
    def over(self) -> bool:
        return self.emission.finish_reason is not None

    def add(self, tokens: list[int]) -> list[int]:
        """Append tokens; those that were kept."""
        return self.emission.add(tokens)

    def end(self, reason: str, error: Exception | None = None) -> None:
        """End it here."""
        self.emission.finish_reason, self.error = reason, error

    def event(self, added: int = 0, accepted: int = 0) -> Event:
        """What the last `added` tokens brought."""
        return self.emission.event(self.number, added, accepted)


class Line:
    """Tickets that wait for a seat, the next one first. Those that end while they wait drop out."""

    def __init__(self) -> None:
        self._heap: list[Ticket] = []

    def __bool__(self) -> bool:
        return self.first is not None

    def __len__(self) -> int:
        return sum(not ticket.over for ticket in self._heap)

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for ticket in sorted(self._heap) if not ticket.over)

    def join(self, ticket: Ticket) -> None:
        heapq.heappush(self._heap, ticket)

    @property
    def first(self) -> Ticket | None:
        while self._heap and self._heap[0].over:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None

    def pop(self) -> Ticket:
        assert self.first is not None
        return heapq.heappop(self._heap)
