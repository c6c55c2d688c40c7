"""What a report says, of rounds written down by hand; and what a clock counts to which phase."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from specdec.measuring import clock
from specdec.measuring.acceptance import Acceptance
from specdec.measuring.report import Report, Served, Step, distinct_ngrams

PARENTS = [-1, 0, 0, 1, 1, 2]  # two children of the root, two of node 1, one of node 2


def step(number, live, kept, paths, counts, prefill=0.0) -> Step:
    live, paths = np.array(live), np.array(paths)
    return Step(
        number,
        live,
        np.array([PARENTS] * len(live)),
        paths,
        (paths > 0).sum(1),
        np.array(kept),
        SimpleNamespace(seconds={"prefill": prefill, "draft": 0.5, "score": 1.5}),
        {"tv": np.array(counts)},
        np.where(live, np.arange(len(live)), -1),
    )


@pytest.fixture
def report() -> Report:
    """Three prompts: one goes on for two rounds."""
    steps = [
        step(0, [True] * 3, [3, 1, 1], [[1, 4], [-1, -1], [-1, -1]], [0.5, 0.25, 0.0], prefill=4.0),
        step(1, [True, False, False], [2, 0, 0], [[2, -1], [-1, -1], [-1, -1]], [1.0, 8.0, 8.0]),
    ]
    return Report(steps, [Served(0, 1, 2)] * 3, 9.0, {}, {}, "ngram", "naive", True)


def test_tau_is_per_live_row_and_round(report):
    assert report.num_tokens == 7
    assert report.tau == 7 / 4
    assert report.tau_per_row == [5 / 2, 1, 1]
    assert report.tau_macro == pytest.approx((5 / 2 + 1 + 1) / 3)
    assert report.accepted_per_round == 3 / 4
    assert report.accepted_per_row == [3 / 2, 0, 0]


def test_acceptance_counts_what_was_reached(report):
    """Of the accepted path 1, 4: nodes 1 to 4 were reached. Of the path 2: 1, 2 and 5."""
    assert report.acceptance_rate == 3 / (4 + 2 + 2 + 3)
    assert report.acceptance == {
        (1, 0): Acceptance(offered=4, reached=4, accepted=1),
        (1, 1): Acceptance(offered=4, reached=4, accepted=1),
        (2, 0): Acceptance(offered=8, reached=2, accepted=0),
        (2, 1): Acceptance(offered=4, reached=1, accepted=1),
    }
    # groups of siblings: four below the root, of which two had one accepted; two below those
    assert report.acceptance_per_depth == {1: 2 / 4, 2: 1 / 2}
    assert report.accepted_lengths == {0: 2, 1: 1, 2: 1}
    assert report.nodes_per_round == 5


def test_rows_that_have_ended_count_nowhere(report):
    assert report.steps[1].num_nodes.tolist() == [5, 0, 0]
    assert report.counts == {"tv": 1.75}
    assert report.rounds_per_row.tolist() == [2, 1, 1]


def test_prefill_is_no_decoding(report):
    assert report.prefill_seconds == 4
    assert report.decode_seconds == 4
    assert report.tokens_per_second == 7 / 4
    assert report.seconds["score"] == 3


def test_distinct_ngrams():
    assert distinct_ngrams([[1, 2, 3, 4, 5]]) == 1
    assert distinct_ngrams([[7] * 6]) == 1 / 3
    assert distinct_ngrams([[7] * 6, [1, 2, 3, 4]]) == 2 / 4
    assert distinct_ngrams([[1, 2, 3]]) is None


def test_phases_and_what_remains_make_up_the_round(monkeypatch):
    """What is between two rounds belongs to neither."""
    now = [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    watch = clock.Clock(torch.device("cpu"))
    found = []
    for began in (10.0, 100.0):
        now[0] = began
        watch.begin_round()
        for phase, seconds in (("draft", 2.0), ("score", 3.0), ("draft", 1.0)):
            with watch(phase):
                now[0] += seconds
            now[0] += 0.5
        found.append(watch.take().seconds)
    assert found == [{"draft": 3.0, "score": 3.0, "other": 1.5}] * 2
