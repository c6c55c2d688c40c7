"""Medians of paired ratios, with bootstrap intervals over prompts.

A bootstrap resamples what was sampled: prompts (or batches of them). It says nothing about other
machines, models or days.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.study.outcome import Interval

RESAMPLES = 2000
FEWEST = 3  # values; fewer say nothing about spread


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The median with its percentile bootstrap interval (scipy.stats.bootstrap, a fixed seed)."""
    return _interval(np.median, [values], confidence)


def ratio_interval(
    above: Sequence[float], below: Sequence[float], confidence: float = 0.95
) -> Interval:
    """The median of the paired ratios above / below, e.g. of two methods' speed-ups over the
    baseline that they share."""
    return _interval(np.median, [np.divide(*_paired(above, below))], confidence)


def difference_interval(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95
) -> Interval:
    """The median of the paired differences first - second."""
    return _interval(np.median, [np.subtract(*_paired(first, second))], confidence)


def pooled_interval(
    above: Sequence[float], below: Sequence[float], confidence: float = 0.95
) -> Interval:
    """A ratio of sums, e.g. tau = all kept tokens / all rounds, with its interval over the prompts
    that the sums run over."""
    return _interval(
        lambda a, b, axis=-1: a.sum(axis) / b.sum(axis), _paired(above, below), confidence
    )


def pooled_ratio_interval(
    above: Sequence[float],
    below: Sequence[float],
    other_above: Sequence[float],
    other_below: Sequence[float],
    confidence: float = 0.95,
) -> Interval:
    """One ratio of sums over another, e.g. tau of two methods over the same prompts."""
    return _interval(
        lambda p, q, r, s, axis=-1: (p.sum(axis) / q.sum(axis)) / (r.sum(axis) / s.sum(axis)),
        [*_paired(above, below), *_paired(other_above, other_below)],
        confidence,
    )


def _paired(first: Sequence[float], second: Sequence[float]) -> list[np.ndarray]:
    if len(first) != len(second):
        raise ValueError(
            f"the two sides are paired by prompt: got {len(first)} values and {len(second)}"
        )
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


# -------------------------------------------------------------------------------------------- tests


def sign_flip(differences: Sequence[float]) -> float:
    """p of the hypothesis that paired differences are as likely as their opposites: a permutation
    test of their mean, exact up to 13 values (scipy.stats.permutation_test)."""
    from scipy.stats import permutation_test

    found = permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted by Holm's step-down procedure (statsmodels)."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p_values, method="holm")[1]]
