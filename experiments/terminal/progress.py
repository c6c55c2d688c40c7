"""Progress on standard error: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

SILENCE = 30.0  # seconds between two lines


class Advance(Protocol):
    """`by` more are done. note: what is to be seen beside the title, such as a loss."""

    def __call__(self, note: str = "", by: int = 1) -> None: ...


@contextmanager
def bar(title: str, total: int, shown: bool = True, done: int = 0) -> Iterator[Advance]:
    """`with bar("prompts", 8) as advance:`; call `advance` after each. done: how many an earlier
    run did. What is printed meanwhile stands above the bar."""
    if not shown:
        yield lambda note="", by=1: None
    elif not sys.stderr.isatty():
        yield Lines(title, total, done=done).advance
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda note="", by=1: progress.update(
                task, advance=by, description=f"{title} {note}".strip()
            )


class Lines:
    """ "title: 3 of 8, 38%, 2 min left", at most one in SILENCE seconds: a short run says
    nothing."""

    def __init__(
        self, title: str, total: int, clock: Callable[[], float] = time.monotonic, done: int = 0
    ) -> None:
        self.title, self.total, self.clock = title, total, clock
        self.began = self.said = clock()
        self.done = self.before = done

    def advance(self, note: str = "", by: int = 1) -> None:
        self.done += by
        now = self.clock()
        if now - self.said >= SILENCE:
            self.said = now
            each = (now - self.began) / max(1, self.done - self.before)
            left = _duration(each * max(0, self.total - self.done))
            share = f"{self.done / max(1, self.total):.0%}"
            title = f"{self.title} {note}".strip()
            print(
                f"{title}: {self.done} of {self.total}, {share}, {left} left",
                file=sys.stderr,
                flush=True,
            )


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
