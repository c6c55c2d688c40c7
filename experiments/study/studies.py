"""A study's runs, read back. Jobs without a result are kept by name. experiments/report/frames.py
makes tables of the results."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import yaml

from experiments.study import result as results
from experiments.study import sweeps as plans
from experiments.study.folder import FAILED, RESULT, ROUNDS, STARTED
from experiments.study.result import NotApplicable, Result
from experiments.system.files import read_json

ROOTS = ("multirun", "outputs")  # of sweeps, and of single runs


@dataclass(frozen=True)
class Job:
    """A folder that Hydra made for one run."""

    folder: Path
    overrides: list[str]
    result: Result | None
    trouble: str  # why there is none

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Study:
    folder: Path
    sweeps: list[str]  # those that were read
    others: list[str]  # those that were not
    jobs: list[Job]
    troubles: Sequence[str] = ()  # of sweeps as a whole

    @property
    def title(self) -> str:
        return next((result.study for result in self.results), self.folder.name)

    @property
    def named(self) -> str:
        """What `read` finds this study by."""
        return self.folder.name if self.folder.parent.as_posix() in ROOTS else str(self.folder)

    @property
    def measured(self) -> list[Job]:
        return [job for job in self.jobs if job.result is not None]

    @cached_property
    def results(self) -> list[Result]:
        return [job.result for job in self.jobs if job.result is not None]

    @property
    def notes(self) -> list[str]:
        """A line for each job that has no measurement, and for each sweep that cannot be read in
        full."""
        jobs = [job for job in self.jobs if job.result is None]
        return [
            *(f"job {job.name} ({' '.join(job.overrides)}): {job.trouble}" for job in jobs),
            *self.troubles,
        ]

    def rounds(self) -> pd.DataFrame:
        """rounds.parquet of every measured job, one below the other, with the name of its sweep."""
        import pyarrow as pa
        from pyarrow import parquet

        tables = []
        for job in self.measured:
            table = parquet.read_table(job.folder / ROUNDS)
            sweep = pa.DictionaryArray.from_arrays(
                pa.array([0] * len(table), pa.int32()), pa.array([job.folder.parent.name])
            )
            tables.append(table.append_column("sweep", sweep))
        if not tables:
            return pd.DataFrame()
        return pa.concat_tables(tables, promote_options="permissive").to_pandas()


def read(study: str, root: str | None = None, sweep: str = "latest") -> Study:
    """`study`: a name below `root`, by default that of sweeps and else that of single runs; or the
    folder of a study, of one sweep or of one run. `sweep`: "latest" (the one that was begun last),
    "all", or the name of one sweep's folder.

    Raises ValueError where nothing has run. A job whose files are broken, or of another schema
    version, has no result and says why.
    """
    folder = _folder(study, root)
    if _is_job(folder) or any((folder / name).exists() for name in (plans.PLAN, "multirun.yaml")):
        return _study(folder, [folder], [])
    sweeps = plans.ordered([path for path in folder.glob("*") if _is_sweep(path) or _is_job(path)])
    if not sweeps:
        raise ValueError(_nothing(folder, study))
    if sweep not in ("all", "latest", *sweeps):
        raise ValueError(f"no sweep {sweep!r} in {folder}; there are: {', '.join(sweeps)}")
    wanted = sweeps if sweep == "all" else [sweeps[-1] if sweep == "latest" else sweep]
    return _study(
        folder, [folder / name for name in wanted], [name for name in sweeps if name not in wanted]
    )


def _study(folder: Path, sweeps: Sequence[Path], others: list[str]) -> Study:
    jobs: list[Job] = []
    troubles: list[str] = []
    for sweep in sweeps:
        jobs += [_job(sweep)] if _is_job(sweep) else _jobs_of(sweep)
        try:
            plans.read(sweep)
        except ValueError as error:
            troubles.append(str(error))
    return Study(folder, [sweep.name for sweep in sweeps], others, jobs, troubles)


def _folder(study: str, root: str | None) -> Path:
    if "/" in study:
        return Path(study)
    roots = ROOTS if root is None else (root,)
    found = [Path(each) / study for each in roots]
    return next((folder for folder in found if folder.is_dir()), found[0])


def _nothing(folder: Path, study: str) -> str:
    there = (
        ", ".join(sorted(path.name for path in folder.parent.glob("*") if path.is_dir()))
        or "nothing"
    )
    return (
        f"no runs in {folder}; start them with `python -m experiments.run -m "
        f"study={Path(study).name} ...` (in {folder.parent}: {there})"
    )


def _is_sweep(path: Path) -> bool:
    return (path / plans.PLAN).exists() or any(path.glob("*/.hydra"))


def _is_job(path: Path) -> bool:
    return (path / ".hydra").is_dir() or (path / STARTED).exists()


def _jobs_of(sweep: Path) -> list[Job]:
    """Those that have a folder, then those that were planned and have none. Jobs whose results have
    been made one are that one."""
    folders = [path for path in sweep.iterdir() if path.is_dir() and _is_job(path)]
    there = {path.name for path in folders}
    merged = {number for path in folders for number in _merged(path)}
    found = [_job(path) for path in sorted(folders, key=_order) if path.name not in merged]
    missing = [
        Job(sweep / str(number), overrides, None, "never started")
        for number, overrides in enumerate(plans.read_or_nothing(sweep).jobs or [])
        if str(number) not in there
    ]
    return found + missing


def _merged(folder: Path) -> list[str]:
    """The jobs whose results are one in this folder: 0 to 7 in the folder 0-7."""
    first, dash, last = folder.name.partition("-")
    if not (dash and first.isdigit() and last.isdigit() and (folder / RESULT).exists()):
        return []
    return [str(number) for number in range(int(first), int(last) + 1)]


def _order(folder: Path) -> tuple[bool, int, str]:
    first = folder.name.partition("-")[0]
    return not first.isdigit(), int(first) if first.isdigit() else 0, folder.name


def _part(found: Result) -> str:
    config = found.config
    return f"shard {config.shard} of {config.shards}, and a result needs all: go on with resume"


def _job(folder: Path) -> Job:
    overrides: list[str] = []
    try:
        listed = folder / ".hydra" / "overrides.yaml"
        overrides = (
            yaml.safe_load(listed.read_text(encoding="utf-8")) if listed.exists() else None
        ) or []
        if (folder / RESULT).exists():
            found = results.read(folder / RESULT)
            if isinstance(found, NotApplicable):
                return Job(folder, found.overrides, None, f"not applicable: {found.reason}")
            if found.config.shard is not None:
                return Job(folder, found.overrides, None, _part(found))
            return Job(folder, found.overrides, found, "")
        if (folder / FAILED).exists():
            return Job(folder, overrides, None, f"failed: {read_json(folder / FAILED)['error']}")
    except (
        ValueError,
        KeyError,
        TypeError,
        yaml.YAMLError,
    ) as error:  # of one job, which makes the others no worse
        return Job(folder, overrides, None, str(error))
    trouble = (
        "no result: killed, or still running" if (folder / STARTED).exists() else "never started"
    )
    return Job(folder, overrides, None, trouble)
