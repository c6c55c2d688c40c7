"""The numbers of an outcome, from what each way made of each batch of prompts.

study/outcome.py says what each number is.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.measuring.divergence import divergences
from experiments.measuring.intervals import median_interval, pooled_interval
from experiments.measuring.memory import weights
from experiments.measuring.play import Played
from experiments.measuring.ways import AGAIN, COLD, METHOD, Ours, Sample, Way
from experiments.study.outcome import (
    BIN,
    Balance,
    Cell,
    Divergences,
    Expected,
    Gaps,
    Groups,
    Interval,
    Memory,
    OfCategory,
    OfDepth,
    OfPosition,
    OurPromptResult,
    OurResult,
    Outcome,
    PromptResult,
    Speedup,
    WayResult,
    acceptance_rate,
    tau,
)
from experiments.study.schema import Sampling
from specdec.measuring.promises import promises, reliability
from specdec.measuring.report import Report, distinct_ngrams

PERCENTILES = (50, 95, 99)
POINTS = 200  # of a balance over time


def outcome(
    played: Sequence[Played], ways: Mapping[str, Way], sampling: Sampling, rounds: pd.DataFrame
) -> Outcome:
    """`rounds`: the frame of rounds.py. The method, and itself in the cold, are set against every
    baseline; the first baseline decoded again against itself."""
    greedy, plain = sampling.temperature == 0, sampling.repetition_penalty == 1
    target = next(iter(ways.values())).target
    compared = baselines_of(ways) if greedy else []
    apart = {name: divergences(played, target, name, plain) for name in compared}
    return combined(way_results(played, ways), played, apart, rounds)


def baselines_of(ways: Iterable[str]) -> list[str]:
    return [name for name in ways if name not in (METHOD, AGAIN, COLD)]


def combined(
    found: Mapping[str, WayResult],
    played: Sequence[Played],
    divergence: dict[str, Divergences],
    rounds: pd.DataFrame,
) -> Outcome:
    """Of ways that have not been set against one another yet."""
    baselines = baselines_of(found)
    against = {METHOD: baselines, COLD: baselines, AGAIN: baselines[:1]}
    return Outcome(
        prompts=len({prompt.index for one in played for prompt in one.prompts}),
        batches=[[prompt.index for prompt in one.prompts] for one in played if one.turn == 0],
        learns=COLD in found,
        ways={
            name: replace(
                way, speedup={other: speedup(way, found[other]) for other in against.get(name, [])}
            )
            for name, way in found.items()
        },
        divergence=divergence,
        **parts(rounds),
    )


def way_results(played: Sequence[Played], ways: Mapping[str, Way]) -> dict[str, WayResult]:
    return {name: way_result(played, name, way) for name, way in ways.items()}


def way_result(played: Sequence[Played], name: str, way: Way) -> WayResult:
    """One way over all prompts."""
    return summed(played, name, memory(way, [one.samples[name] for one in played]))


def summed(played: Sequence[Played], name: str, memory: Memory) -> WayResult:
    """The same, where its memory is known."""
    samples = [one.samples[name] for one in played]
    tokens = [row for sample in samples for row in sample.tokens]
    count, wall = sum(map(len, tokens)), sum(sample.wall_seconds for sample in samples)
    shared: dict[str, Any] = {
        "tokens": count,
        "wall_seconds": wall,
        "wall_tokens_per_second": count / wall,
        "distinct_4grams": distinct_ngrams(tokens),
        "per_prompt": per_prompt(played, name),
        "memory": memory,
    }
    reports = [sample.report for sample in samples if sample.report]
    if not reports:
        return WayResult(**shared)
    return OurResult(**shared, **pooled(reports), tau_interval=tau_interval(played, name))


def expected(reports: Sequence[Report]) -> Expected | None:
    steps = [step for report in reports for step in report.steps]
    kept, trust = promises(steps), reliability(steps)
    if kept is None or trust is None:
        return None
    return Expected(
        **kept.as_dict(),
        calibration_error=trust.error,
        count=trust.count.tolist(),
        chance=trust.expected.tolist(),
        accepted=trust.accepted.tolist(),
    )


def balance(reports: Sequence[Report]) -> Balance | None:
    """Of the runs under a bank. Each run's bank begins at 0."""
    banks = [(each.steps, each.account["no_harm"]) for each in reports if "no_harm" in each.account]
    if not banks:
        return None
    line = [0.0]
    for steps, bank in banks:
        before = [step.chosen.balance for step in steps[1:] if step.chosen is not None]
        after = [*(value for value in before if value is not None), bank["balance"]]
        line += [line[-1] + value for value in after]
    at = np.unique(np.linspace(0, len(line) - 1, min(len(line), POINTS)).round().astype(int))
    sums = {name: sum(bank[name] for _, bank in banks) for name in ("rounds", "plain_rounds")}
    return Balance(
        **sums,
        trials=sum(bank["trials"] for _, bank in banks),
        at=at.tolist(),
        seconds=[line[place] for place in at],
    )


def pooled(reports: Sequence[Report]) -> dict[str, Any]:
    """The numbers of several calls of generate as those of one: what `OurResult` has besides
    `WayResult`."""
    row_rounds = sum(int(step.live.sum()) for report in reports for step in report.steps)
    prompts = sum(len(report.tau_per_row) for report in reports)
    kept = sum(report.num_tokens for report in reports)
    decode = sum(report.decode_seconds for report in reports)
    rounds = sum(report.target_calls for report in reports)
    lengths: Counter[int] = Counter()
    counts: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    cells: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    groups: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for report in reports:
        lengths.update(report.accepted_lengths)
        counts.update(report.counts)
        for phase, value in report.seconds.items():
            seconds[phase] += value
        for place, cell in report.acceptance.items():
            cells[place] = _added(cells[place], (cell.offered, cell.reached, cell.accepted))
        for depth, pair in report.drafted.per_depth.items():
            groups[depth] = _added(groups[depth], pair)
    offered, reached, accepted = (sum(cell[stage] for cell in cells.values()) for stage in range(3))
    first = reports[0]
    return {
        "expected": expected(reports),
        "balance": balance(reports),
        "drafter": first.drafter,
        "verifier": first.verifier,
        "lossless": first.lossless,
        "extra_layers": first.extra_layers,
        "rounds": rounds,
        "row_rounds": row_rounds,
        "tau": tau(kept, row_rounds),
        "tau_macro": _mean([value for report in reports for value in report.tau_per_row]),
        "tau_with_prefill": tau(kept, row_rounds + prompts),
        "accepted_per_round": accepted / max(1, row_rounds),
        "accepted_per_round_macro": _mean(
            [value for report in reports for value in report.accepted_per_row]
        ),
        "acceptance_rate": acceptance_rate(accepted, reached),
        "nodes_per_round": offered / max(1, row_rounds),
        "nodes_per_accepted": offered / accepted if accepted else None,
        "target_calls_per_token": rounds / max(1, kept),
        "tokens_per_second": kept / decode if decode else None,
        "decode_seconds": decode,
        "compile_seconds": sum(report.compile_seconds for report in reports),
        "first_token_seconds": float(np.median([report.first_token_seconds for report in reports])),
        "gaps": gaps(np.concatenate([report.gaps for report in reports])),
        "seconds": dict(seconds),
        "cache_bytes": {
            key: max(report.cache_bytes[key] for report in reports) for key in first.cache_bytes
        },
        "accepted_lengths": dict(sorted(lengths.items())),
        "acceptance": [
            Cell(depth=depth, rank=rank, offered=cell[0], reached=cell[1], accepted=cell[2])
            for (depth, rank), cell in sorted(cells.items())
        ],
        "per_depth": [
            Groups(depth=depth, reached=reached, accepted=accepted)
            for depth, (reached, accepted) in sorted(groups.items())
        ],
        "counts": dict(counts),
    }


def _added(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def gaps(seconds: np.ndarray) -> Gaps | None:
    """None of nothing."""
    if not len(seconds):
        return None
    values = np.percentile(seconds, PERCENTILES)
    return Gaps(
        **{f"p{percent}": float(value) for percent, value in zip(PERCENTILES, values, strict=True)}
    )


def memory(way: Way, samples: Sequence[Sample]) -> Memory:
    target = weights(way.target)
    both = weights(way.target, way.drafter) if isinstance(way, Ours) else target
    peaks = [sample.peak for sample in samples if sample.peak and sample.peak.bytes]
    highest = max(peaks, key=lambda peak: peak.bytes or 0, default=None)
    return Memory(
        target_weights=target,
        drafter_weights=both - target,
        peak=highest.bytes if highest else None,
        before=highest.before if highest else None,
    )


def per_prompt(played: Sequence[Played], way: str) -> list[PromptResult]:
    found: list[PromptResult] = []
    for one in played:
        sample = one.samples[way]
        shared: list[dict[str, Any]] = [
            {
                "prompt": prompt.index,
                "category": prompt.category,
                "turn": one.turn,
                "batch": one.batch,
                "prompt_tokens": len(given),
                "tokens": len(tokens),
                "distinct_4grams": distinct_ngrams([tokens]),
                "wall_seconds": sample.wall_seconds,
            }
            for prompt, given, tokens in zip(
                one.prompts, one.given[way], sample.tokens, strict=True
            )
        ]
        report = sample.report
        if report is None:
            found += [PromptResult(**entry) for entry in shared]
            continue
        columns = (report.rounds_per_row.tolist(), report.tau_per_row, report.accepted_per_row)
        found += [
            OurPromptResult(
                **entry,
                rounds=rounds,
                tau=own_tau,
                accepted_per_round=accepted,
                decode_seconds=report.decode_seconds,
                first_token_seconds=report.first_token_seconds,
                target_seconds=sample.target_seconds,
                draft_seconds=sample.draft_seconds,
            )
            for entry, rounds, own_tau, accepted in zip(shared, *columns, strict=True)
        ]
    return found


def tau_interval(played: Sequence[Played], way: str) -> Interval:
    """tau with its interval over prompts, all turns of a prompt together."""
    kept: Counter[int] = Counter()
    rounds: Counter[int] = Counter()
    for one in played:
        report = one.samples[way].report
        assert report is not None
        for row, number in enumerate(report.rounds_per_row.tolist()):
            kept[one.prompts[row].index] += len(one.samples[way].tokens[row])
            rounds[one.prompts[row].index] += number
    return pooled_interval(list(kept.values()), list(rounds.values()))


def speedup(way: WayResult, baseline: WayResult) -> Speedup:
    """Seconds per token of the baseline / those of the way, batch by batch over all its turns: the
    median and its interval."""
    pairs = zip(baseline.seconds_per_token, way.seconds_per_token, strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    return Speedup(**vars(median_interval(ratios)), per_batch=ratios)


def parts(rounds: pd.DataFrame) -> dict[str, Any]:
    """The method's rounds by category, by position in the output (in bins of `BIN` tokens) and by
    the depth of the offered tree."""
    method = rounds[rounds["way"] == METHOD]
    by = {
        "by_category": (
            OfCategory,
            method.assign(category=method["category"].astype(str)).groupby("category", sort=True),
        ),
        "by_position": (
            OfPosition,
            method.assign(first=method["position"] // BIN * BIN).groupby("first"),
        ),
        "offered_depths": (OfDepth, method.groupby("depth")),
    }
    found = {}
    for name, (kind, groups) in by.items():
        counted = groups[["kept", "reached", "accepted"]].sum().assign(rounds=groups.size())
        found[name] = [kind(**part) for part in counted.reset_index().to_dict("records")]
    return found
