"""Medians of paired ratios, with bootstrap intervals over prompts.

A bootstrap resamples what was sampled: prompts (or batches of them). It says nothing about other machines, models or days.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
FEWEST = 3  # values; fewer say nothing about spread


class Interval(NamedTuple):
    """A median and its interval; no interval below three values."""

    median: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2f}" + ("" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]")


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median with its percentile bootstrap interval (scipy.stats.bootstrap, a fixed seed)."""
    return _interval(np.median, [values], confidence)


def ratio_interval(above: Sequence[float], below: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of the paired ratios above / below, e.g. of two methods' speed-ups over the baseline that they share."""
    return _interval(np.median, [np.divide(*_paired(above, below))], confidence)


def difference_interval(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median of the paired differences first - second."""
    return _interval(np.median, [np.subtract(*_paired(first, second))], confidence)


def pooled_interval(above: Sequence[float], below: Sequence[float], confidence: float = 0.95) -> Interval:
    """A ratio of sums, e.g. tau = all kept tokens / all rounds, with its interval over the prompts that the sums run over."""
    return _interval(lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), _paired(above, below), confidence)


def _paired(first: Sequence[float], second: Sequence[float]) -> list[np.ndarray]:
    if len(first) != len(second):
        raise ValueError(f"the two sides are paired by prompt: got {len(first)} values and {len(second)}")
    return [np.asarray(first, dtype=float), np.asarray(second, dtype=float)]


def _interval(statistic: Callable[..., Any], samples: Sequence[Any], confidence: float) -> Interval:
    samples = [np.asarray(sample, dtype=float) for sample in samples]
    count = len(samples[0])
    if count == 0:
        raise ValueError("no values to take an interval of")
    middle = float(statistic(*samples))
    if count < FEWEST:
        return Interval(middle, None, None, count)
    from scipy.stats import bootstrap  # it takes as long to import as a small run to decode

    found = bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(middle, float(found.low), float(found.high), count)
