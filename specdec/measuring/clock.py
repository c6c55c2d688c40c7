"""Seconds by phase. On an accelerator times come from events on its stream, which are read when
somebody asks for them: nothing waits for the device while a round runs."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

PHASES = ("draft", "score", "verify", "commit", "other")  # of a round
PREFILL = "prefill"


class Clock:
    """`with clock("draft"): ...` notes when a phase begins and ends. compiling: seconds that the
    run has spent on compiling so far; they are left out."""

    def __init__(self, device: torch.device, compiling: Callable[[], float] = lambda: 0.0) -> None:
        self.device, self.compiling = device, compiling
        self._marks: list[Span] = []
        self._began = self.mark()

    def mark(self) -> "Mark":
        return Event(self.device) if self.device.type == "cuda" else Moment()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began, compiled = self.mark(), self.compiling()
        try:
            yield
        finally:
            self._marks.append(Span(phase, began, self.mark(), self.compiling() - compiled))

    def begin_round(self) -> None:
        """Begin a round. The time since the last round belongs to neither round."""
        self._began = self.mark()

    def take(self) -> "Times":
        """The phases since the last take, and when the round began and ended."""
        taken, self._marks = self._marks, []
        return Times(taken, self._began, self.mark())


class Moment:
    """A time on the host."""

    def __init__(self) -> None:
        self.time = time.perf_counter()

    def since(self, other: "Mark") -> float:
        assert isinstance(other, Moment)
        return self.time - other.time


class Event:
    """A point in the stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record(torch.cuda.current_stream(device))

    def since(self, other: "Mark") -> float:
        """Waits for the device if it has not come here yet."""
        assert isinstance(other, Event)
        self.event.synchronize()
        return float(other.event.elapsed_time(self.event)) / 1000


Mark = Moment | Event


class Span(NamedTuple):
    phase: str
    began: Mark
    ended: Mark
    compiling: float  # seconds of it


class Times:
    """The phases of one round, worked out when asked for."""

    def __init__(self, marks: list[Span], began: Mark, ended: Mark) -> None:
        self._marks, self._began, self._ended = marks, began, ended
        self._seconds: dict[str, float] | None = None

    @classmethod
    def of(cls, seconds: Mapping[str, float]) -> "Times":
        """Of a round whose seconds are known, by phase."""
        found = cls([], Moment(), Moment())
        found._seconds = dict(seconds)
        return found

    @property
    def seconds(self) -> dict[str, float]:
        """By phase; "other" is what remains of the round. The prefill of new rows is apart."""
        if self._seconds is None:
            found: dict[str, float] = defaultdict(float)
            for span in self._marks:
                found[span.phase] += span.ended.since(span.began) - span.compiling
            whole = self._ended.since(self._began) - sum(one.compiling for one in self._marks)
            found["other"] = max(0.0, whole - sum(found.values()))
            self._seconds, self._marks = dict(found), []
        return self._seconds
