"""A load study on disk: result.json, three tables, and the page that is drawn from them."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.load_study import page
from experiments.study.folder import RESULT
from experiments.study.result import Identity
from experiments.study.sweeps import ordered
from experiments.system.files import read_json, write_json, written
from experiments.system.surroundings import surroundings

KIND = "load"
SCHEMA_VERSION = 1


def new_folder(study: str) -> Path:
    return Path("outputs") / study / time.strftime("%Y-%m-%d_%H-%M-%S")


def write(
    folder: Path,
    identity: Identity,
    config: Mapping[str, Any],
    unit: str,
    how: str,
    tables: Mapping[str, pd.DataFrame],
) -> list[str]:
    """The tables as parquet, and result.json: who, where, the options, the plays, the crossings.
    unit: of the loads; how: what was played, in a sentence. Returns the crossings, a sentence
    each."""
    for name, table in tables.items():
        with written(folder / f"{name}.parquet") as draft:
            table.to_parquet(draft, index=False)
    crossings = page.crossings(tables["plays"], unit)
    content = {"kind": KIND, "schema_version": SCHEMA_VERSION, **asdict(identity)}
    content |= {**asdict(surroundings()), "config": config, "unit": unit, "how": how}
    plays = json.loads(tables["plays"].to_json(orient="records"))
    write_json(folder / RESULT, {**content, "crossings": crossings, "plays": plays})
    return crossings


def find(study: str, root: str | None = None) -> Path | None:
    """The folder of a load study: that folder, or the newest below a study's name. None: the
    study is of another kind."""
    named = Path(study) if "/" in study else Path(root or "outputs") / study
    runs = {path.parent.name: path.parent for path in named.glob(f"*/{RESULT}")}
    folder = named if (named / RESULT).exists() else None
    if folder is None and runs:
        folder = runs[ordered(runs.values())[-1]]
    return folder if folder is not None and is_load_study(read_json(folder / RESULT)) else None


def is_load_study(content: Any) -> bool:
    """Of what a result.json holds."""
    return isinstance(content, Mapping) and content.get("kind") == KIND


def draw(folder: Path, into: Path | None = None) -> Path:
    """The page of a study that was written. into: where it goes; None: beside the records."""
    content = read_json(folder / RESULT)
    plays, rounds = (pd.read_parquet(folder / f"{name}.parquet") for name in ("plays", "rounds"))
    command = f"python -m experiments.load {' '.join(content['overrides'])}".strip()
    return page.write(plays, rounds, content["unit"], content["how"], into or folder, command)
