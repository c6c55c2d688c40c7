"""How many samples a verdict needs, and what they say. Goodness of fit of counts to a law that is
known.

Letters: m cells, N samples. A law at total variation d from p has a chi-square distance of at least
4 d^2 from it, so N = lambda / (4 d^2) samples give the test the power that goes with the
noncentrality lambda.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2

SIZE, POWER, TV = 1e-6, 0.99, 0.02
CELLS = 1000  # at most; more are hashed together
EXPECTED = 10  # at least, per cell; smaller ones are merged
ETA = 1e-3  # the upper bound on the total variation holds with probability 1 - ETA


def noncentrality(cells: int, size: float = SIZE, power: float = POWER) -> float:
    """lambda at which a chi-square test of this size on m cells has this power."""
    threshold, freedom = chi2.isf(size, cells - 1), cells - 1
    return float(
        brentq(
            lambda value: ncx2.sf(threshold, freedom, value) - power, 1e-3, 100 * (freedom + 100)
        )
    )


def sample_size(cells: int, tv: float = TV, strength: float = 1.0, size: float = SIZE) -> int:
    """Samples that find a law at total variation `tv` in a test of this size, times `strength`."""
    return math.ceil(strength * noncentrality(cells, size) / (4 * tv * tv))


@dataclass(frozen=True)
class Fit:
    """Counts against a law."""

    samples: int
    cells: int  # after hashing and merging
    statistic: float
    p_value: float
    impossible: int  # samples in cells of probability 0: any fails outright
    tv_empirical: float
    # the total variation, after hashing and merging, is below it with probability 1 - ETA
    tv_upper: float
    tv_found: float  # the smallest total variation that this many samples find with power 0.99


def fit(counts: np.ndarray, law: np.ndarray, seed: int = 0, size: float = SIZE) -> Fit:
    """Chi-square of counts (K,) against the law (K,): cells hashed to at most 1000, those that
    expect fewer than 10 merged. `tv_found` is that of a test of this size."""
    samples = int(counts.sum())
    possible = law > 0
    impossible = int(counts[~possible].sum())
    observed, expected = (
        counts[possible].astype(float),
        samples * law[possible] / law[possible].sum(),
    )
    observed, expected = merged(*hashed(observed, expected, seed))
    cells = len(expected)
    statistic = float(((observed - expected) ** 2 / expected).sum()) if cells > 1 else 0.0
    p_value = float(chi2.sf(statistic, cells - 1)) if cells > 1 else 1.0
    tv = float(np.abs(observed - expected).sum() / 2 / samples)
    upper = tv + 0.5 * math.sqrt(cells / samples) + math.sqrt(math.log(1 / ETA) / (2 * samples))
    found = math.sqrt(noncentrality(cells, size) / (4 * samples)) if cells > 1 else 1.0
    return Fit(
        samples,
        cells,
        statistic,
        0.0 if impossible else p_value,
        impossible,
        tv,
        min(1.0, upper),
        min(1.0, found),
    )


def hashed(observed: np.ndarray, expected: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most 1000 cells, put together at random."""
    if len(expected) <= CELLS:
        return observed, expected
    bucket = np.random.default_rng(seed).permutation(len(expected)) % CELLS
    return np.bincount(bucket, observed), np.bincount(bucket, expected)


def merged(observed: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest cells together, as few as make every cell expect 10 or more."""
    order = np.argsort(expected, kind="stable")
    observed, expected = observed[order], expected[order]
    small = int(np.searchsorted(expected, EXPECTED))
    if small == 0:
        return observed, expected
    while small < len(expected) and expected[:small].sum() < EXPECTED:
        small += 1
    pooled = (np.concatenate([[part[:small].sum()], part[small:]]) for part in (observed, expected))
    return next(pooled), next(pooled)


def holm(p_values: Sequence[float], size: float = SIZE) -> list[bool]:
    """Which hypotheses stand when the whole family is tested at `size` (Holm's step-down, by
    statsmodels)."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests  # it takes most of a second to import

    rejected = multipletests(p_values, alpha=size, method="holm")[0]
    return [not each for each in rejected.tolist()]
