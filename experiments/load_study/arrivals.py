"""When requests arrive.

An open loop has times of its own: a slow engine does not slow them down, so that requests queue. In
a closed loop so many requests are always under way: the next one comes when one ends.
"""

import math
import random
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from experiments.terminal.refusals import meant

ARRIVALS = ("poisson", "burst", "trace")


def numbers(key: str, given: Any, kind: type = float) -> list[Any]:
    """`1,2,4` of a command line, a number, or a list of them. Raises ValueError for what is no
    positive number."""
    parts = given.split(",") if isinstance(given, str) else given
    found = []
    for part in parts if isinstance(parts, (list, tuple)) else [parts]:
        try:
            value = kind(str(part))
        except ValueError:
            value = kind(0)
        if not 0 < value < math.inf:
            unit = "a whole number" if kind is int else "a number"
            raise ValueError(f"{key} must be {unit} above 0, or several as 1,2,4; got {part!r}")
        found.append(value)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{key} must list one load or more, each once; got {given!r}")
    return sorted(found)


def check(arrivals: str, trace: str | None, concurrency: Any) -> None:
    """Raise ValueError for arrivals that nobody knows, and for settings of other arrivals."""
    if arrivals not in ARRIVALS:
        raise ValueError(
            f"unknown arrivals {arrivals!r}{meant(arrivals, ARRIVALS)}; there are: "
            f"{', '.join(ARRIVALS)}, and concurrency=1,2,4 for a closed loop"
        )
    if (arrivals == "trace") != (trace is not None):
        raise ValueError("arrivals=trace and trace=FILE, a time in seconds a line, go together")
    if concurrency is not None and arrivals != "poisson":
        raise ValueError(
            f"arrivals={arrivals} and concurrency were both given; concurrency is a closed loop, "
            "where a request arrives when another one ends: leave one out"
        )


def read_trace(path: str, most: int) -> list[float]:
    """Seconds from the first request, of a file with a time a line: of its first `most` requests.
    Raises ValueError, with the line, for a time that is no number or that runs backwards."""
    times: list[float] = []
    for number, text in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            time = float(text)
        except ValueError:
            time = math.nan
        if not math.isfinite(time):
            raise ValueError(f"{path}, line {number}: expected a time in seconds, got {text!r}")
        if times and time < times[-1]:
            raise ValueError(
                f"{path}, line {number}: the trace runs backwards, {time:g} after {times[-1]:g}; "
                "sort its lines"
            )
        times.append(time)
    times = times[:most]
    if len(times) < 2 or times[-1] == times[0]:
        raise ValueError(
            f"{path} needs two different times at least among its first {most}, got {len(times)} "
            "requests at one time or none"
        )
    return [time - times[0] for time in times]


def poisson(count: int, seed: int) -> list[float]:
    """Of one request a second. Another rate stretches the same times."""
    draw = random.Random(seed)
    return [0.0, *accumulate(draw.expovariate(1.0) for _ in range(count - 1))]


def bursts(count: int, size: int) -> list[float]:
    """`size` at once, with as long between bursts as keeps one request a second."""
    return [float(number // size * size) for number in range(count)]


def mean_rate(times: Sequence[float]) -> float:
    """Requests a second of a trace."""
    return (len(times) - 1) / (times[-1] - times[0])


def at_rate(times: Sequence[float], rate: float) -> list[float]:
    """The same arrivals, of one request a second, at another rate."""
    return [time / rate for time in times]
