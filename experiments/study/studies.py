"""A study's runs, read back. Jobs without a result are kept by name. experiments/report/frames.py makes tables of the results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from experiments.study import sweeps as plans
from experiments.study.folder import FAILED, RESULT, ROUNDS, SCHEMA_VERSION, STARTED

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A folder that Hydra made for one run."""

    folder: Path
    overrides: list[str]
    result: Result | None  # result.json
    trouble: str  # why there is none

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def measured(self) -> bool:
        return self.result is not None and self.result["status"] == "ok"


@dataclass(frozen=True)
class Study:
    folder: Path
    sweeps: list[str]  # those that were read
    others: list[str]  # those that were not
    jobs: list[Job]

    @property
    def results(self) -> list[Result]:
        return [job.result for job in self.jobs if job.measured and job.result]

    @property
    def notes(self) -> list[str]:
        """A line for each job that has no measurement."""
        found = []
        for job in self.jobs:
            if not job.measured:
                why = f"not applicable: {job.result['reason']}" if job.result else job.trouble
                found.append(f"job {job.name} ({' '.join(job.overrides)}): {why}")
        return found

    def rounds(self) -> pd.DataFrame:
        """rounds.parquet of every measured job, one below the other, with the name of its sweep."""
        import pyarrow as pa
        from pyarrow import parquet

        tables = []
        for job in self.jobs:
            if job.measured:
                table = parquet.read_table(job.folder / ROUNDS)
                sweep = pa.DictionaryArray.from_arrays(
                    pa.array([0] * len(table), pa.int32()), pa.array([job.folder.parent.name])
                )
                tables.append(table.append_column("sweep", sweep))
        if not tables:
            return pd.DataFrame()
        return pa.concat_tables(tables, promote_options="permissive").to_pandas()


def read(study: str, root: str = "multirun", sweep: str = "latest") -> Study:
    """sweep: "latest", "all", or the name of one sweep's folder. Raises ValueError where nothing has run, and for results of
    another schema version."""
    folder = Path(root) / study
    sweeps = sorted(path.name for path in folder.glob("*") if _is_sweep(path) or _is_job(path))
    if not sweeps:
        there = ", ".join(sorted(path.name for path in Path(root).glob("*") if path.is_dir())) or "nothing"
        raise ValueError(
            f"no runs in {folder}; start them with `python -m experiments.run -m study={study} ...` (in {root}: {there})"
        )
    if sweep not in ("all", "latest", *sweeps):
        raise ValueError(f"no sweep {sweep!r} in {folder}; there are: {', '.join(sweeps)}")
    wanted = sweeps if sweep == "all" else [sweeps[-1] if sweep == "latest" else sweep]
    jobs = [job for name in wanted for job in _jobs_of(folder / name)]
    return Study(folder, wanted, [name for name in sweeps if name not in wanted], jobs)


def _is_sweep(path: Path) -> bool:
    return (path / plans.PLAN).exists() or any(path.glob("*/.hydra"))


def _jobs_of(sweep: Path) -> list[Job]:
    """Those that have a folder, then those that were planned and have none."""
    found = [_job(path) for path in _jobs(sweep)]
    there = {job.name for job in found}
    missing = [
        Job(sweep / str(number), overrides, None, "never started")
        for number, overrides in enumerate(plans.read(sweep) or [])
        if str(number) not in there
    ]
    return found + missing


def _is_job(path: Path) -> bool:
    return (path / ".hydra").is_dir() or (path / STARTED).exists()


def _jobs(sweep: Path) -> list[Path]:
    if _is_job(sweep):
        return [sweep]
    found = [path for path in sweep.iterdir() if path.is_dir() and _is_job(path)]
    return sorted(
        found, key=lambda path: (not path.name.isdigit(), int(path.name) if path.name.isdigit() else 0, path.name)
    )


def _job(folder: Path) -> Job:
    if (folder / RESULT).exists():
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if result["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"{folder / RESULT} has schema version {result['schema_version']} and this code reads {SCHEMA_VERSION}: "
                "run the study again, or read it with the version of the code that wrote it (its git commit is in the file)"
            )
        return Job(folder, result["overrides"], result, "")
    listed = folder / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(listed.read_text()) if listed.exists() else []
    if (folder / FAILED).exists():
        return Job(
            folder, overrides, None, "failed: " + json.loads((folder / FAILED).read_text(encoding="utf-8"))["error"]
        )
    return Job(
        folder,
        overrides,
        None,
        "no result: killed, or still running" if (folder / STARTED).exists() else "never started",
    )
