"""rounds.parquet: one row per round and live prompt of every way whose rounds are counted."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.measuring.play import Played
from experiments.measuring.ways import COLD, METHOD
from experiments.system.files import written
from specdec.measuring.report import PHASES, Report

COUNTS = [
    "prompt",
    "category",
    "turn",
    "batch",
    "round",
    "live_rows",
    "position",
    "warm",
    "depth",
    "nodes",
    "reached",
]
COLUMNS = [
    "study",
    "run",
    "label",
    "way",
    *COUNTS,
    "accepted",
    "kept",
    *(f"{phase}_seconds" for phase in PHASES),
]


def rounds(study: str, run: str, label: str, played: Iterable[Played]) -> pd.DataFrame:
    """One row per round and live prompt of every way that is ours. A round's seconds are those of
    its whole batch of `live_rows`.

    study, run, label (the method's name in tables), way (method | none | again | cold); prompt,
    category, turn, batch; round, live_rows, position (output tokens before the round), warm (the
    drafter had learnt from other prompts); depth and nodes of the offered tree, reached nodes,
    accepted, kept; PHASE_seconds.
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


def _rounds(one: Played, way: str, report: Report) -> dict[str, np.ndarray]:
    """The columns that differ within a run, for one way of one batch."""
    steps, nodes = report.steps, report.drafted
    number, row, kept, accepted = report.rows  # row: the prompt's number in the batch
    told = pd.Series(kept).groupby(row).cumsum().to_numpy()  # its tokens after the round
    seconds = {
        phase: np.array([step.seconds.get(phase, 0.0) for step in steps]) for phase in PHASES
    }

    def constant(value: Any, kind: Any) -> np.ndarray:
        return np.full(len(number), value, dtype=kind)

    return {
        "way": constant(way, object),
        "prompt": np.array([prompt.index for prompt in one.prompts], dtype=np.int32)[row],
        "category": np.array([prompt.category for prompt in one.prompts], dtype=object)[row],
        "turn": constant(one.turn, np.int16),
        "batch": constant(one.batch, np.int32),
        "round": number.astype(np.int32),
        "live_rows": np.bincount(number).astype(np.int16)[number],
        "position": (told - kept).astype(np.int32),
        "warm": constant(not one.is_first and way == METHOD and COLD in one.samples, bool),
        "depth": nodes.depth.max(1, initial=0).astype(np.int16),
        "nodes": nodes.offered.sum(1).astype(np.int16),
        "reached": nodes.reached.sum(1).astype(np.int16),
        "accepted": accepted.astype(np.int16),
        "kept": kept.astype(np.int16),
        **{f"{phase}_seconds": values[number] for phase, values in seconds.items()},
    }


def write_rounds(path: Path, frame: pd.DataFrame) -> None:
    with written(path) as draft:
        frame.to_parquet(draft, index=False)
