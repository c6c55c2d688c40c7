"""What a sweep plans is written down before its first job; `resume=true` goes on in the study's latest sweep."""

import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

PLAN = "plan.json"


class Planned(Callback):
    """Settles a sweep's folder, the same for every job and launcher, and leaves plan.json there: the overrides of each job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Exits where there is no sweep to resume, or where it planned other jobs: of exceptions Hydra only warns here."""
        try:
            self._settle(config)
        except ValueError as error:
            sys.exit(str(error))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Exits with the names of the jobs that failed, wherever they ran."""
        from experiments.study.folder import FAILED

        failed = sorted(path.parent.name for path in Path(config.hydra.sweep.dir).glob(f"*/{FAILED}"))
        if failed:
            sys.exit(
                f"{len(failed)} of the sweep's jobs failed: {', '.join(failed)} ({FAILED} in their folders says why)"
            )

    def _settle(self, config: DictConfig) -> None:
        jobs = planned(config)
        folder = Path(config.hydra.sweep.dir)
        if config.resume and not any(each.startswith("hydra.sweep.dir=") for each in config.hydra.overrides.hydra):
            folder = latest(folder.parent)
        with open_dict(config):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
        if jobs is None:
            return
        from experiments.system.files import write_json

        before = read(folder)
        if before is not None and before != jobs:
            number = next(n for n in range(max(len(before), len(jobs))) if before[n : n + 1] != jobs[n : n + 1])
            theirs, ours = (" ".join(each[number]) if number < len(each) else "no job" for each in (before, jobs))
            raise ValueError(
                f"{folder} holds a sweep of other jobs: its job {number} is `{theirs}`, this command's `{ours}`. "
                "Give the sweep's own command to resume it, or start a new sweep without resume=true"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PLAN, {"jobs": jobs})


def planned(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job of a grid, the jobs in order; None for other sweepers, which choose as they go."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return [sorted(of_the_job(job)) for job in batch]


def of_the_job(overrides: list[str]) -> list[str]:
    """Without `resume`, which says how a sweep is run and not what."""
    return [each for each in overrides if not each.startswith("resume=")]


def latest(study: Path) -> Path:
    sweeps = sorted(path.parent for path in study.glob(f"*/{PLAN}"))
    if not sweeps:
        raise ValueError(f"resume=true finds no sweep in {study}; leave it out to start one")
    return sweeps[-1]


def read(sweep: Path) -> list[list[str]] | None:
    """The jobs that a sweep planned; None where it left no plan."""
    path = sweep / PLAN
    return json.loads(path.read_text(encoding="utf-8"))["jobs"] if path.exists() else None
