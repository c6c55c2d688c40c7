"""What a run leaves behind: result.json and rounds.parquet, complete or not at all. Reading them back.

Letters of the frames: one row per round and prompt in `rounds`, one per (depth, sibling rank) in `acceptance`.
"""

import json
import os
import platform
import socket
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.intervals import median_interval
from experiments.prompts import Prompt
from experiments.ways import Sample
from specdec.metrics import PHASES, Report, distinct_ngrams

SCHEMA_VERSION = 1
RESULT, ROUNDS, FAILED, STARTED = "result.json", "rounds.parquet", "failed.json", "started.json"


# --------------------------------------------------------------------------------------------------------- the folder


def claim(folder: Path) -> None:
    """Take a folder for one run. Raises ValueError where another run has been there."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
    try:
        with open(folder / STARTED, "x", encoding="utf-8") as file:
            json.dump(mark, file)
    except FileExistsError:
        raise ValueError(
            f"{folder} already belongs to a run ({STARTED} is there); name another folder with hydra.run.dir=FOLDER "
            "(hydra.sweep.dir for a sweep), or delete this one if its results are not wanted"
        ) from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Under a temporary name, then renamed: a killed run leaves no half file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1, allow_nan=False, default=_plain), encoding="utf-8")
    os.replace(draft, path)


def _plain(number: Any) -> Any:
    """A NumPy number as Python's own."""
    return number.item()


def write_rounds(path: Path, rounds: pd.DataFrame) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    rounds.to_parquet(draft, index=False)
    os.replace(draft, path)


# ---------------------------------------------------------------------------------------------------- where it was run


def surroundings() -> dict[str, Any]:
    """Versions, machine and git state: what a number depends on besides the configuration."""
    import torch

    packages = ("specdec", "torch", "transformers", "tokenizers", "numpy", "scipy", "hydra-core")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    tuning = ("OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_", "LD_PRELOAD", "CUDA_", "PYTORCH_")
    return {
        "git": git_state(Path(__file__).resolve().parent.parent),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpu": gpu,
            "system": platform.platform(),
        },
        "threads": torch.get_num_threads(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(tuning)},
    }


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a checkout."""
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


# -------------------------------------------------------------------------------------------------------- what came out


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """One way over all prompts: sums of counts and seconds, and rates formed from the sums (micro means)."""
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
    each = [report.as_dict() for report in reports]
    row_rounds = sum(int(step.live.sum()) for report in reports for step in report.steps)
    kept = sum(report.num_tokens for report in reports)
    taus = [tau for report in reports for tau in report.tau_per_row]
    decode = sum(report.decode_seconds for report in reports)
    lengths: Counter[int] = Counter()
    counts: Counter[str] = Counter()
    seconds: dict[str, float] = defaultdict(float)
    cells: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
    for report in reports:
        lengths.update(report.accepted_lengths)
        counts.update(report.counts)
        for phase, value in report.seconds.items():
            seconds[phase] += value
        for place, cell in report.acceptance.items():
            for index, value in enumerate((cell.offered, cell.reached, cell.accepted)):
                cells[place][index] += value
    reached = sum(cell[1] for cell in cells.values())
    return {
        **{key: each[0][key] for key in ("drafter", "verifier", "lossless", "extra_layers")},
        "rounds": sum(report.target_calls for report in reports),
        "row_rounds": row_rounds,
        "tau": kept / max(1, row_rounds),
        "tau_macro": sum(taus) / len(taus) if taus else None,
        "accepted_per_round": sum(length * number for length, number in lengths.items()) / max(1, row_rounds),
        "acceptance_rate": sum(cell[2] for cell in cells.values()) / reached if reached else None,
        "nodes_per_round": sum(cell[0] for cell in cells.values()) / max(1, row_rounds),
        "tokens_per_second": kept / decode if decode else None,
        "decode_seconds": decode,
        "seconds": dict(seconds),
        "cache_bytes": {key: max(report.cache_bytes[key] for report in reports) for key in reports[0].cache_bytes},
        "accepted_lengths": dict(sorted(lengths.items())),
        "acceptance": [
            {"depth": depth, "rank": rank, "offered": cell[0], "reached": cell[1], "accepted": cell[2]}
            for (depth, rank), cell in sorted(cells.items())
        ],
        "counts": dict(counts),
    }


def per_prompt(batches: Sequence[Sequence[Prompt]], samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Tokens, rounds and tau of every prompt; the seconds are its batch's."""
    rows = []
    for number, (prompts, sample) in enumerate(zip(batches, samples, strict=True)):
        taus = sample.report.tau_per_row if sample.report else [None] * len(prompts)
        for prompt, tokens, tau in zip(prompts, sample.tokens, taus, strict=True):
            rows.append(
                {
                    "prompt": prompt.index,
                    "category": prompt.category,
                    "batch": number,
                    "tokens": len(tokens),
                    "tau": tau,
                    "distinct_4grams": distinct_ngrams([tokens]),
                    "wall_seconds": sample.wall_seconds,
                    "decode_seconds": sample.report.decode_seconds if sample.report else None,
                    "target_seconds": sample.target_seconds,
                    "draft_seconds": sample.draft_seconds,
                }
            )
    return rows


def speedup(method: Sequence[Sample], baseline: Sequence[Sample]) -> dict[str, Any]:
    """Seconds per token of the baseline / those of the method, batch by batch; the median and its interval."""
    ratios = [b.seconds_per_token / m.seconds_per_token for m, b in zip(method, baseline, strict=True)]
    return {**median_interval(ratios)._asdict(), "per_batch": ratios}


def divergence(method: Sequence[Sample], baseline: Sequence[Sample]) -> dict[str, Any]:
    """Where greedy outputs part, by token index; None where they are the same."""
    first: list[int | None] = []
    for ours, theirs in zip(method, baseline, strict=True):
        for a, b in zip(ours.tokens, theirs.tokens, strict=True):
            differing = [index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
            first.append(differing[0] if differing else None if len(a) == len(b) else min(len(a), len(b)))
    return {"prompts": len(first), "diverging": sum(index is not None for index in first), "first": first}


def rounds_of(study: str, run: str, batches: Sequence[Sequence[Prompt]], samples: Sequence[Sample]) -> pd.DataFrame:
    """One row per round and live prompt. A round's seconds are those of its whole batch of `live_rows` prompts."""
    rows = []
    for prompts, sample in zip(batches, samples, strict=True):
        for step in sample.report.steps if sample.report else ():
            nodes, live = step.num_nodes, int(step.live.sum())
            for row in step.live.nonzero()[0]:
                prompt = prompts[row]
                counts = int(nodes[row]), int(step.num_accepted[row]), int(step.kept[row])
                seconds = [step.seconds.get(phase, 0.0) for phase in PHASES]
                rows.append((study, run, prompt.index, prompt.category, step.number, live, *counts, *seconds))
    columns = ["study", "run", "prompt", "category", "round", "live_rows", "nodes", "accepted", "kept"]
    return pd.DataFrame(rows, columns=[*columns, *(f"{phase}_seconds" for phase in PHASES)])
