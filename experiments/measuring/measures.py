"""What came out of a run: the numbers of result.json, and the frame of rounds.parquet (one row per round and live prompt).

Rates are formed from sums over prompts (micro means) unless they are called macro. Seconds of a prompt are those of its batch.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.measuring.divergence import divergence
from experiments.measuring.intervals import median_interval, pooled_interval
from experiments.measuring.memory import weights
from experiments.measuring.play import Played
from experiments.measuring.ways import AGAIN, COLD, Ours, Sample, Way
from experiments.study.result import BIN
from specdec.drafted import Acceptance
from specdec.metrics import PHASES, Report, distinct_ngrams

PERCENTILES = (50, 95, 99)


def measured(
    played: Sequence[Played], ways: Mapping[str, Way], sampling: Mapping[str, Any], whole: pd.DataFrame
) -> dict[str, Any]:
    """Everything about a run's outcome that result.json holds. `whole`: what `rounds` made of it.

    ways: {NAME: {the numbers of `summary`, per_prompt: [...], speedup: {BASELINE: ...}, memory: {...}}}
    by_category, by_position, offered_depths: the method's rounds, counted
    divergence: {BASELINE: ...} at temperature 0
    """
    target = ways["method"].target
    greedy, plain = sampling["temperature"] == 0, sampling["repetition_penalty"] == 1
    baselines = [name for name in ways if name not in ("method", AGAIN, COLD)]
    against = {"method": baselines, COLD: baselines, AGAIN: baselines[:1]}
    return {
        "prompts": len({prompt.index for one in played for prompt in one.prompts}),
        "batches": [[prompt.index for prompt in one.prompts] for one in played if one.turn == 0],
        "learns": COLD in ways,
        "ways": {
            name: {
                **summary([one.samples[name] for one in played]),
                "per_prompt": per_prompt(played, name),
                "tau_interval": tau_interval(played, name),
                "speedup": {other: speedup(played, name, other) for other in against.get(name, [])},
                "memory": memory(way, [one.samples[name] for one in played]),
            }
            for name, way in ways.items()
        },
        **parts(whole),
        "divergence": {name: divergence(played, target, name, plain) for name in baselines} if greedy else {},
    }


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """One way over all prompts."""
    tokens = [row for sample in samples for row in sample.tokens]
    wall = sum(sample.wall_seconds for sample in samples)
    count = sum(map(len, tokens))
    found: dict[str, Any] = {
        "tokens": count,
        "wall_seconds": wall,
        "wall_tokens_per_second": count / wall,
        "distinct_4grams": distinct_ngrams(tokens),
    }
    reports = [sample.report for sample in samples if sample.report]
    return found | (pooled(reports) if reports else {})


def pooled(reports: Sequence[Report]) -> dict[str, Any]:
    """The numbers of several calls of generate as those of one."""
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
            cells[place] = [a + b for a, b in zip(cells[place], _counts(cell), strict=True)]
        for depth, pair in report.drafted.per_depth.items():
            groups[depth] = [a + b for a, b in zip(groups[depth], pair, strict=True)]
    offered, reached, accepted = (sum(cell[stage] for cell in cells.values()) for stage in range(3))
    first = reports[0]
    return {
        "drafter": first.drafter,
        "verifier": first.verifier,
        "lossless": first.lossless,
        "extra_layers": first.extra_layers,
        "rounds": rounds,
        "row_rounds": row_rounds,
        "tau": kept / max(1, row_rounds),
        "tau_macro": _mean([tau for report in reports for tau in report.tau_per_row]),
        "tau_with_prefill": kept / max(1, row_rounds + prompts),
        "accepted_per_round": accepted / max(1, row_rounds),
        "accepted_per_round_macro": _mean([mean for report in reports for mean in report.accepted_per_row]),
        "acceptance_rate": accepted / reached if reached else None,
        "nodes_per_round": offered / max(1, row_rounds),
        "nodes_per_accepted": offered / accepted if accepted else None,
        "target_calls_per_token": rounds / max(1, kept),
        "tokens_per_second": kept / decode if decode else None,
        "decode_seconds": decode,
        "first_token_seconds": float(np.median([report.first_token_seconds for report in reports])),
        "gaps": percentiles(np.concatenate([report.gaps for report in reports])),
        "seconds": dict(seconds),
        "cache_bytes": {key: max(report.cache_bytes[key] for report in reports) for key in first.cache_bytes},
        "accepted_lengths": dict(sorted(lengths.items())),
        "acceptance": [
            {"depth": depth, "rank": rank, "offered": cell[0], "reached": cell[1], "accepted": cell[2]}
            for (depth, rank), cell in sorted(cells.items())
        ],
        "per_depth": [
            {"depth": depth, "reached": pair[0], "accepted": pair[1]} for depth, pair in sorted(groups.items())
        ],
        "counts": dict(counts),
    }


def _counts(cell: Acceptance) -> tuple[int, int, int]:
    return cell.offered, cell.reached, cell.accepted


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def percentiles(seconds: np.ndarray) -> dict[str, float] | None:
    """p50, p95, p99; None of nothing."""
    if not len(seconds):
        return None
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(seconds, PERCENTILES), strict=True)}


def memory(way: Way, samples: Sequence[Sample]) -> dict[str, int | None]:
    """Bytes: the target's weights, those that the drafter adds, and the highest use during a call with what was in use before."""
    target = weights(way.target)
    both = weights(way.target, way.drafter) if isinstance(way, Ours) else target
    highest = max((sample.peak for sample in samples if sample.peak and sample.peak.bytes), key=_bytes, default=None)
    return {
        "target_weights": target,
        "drafter_weights": both - target,
        "peak": highest.bytes if highest else None,
        "before": highest.before if highest else None,
    }


def _bytes(peak: Any) -> int:
    return peak.bytes or 0


def per_prompt(played: Sequence[Played], way: str) -> list[dict[str, Any]]:
    """Tokens, rounds and tau of every prompt and turn; the seconds are its batch's."""
    rows = []
    for one in played:
        sample = one.samples[way]
        report = sample.report
        blank = [None] * len(one.prompts)
        columns = zip(
            one.prompts,
            one.given[way],
            sample.tokens,
            report.tau_per_row if report else blank,
            report.accepted_per_row if report else blank,
            strict=True,
        )
        for prompt, given, tokens, tau, accepted in columns:
            rows.append(
                {
                    "prompt": prompt.index,
                    "category": prompt.category,
                    "turn": one.turn,
                    "batch": one.batch,
                    "prompt_tokens": len(given),
                    "tokens": len(tokens),
                    "tau": tau,
                    "accepted_per_round": accepted,
                    "distinct_4grams": distinct_ngrams([tokens]),
                    "wall_seconds": sample.wall_seconds,
                    "decode_seconds": report.decode_seconds if report else None,
                    "first_token_seconds": report.first_token_seconds if report else None,
                    "target_seconds": sample.target_seconds,
                    "draft_seconds": sample.draft_seconds,
                }
            )
    return rows


def tau_interval(played: Sequence[Played], way: str) -> dict[str, Any] | None:
    """tau (micro) with its interval over prompts; None for ways that count no rounds."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in played:
        report = one.samples[way].report
        if report is None:
            return None
        for prompt, tokens, tau in zip(one.prompts, one.samples[way].tokens, report.tau_per_row, strict=True):
            sums[prompt.index][0] += len(tokens)
            sums[prompt.index][1] += len(tokens) / tau
    return pooled_interval(*zip(*sums.values(), strict=True))._asdict()


def speedup(played: Sequence[Played], way: str, baseline: str) -> dict[str, Any]:
    """Seconds per token of the baseline / those of the way, batch by batch over all its turns: the median and its interval."""
    batches = sorted({one.batch for one in played})

    def per_token(name: str, batch: int) -> float:
        samples = [one.samples[name] for one in played if one.batch == batch]
        return sum(s.wall_seconds for s in samples) / max(1, sum(len(row) for s in samples for row in s.tokens))

    ratios = [per_token(baseline, batch) / per_token(way, batch) for batch in batches]
    return {**median_interval(ratios)._asdict(), "per_batch": ratios}


# ------------------------------------------------------------------------------------------------------------- rounds


def rounds(study: str, run: str, label: str, played: Iterable[Played]) -> pd.DataFrame:
    """One row per round and live prompt of every way that is ours. A round's seconds are those of its whole batch of `live_rows`.

    study, run, label (the method's name in tables), way (method | none | again | cold); prompt, category, turn, batch;
    round, live_rows, position (output tokens before the round), warm (the drafter had learnt from other prompts);
    depth and nodes of the offered tree, reached nodes, accepted, kept; PHASE_seconds.
    """
    found = [
        _rounds(one, way, sample.report)
        for one in played
        for way, sample in one.samples.items()
        if sample.report and sample.report.steps
    ]
    if not found:
        return pd.DataFrame(columns=COLUMNS)
    columns = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
    whole = pd.DataFrame({"study": study, "run": run, "label": label, **columns})[COLUMNS]
    return whole.astype(dict.fromkeys(("study", "run", "label", "way", "category"), "category"))


def parts(whole: pd.DataFrame) -> dict[str, Any]:
    """The method's rounds by category, by position in the output (in bins of `BIN` tokens) and by the depth of the offered
    tree: rounds, and sums of kept, reached and accepted."""
    method = whole[whole["way"] == "method"]
    by = {
        "by_category": method.assign(category=method["category"].astype(str)).groupby("category", sort=True),
        "by_position": method.assign(first=method["position"] // BIN * BIN).groupby("first"),
        "offered_depths": method.groupby("depth"),
    }
    found = {}
    for name, groups in by.items():
        counted = groups[["kept", "reached", "accepted"]].sum().assign(rounds=groups.size())
        found[name] = counted.reset_index().to_dict("records")
    return found


COUNTS = ["prompt", "category", "turn", "batch", "round", "live_rows", "position", "warm", "depth", "nodes", "reached"]
COLUMNS = ["study", "run", "label", "way", *COUNTS, "accepted", "kept", *(f"{phase}_seconds" for phase in PHASES)]


def _rounds(one: Played, way: str, report: Report) -> dict[str, np.ndarray]:
    """The columns that differ within a run, for one way of one batch."""
    steps = report.steps
    live = np.array([step.live for step in steps])
    kept = np.array([step.kept for step in steps])
    number, row = live.nonzero()
    nodes = report.drafted
    seconds = {phase: np.array([step.seconds.get(phase, 0.0) for step in steps]) for phase in PHASES}

    def constant(value: Any, kind: Any) -> np.ndarray:
        return np.full(len(number), value, dtype=kind)

    return {
        "way": constant(way, object),
        "prompt": np.array([prompt.index for prompt in one.prompts], dtype=np.int32)[row],
        "category": np.array([prompt.category for prompt in one.prompts], dtype=object)[row],
        "turn": constant(one.turn, np.int16),
        "batch": constant(one.batch, np.int32),
        "round": number.astype(np.int32),
        "live_rows": live.sum(1).astype(np.int16)[number],
        "position": (kept.cumsum(0) - kept).astype(np.int32)[number, row],
        "warm": constant(one.batch > 0 and way == "method" and COLD in one.samples, bool),
        "depth": nodes.depth.max(1, initial=0).astype(np.int16),
        "nodes": nodes.offered.sum(1).astype(np.int16),
        "reached": nodes.reached.sum(1).astype(np.int16),
        "accepted": np.array([step.num_accepted for step in steps])[number, row].astype(np.int16),
        "kept": kept[number, row].astype(np.int16),
        **{f"{phase}_seconds": values[number] for phase, values in seconds.items()},
    }
