"""One load, played on an engine: submit what has arrived, run a round, note what happened.

A request's clock starts when it arrives, also where a round was under way and the engine saw it
later: otherwise a slow round would hide the wait that it causes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from specdec import Engine
from specdec.handles import Handle


@dataclass(frozen=True)
class Asked:
    """A request, drawn once and given to every drafter."""

    number: int
    prompt: Sequence[int]
    max_new_tokens: int


class Clock(Protocol):
    """Seconds; tests bring their own."""

    def now(self) -> float: ...
    def wait(self, seconds: float) -> None: ...


class WallClock:
    def now(self) -> float:
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


class Open:
    """Requests that arrive at times of their own; the first of them counts from 0."""

    def __init__(self, times: Sequence[float]) -> None:
        self.times = times

    def arrival(self, number: int, over: int, now: float) -> float | None:
        """When request `number` arrives. None: that depends on others."""
        return self.times[number]


class Closed:
    """So many requests are under way; the next one arrives when one ends."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency

    def arrival(self, number: int, over: int, now: float) -> float | None:
        """`over`: how many have ended."""
        return now if number - over < self.concurrency else None


@dataclass
class Request:
    """What came of one request; seconds from the start of the load."""

    number: int
    arrived: float
    prompt_tokens: int
    token_times: list[float] = field(default_factory=list)  # one for each of its tokens
    ended: float = 0.0
    finish_reason: str = ""
    set_aside: int = 0

    @property
    def seconds(self) -> float:
        """From its arrival to its end."""
        return self.ended - self.arrived

    @property
    def first_token(self) -> float:
        """From its arrival to its first token."""
        return (self.token_times[0] if self.token_times else self.ended) - self.arrived

    @property
    def gaps(self) -> list[float]:
        """Between tokens. Those of one round arrive together: 0 between them."""
        return [later - earlier for earlier, later in pairwise(self.token_times)]


class Round(NamedTuple):
    """The state after a round."""

    second: float
    queue: int  # requests without a seat
    seats: int  # in use
    rows: int  # that decoded
    tokens: int  # that they kept
    pages: int | None  # in use; None: the memory has none
    memory_bytes: int  # of the target's keys and values


@dataclass(frozen=True)
class Played:
    requests: list[Request]  # by their numbers
    rounds: list[Round]


def play(
    engine: Engine,
    asked: Sequence[Asked],
    arrivals: Open | Closed,
    options: dict[str, Any],
    clock: Clock | None = None,
) -> Played:
    """Serve all requests. options: of `Engine.submit`, the same for all."""
    clock = clock or WallClock()
    began, submitted, over = clock.now(), 0, 0
    under_way: dict[int, tuple[Handle, Request]] = {}  # by the engine's numbers
    requests: list[Request] = []
    rounds: list[Round] = []
    while over < len(asked):
        now = clock.now() - began
        while submitted < len(asked):
            arrives = arrivals.arrival(submitted, over, now)
            if arrives is None or arrives > now:
                break
            one = asked[submitted]
            handle = engine.submit(
                one.prompt, max_new_tokens=one.max_new_tokens, request_id=one.number, **options
            )
            requests.append(Request(one.number, arrives, len(one.prompt)))
            under_way[handle.number] = handle, requests[-1]
            submitted += 1
        if not engine.busy:
            assert arrives is not None
            clock.wait(arrives - now)
            continue
        before = engine.last_step
        events = engine.step()
        now = clock.now() - began
        for event in events:
            handle, request = under_way[event.row]
            request.token_times += [now] * len(event.tokens)
            if event.finish_reason:
                request.ended, request.finish_reason = now, event.finish_reason
                request.set_aside = handle.set_aside
                del under_way[event.row]
                over += 1
        rounds.append(_round(engine, now, engine.last_step is not before))
    return Played(requests, rounds)


def _round(engine: Engine, now: float, decoded: bool) -> Round:
    """decoded: not only parts of prompts were read."""
    step = engine.last_step if decoded else None
    return Round(
        now,
        engine.waiting,
        engine.seats_in_use,
        0 if step is None else int(step.live.sum()),
        0 if step is None else int(step.kept[step.live].sum()),
        engine.pages_in_use,
        engine.memory.nbytes,
    )
