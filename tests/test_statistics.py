"""Tests, intervals and bounds against what is known of them."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.certificates import greedy, statistics, suite
from experiments.certificates.bound import most_accepted
from experiments.certificates.tables import Tables
from experiments.measuring import measures
from experiments.measuring.intervals import difference_interval, median_interval, pooled_interval
from experiments.measuring.ways import METHOD, Sample
from experiments.report import comparison
from experiments.study import studies
from tests.exact import KNOWN
from tests.test_experiments import played, report, step

# ------------------------------------------------------------------------------------- certificates


def test_the_statistics_of_a_fit_are_scipys():
    law, counts = np.array([0.1, 0.2, 0.3, 0.4]), np.array([130, 180, 310, 380])
    found, known = statistics.fit(counts, law), stats.chisquare(counts, 1000 * law)
    assert found.statistic == pytest.approx(known.statistic)
    assert found.p_value == pytest.approx(known.pvalue)
    assert found.tv_empirical == pytest.approx(0.04)
    wide = 0.04 + math.sqrt(4 / 1000) / 2 + math.sqrt(math.log(1000) / 2000)
    assert found.tv_upper == pytest.approx(wide)


def test_the_statistics_of_the_power_of_a_test():
    """A test of size SIZE on m cells rejects a law of this noncentrality with probability POWER."""
    for cells in (2, 27, 300):
        threshold = stats.chi2.isf(statistics.SIZE, cells - 1)
        power = stats.ncx2.sf(threshold, cells - 1, statistics.noncentrality(cells))
        assert power == pytest.approx(statistics.POWER, abs=1e-6)


def test_the_statistics_of_merged_cells():
    """Two small cells expect 3 and 5, together less than ten: a third one joins them."""
    observed, expected = np.array([3.0, 50, 30, 5]), np.array([5.0, 60, 20, 3])
    merged = statistics.merged(observed, expected)
    assert [part.tolist() for part in merged] == [[38, 50], [28, 60]]
    assert statistics.merged(observed[1:3], expected[1:3])[1].tolist() == [20, 60]


def test_where_two_outputs_part():
    assert greedy.first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert greedy.first_difference([1, 2], [1, 2, 3]) == 2
    assert greedy.first_difference([1, 2, 3], [1, 2]) == 2
    assert greedy.first_difference([1, 2], [1, 2]) is None


def test_too_many_ties_are_a_fault():
    def found(ties, prompts=4):
        one = greedy.Divergence(0, 0, 1, 2, 0.0, "tie")
        return greedy.Greedy("t", "float32", prompts, 9, 0.1, 2.0, [one] * ties)

    assert found(2).passes
    assert not found(3).passes


def test_the_bound_on_accepted_tokens():
    """At one token: the overlap of p and q. Block verification reaches 7/5 at two, and for one
    drafted chain nothing can do better."""
    tables = Tables("known", KNOWN.p, KNOWN.q)

    def drafter(depth):
        settings = {"name": "small_model", "depth": depth}
        return lambda given: suite.make(settings, given.target(), given.draft())

    overlap = sum(min(a, b) / 10 for a, b in zip(KNOWN.p[()], KNOWN.q[()], strict=True))
    assert most_accepted(tables, drafter(1), 1) == pytest.approx(overlap)
    assert most_accepted(tables, drafter(2), 2) >= 7 / 5 - 1e-9


# ---------------------------------------------------------------------------------------- intervals


def test_a_pooled_interval_resamples_prompts_with_both_their_numbers():
    """Every prompt has the same ratio, so there is nothing to vary."""
    found = pooled_interval([2, 4, 20, 8], [1, 2, 10, 4])
    assert (found.median, found.low, found.high) == (2, 2, 2)


def test_an_interval_needs_three_values():
    assert median_interval([1.0, 2.0, 3.0]).low is not None
    assert median_interval([1.0, 2.0]).low is None


def test_an_interval_is_as_wide_as_that_of_a_median():
    """1.96 standard errors of a median, sqrt(pi / 2 n), to either side."""
    values = np.random.default_rng(0).normal(size=4000)
    found = median_interval(values)
    half = (found.high - found.low) / 2
    assert half == pytest.approx(1.96 * math.sqrt(math.pi / 8000), rel=0.2)


def test_an_interval_of_differences_is_first_minus_second():
    assert difference_interval([3.0, 5.0, 9.0], [1.0, 1.0, 2.0]).median == 4


# ----------------------------------------------------------------------------------------- measures


def test_tau_with_prefill_counts_a_pass_per_prompt():
    first, second = report(step([3, 2], [2, 1])), report(step([1, 0], [0, 0]))
    found = measures.pooled([first, second])
    assert found["tau"] == 6 / 3
    assert found["tau_with_prefill"] == 6 / (3 + 3)
    assert found["cache_bytes"] == {"target": 8}  # of one call at a time


def test_turns_of_a_conversation_are_one_value_of_an_interval():
    samples = [Sample([[1] * 3], 1.0, report=report(step([3], [2]))) for _ in range(4)]
    cases = played(method=samples)
    turns = [*cases, *(SimpleNamespace(**vars(case) | {"turn": 1}) for case in cases)]
    found = measures.tau_interval(turns, "method")
    assert found.n == 4
    assert found.median == 3


def test_bins_are_called_by_their_first_position():
    frame = pd.DataFrame(
        {
            "way": METHOD,
            "category": "all",
            "position": [0, 31, 32, 70],
            "depth": 2,
            "kept": [1, 2, 3, 4],
            "reached": 2,
            "accepted": 1,
        }
    )
    found = measures.parts(frame)["by_position"]
    assert [(part.first, part.rounds, part.kept) for part in found] == [
        (0, 2, 3),
        (32, 1, 3),
        (64, 1, 4),
    ]


def test_jobs_are_in_the_order_of_their_numbers():
    folders = [Path(name) for name in ("10", "again", "2", "0")]
    in_order = sorted(folders, key=studies._order)
    assert [folder.name for folder in in_order] == ["0", "2", "10", "again"]


def test_a_comparison_is_of_b_and_a_over_what_both_have():
    def way(*taus):
        entries = [SimpleNamespace(prompt=n, turn=0, tau=tau) for n, tau in enumerate(taus)]
        return SimpleNamespace(per_prompt=entries)

    assert comparison._taus(way(1.0, 2.0, 9.0), way(3.0, 4.0)) == ([3.0, 4.0], [1.0, 2.0])
