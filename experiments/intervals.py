"""Medians of paired ratios, with bootstrap intervals over prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A median and its 95% interval; no interval below three values, which say nothing about spread."""

    median: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.median:.2f}" + ("" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]")


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median with its percentile bootstrap interval (scipy.stats.bootstrap, 2,000 resamples, a fixed seed)."""
    from scipy.stats import bootstrap

    array = np.asarray(values, dtype=float)
    if len(array) == 0:
        raise ValueError("no values to take the median of")
    middle = float(np.median(array))
    if len(array) < 3:
        return Interval(middle, None, None, len(array))
    found = bootstrap(
        (array,),
        np.median,
        n_resamples=2000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(middle, float(found.low), float(found.high), len(array))
