"""Progress on standard error: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENCE = 30.0  # seconds between two lines


@contextmanager
def bar(title: str, total: int, shown: bool = True) -> Iterator[Callable[[], None]]:
    """`with bar("prompts", 8) as advance:`; call `advance` after each."""
    if not shown:
        yield lambda: None
    elif not sys.stderr.isatty():
        yield Lines(title, total).advance
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total)
            yield lambda: progress.advance(task)


class Lines:
    """ "title: 3 of 8, 38%, 2 min left", at most one in SILENCE seconds: a short run says
    nothing."""

    def __init__(self, title: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.title, self.total, self.clock = title, total, clock
        self.began = self.said = clock()
        self.done = 0

    def advance(self) -> None:
        self.done += 1
        now = self.clock()
        if now - self.said >= SILENCE:
            self.said = now
            left = (now - self.began) / self.done * max(0, self.total - self.done)
            share = self.done / max(1, self.total)
            print(
                f"{self.title}: {self.done} of {self.total}, {share:.0%}, {_duration(left)} left",
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
