"""A study's runs, read back as frames. Jobs without a result are kept by name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from experiments.records import FAILED, RESULT, ROUNDS, STARTED


@dataclass(frozen=True)
class Job:
    """A folder that Hydra made for one run."""

    folder: Path
    overrides: list[str]
    result: dict[str, Any] | None  # result.json
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
    def results(self) -> list[dict[str, Any]]:
        return [job.result for job in self.jobs if job.measured and job.result]

    def rounds(self) -> pd.DataFrame:
        """rounds.parquet of every measured job, with the columns that tell the jobs apart."""
        frames = []
        for job in self.jobs:
            if job.measured and job.result:
                frames.append(pd.read_parquet(job.folder / ROUNDS).assign(**_key(job.result)))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def read(study: str, root: str = "multirun", sweep: str = "latest") -> Study:
    """sweep: "latest", "all", or the name of one sweep's folder. Raises ValueError where nothing has run."""
    folder = Path(root) / study
    sweeps = sorted(path.name for path in folder.glob("*") if any(path.glob("*/.hydra")) or _is_job(path))
    if not sweeps:
        there = ", ".join(sorted(path.name for path in Path(root).glob("*") if path.is_dir())) or "nothing"
        raise ValueError(
            f"no runs in {folder}; start them with `python -m experiments.run -m study={study} ...` (in {root}: {there})"
        )
    if sweep not in ("all", "latest", *sweeps):
        raise ValueError(f"no sweep {sweep!r} in {folder}; there are: {', '.join(sweeps)}")
    wanted = sweeps if sweep == "all" else [sweeps[-1] if sweep == "latest" else sweep]
    folders = [path for name in wanted for path in _jobs(folder / name)]
    return Study(folder, wanted, [name for name in sweeps if name not in wanted], [_job(path) for path in folders])


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
    listed = folder / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(listed.read_text()) if listed.exists() else []
    if (folder / RESULT).exists():
        return Job(folder, overrides, json.loads((folder / RESULT).read_text(encoding="utf-8")), "")
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


def _key(result: dict[str, Any]) -> dict[str, Any]:
    config = result["config"]
    target, extra = config["target"]["name"], config["target"]["extra_layers"]
    lossy = "" if result["ways"]["method"]["lossless"] else " (lossy)"
    return {
        "run": result["run"],
        "target": f"{target} +{extra} layers" if extra else target,
        "drafter": config["label"] + lossy,
        "settings": " ".join(f"{key}={value}" for key, value in config["drafter"].items() if key != "_target_"),
        "verifier": result["ways"]["method"]["verifier"],
        "temperature": config["sampling"]["temperature"],
        "batch": config["batch_size"],
    }


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run; speed-ups as median, low and high, against every baseline that any run has."""
    rows = []
    for result in results:
        method = result["ways"]["method"]
        row = _key(result) | {
            "tau": method["tau"],
            "acceptance_rate": method["acceptance_rate"],
            "tokens_per_second": method["tokens_per_second"],
        }
        for name, ratio in result["ways"]["method"]["speedup"].items():
            row |= {
                f"speedup_{name}": ratio["median"],
                f"speedup_{name}_low": ratio["low"],
                f"speedup_{name}_high": ratio["high"],
            }
        differing = result["divergence"].get("none")
        row |= {
            "distinct_4grams": method["distinct_4grams"],
            "diverging": differing["diverging"] if differing else None,
            "law": result["certificate"]["verdict"],
            "prompts": result["prompts"],
        }
        rows.append(row)
    return pd.DataFrame(rows)


def acceptance(results: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run, depth and sibling rank: offered, reached, accepted."""
    return pd.DataFrame(
        [{**_key(result), **cell} for result in results for cell in result["ways"]["method"]["acceptance"]]
    )


def phases(results: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per run and phase: seconds, milliseconds per token, prompts."""
    rows = []
    for result in results:
        method = result["ways"]["method"]
        for phase, seconds in method["seconds"].items():
            each = 1000 * seconds / max(1, method["tokens"])
            rows.append(
                {**_key(result), "phase": phase, "seconds": seconds, "ms_per_token": each, "prompts": result["prompts"]}
            )
    return pd.DataFrame(rows)
