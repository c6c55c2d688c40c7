"""A sweep writes its plan before its first job. `resume` continues a sweep: the study's latest, or
the one that it names."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from experiments.study.folder import FAILED, LOCK, RESULT, STARTED
from experiments.study.schema import settings_of
from experiments.system.files import read_json, write_json
from experiments.terminal.program import explained
from experiments.terminal.refusals import said

PLAN = "plan.json"
REFUSED = (ValueError, OSError, HydraException, OmegaConfBaseException)
# How a sweep is run and not what: no part of a plan, and free to differ when it is resumed.
HOW = ("resume", "launcher", "progress", "logger")
# of Hydra's own settings, those that decide which jobs there are
WHAT_OF_HYDRA = ("hydra/sweeper", "hydra.sweeper")


@dataclass(frozen=True)
class Plan:
    """plan.json in a sweep's folder."""

    # the overrides of each; None for a sweeper that chooses as it goes
    jobs: list[list[str]] | None = None
    overrides: list[str] | None = None  # of the command
    # of this sweep in its study, from 1: the order in which they were begun, whatever the clock
    # says
    number: int = 0
    began: str = ""


class Planned(Callback):
    """Chooses a sweep's folder, the same for every job and launcher, and writes the plan there. In
    these calls Hydra only warns about exceptions, so a refusal here ends the program itself."""

    here: ClassVar["Planned | None"] = None  # of this process

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.fresh = False
        Planned.here = self

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            if config.resume:
                raise ValueError("resume goes on with a sweep: give it with -m")
            settings_of(config)
        except REFUSED as error:
            sys.exit(explained(error) or said(error))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            settings_of(config)  # of the sweep's frame; each job has its own
            self.folder = self._settle(config)
        except REFUSED as error:
            sys.exit(explained(error) or said(error))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Exits with the names of the jobs that failed, wherever they ran."""
        failed = sorted(
            path.parent.name for path in Path(config.hydra.sweep.dir).glob(f"*/{FAILED}")
        )
        if failed:
            sys.exit(
                f"{len(failed)} of the sweep's jobs failed: {', '.join(failed)} ({FAILED} in their "
                "folders says why)"
            )

    def _settle(self, config: DictConfig) -> Path:
        folder = Path(config.hydra.sweep.dir)
        if config.resume:
            folder = _to_resume(config, folder)
            before = read(folder)
            _take_over(config, before)
            done = sum(path.parent.name.isdigit() for path in folder.glob(f"*/{RESULT}"))
            of = "" if before.jobs is None else f" of {len(before.jobs)}"
            print(f"going on in {folder}: {done}{of} jobs have a result", file=sys.stderr)
        with open_dict(config):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
        jobs = planned(config)
        before = read(folder)
        if before.jobs is not None and before.jobs != jobs:
            raise ValueError(_other_jobs(folder, before.jobs, jobs or []))
        if not (folder / PLAN).exists():
            self.fresh = True
            _write(folder, Plan(jobs, _what(config), began=time.strftime("%Y-%m-%d %H:%M:%S")))
        return folder


def interrupted() -> str:
    """The line that a program ends with after Ctrl-C."""
    command = _going_on()
    if command is None:
        return "interrupted: this run leaves no result; start it again"
    return f"interrupted; go on with: {command}"


def of_lost_worker(error: Exception) -> str:
    """What a program ends with whose launcher has lost a process."""
    command = _going_on() or "the same command"
    return f"a process that ran a job has died ({error}); go on with: {command}"


def _going_on() -> str | None:
    """The command that goes on in this sweep; None: nothing has begun."""
    here = Planned.here
    if here is None or here.folder is None or not any(here.folder.glob("*/")):
        return None
    return f"python -m experiments.run -m resume={here.folder}"


def forget_what_never_began() -> None:
    """A sweep of which no job has begun, because one of them cannot be composed, leaves nothing
    behind."""
    here = Planned.here
    if (
        here is not None
        and here.folder is not None
        and here.fresh
        and not any(here.folder.glob("*/"))
    ):
        for name in (PLAN, "multirun.yaml"):  # ours, and Hydra's
            (here.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # somebody else's files are in it
            here.folder.rmdir()
            if [path.name for path in here.folder.parent.iterdir()] == [LOCK]:
                (here.folder.parent / LOCK).unlink()
                here.folder.parent.rmdir()
    Planned.here = None


def _write(folder: Path, plan: Plan) -> None:
    """With the number of the sweep in its study."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / LOCK):  # another sweep of this study may begin at this moment
        number = 1 + max(
            read_or_nothing(path).number for path in folder.parent.iterdir() if path.is_dir()
        )
        write_json(folder / PLAN, asdict(replace(plan, number=number)))


def _to_resume(config: DictConfig, folder: Path) -> Path:
    """The sweep that `resume` means; `folder` is the one that a new sweep would have."""
    if isinstance(config.resume, str):
        named = Path(config.resume)
        if not (named / PLAN).exists():
            raise ValueError(f"resume={config.resume} names no sweep: there is no {PLAN} in it")
        return named
    if any(each.startswith("hydra.sweep.dir=") for each in config.hydra.overrides.hydra):
        return folder
    sweeps = ordered(path.parent for path in folder.parent.glob(f"*/{PLAN}"))
    if not sweeps:
        raise ValueError(
            f"resume=true finds no sweep in {folder.parent}; leave it out to start one"
        )
    return folder.parent / sweeps[-1]


def _take_over(config: DictConfig, plan: Plan) -> None:
    """Use the command of the plan, so that a resuming command need not repeat it. A command that
    says something else is kept, and its jobs are compared with the plan's."""
    given = [each for each in _what(config) if not each.startswith("study=")]
    if plan.overrides is None or not set(given) <= set(plan.overrides):
        return
    hydra = config.hydra.overrides.hydra
    how = [each for each in (*config.hydra.overrides.task, *hydra) if each not in _what(config)]
    fresh = (
        GlobalHydra.instance()
        .config_loader()
        .load_configuration(config.hydra.job.config_name, [*plan.overrides, *how], RunMode.MULTIRUN)
    )
    with open_dict(config):
        for key in fresh:
            config[key] = fresh[key]


def _what(config: DictConfig) -> list[str]:
    """The overrides that say what the sweep is."""
    hydra = [each for each in config.hydra.overrides.hydra if each.startswith(WHAT_OF_HYDRA)]
    return [*of_the_job(config.hydra.overrides.task), *hydra]


def of_the_job(overrides: Iterable[str]) -> list[str]:
    """Without those that say how it is run."""
    return [
        each
        for each in overrides
        if each.lstrip("+").partition("=")[0].partition(".")[0] not in HOW
    ]


def _other_jobs(folder: Path, before: Sequence[list[str]], jobs: Sequence[list[str]]) -> str:
    number = next(
        n for n in range(max(len(before), len(jobs))) if before[n : n + 1] != jobs[n : n + 1]
    )
    theirs, ours = (
        " ".join(each[number]) if number < len(each) else "no job" for each in (before, jobs)
    )
    return (
        f"{folder} holds a sweep of other jobs: its job {number} is `{theirs}`, this command's "
        f"`{ours}`. To resume it, leave out what says other jobs; to start a new sweep, leave out "
        "resume"
    )


def planned(config: DictConfig) -> list[list[str]] | None:
    """The overrides of each job of a grid, the jobs in order; None for other sweepers, which choose
    as they go."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not config.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return None
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return [sorted(of_the_job(job)) for job in batch]


def in_each_job(arguments: Sequence[str]) -> list[str]:
    """A command line whose sweep may name the drafter or the rule in its jobs only
    (method=chain,ranked_tree drafter.depth=2). Their settings are then unknown to the frame of the
    sweep, which Hydra composes first; as a choice of one value they are left to the jobs."""
    arguments = with_shards(arguments)
    if not {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    return [
        _as_choice(each) if each.lstrip("+").startswith(("drafter.", "verifier.")) else each
        for each in arguments
    ]


def with_shards(arguments: Sequence[str]) -> list[str]:
    """A command that says shards=8 is a sweep over these, unless it names one of them."""
    values = dict(each.lstrip("+").split("=", 1) for each in arguments if "=" in each)
    count = values.get("shards", "")
    if "shard" in values or not count.isdigit() or int(count) < 2:
        return list(arguments)
    sweep = [] if {"-m", "--multirun"} & set(arguments) else ["-m"]
    return [*sweep, *arguments, f"shard=range({count})"]


def _as_choice(argument: str) -> str:
    (override,) = OverridesParser.create().parse_overrides([argument])
    if override.is_sweep_override() or override.is_delete():
        return argument
    return f"{override.get_key_element()}=choice({override.get_value_element_as_str()})"


def ordered(sweeps: Iterable[Path]) -> list[str]:
    """Names of sweeps (or of single runs), in the order in which they were begun as far as they
    have recorded it."""

    def begun(path: Path) -> tuple[int, float, str]:
        return read_or_nothing(path).number, _started(path), path.name

    return [path.name for path in sorted(sweeps, key=begun)]


def _started(run: Path) -> float:
    try:
        return float(read_json(run / STARTED)["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def read_or_nothing(sweep: Path) -> Plan:
    try:
        return read(sweep)
    except ValueError:
        return Plan()


def read(sweep: Path) -> Plan:
    """Empty where the sweep left no plan. Raises ValueError, with the file's name, for one that is
    broken."""
    path = sweep / PLAN
    if not path.exists():
        return Plan()
    content = read_json(path)
    try:
        return Plan(**content)
    except TypeError:
        raise ValueError(f"{path} is no plan of a sweep: {json.dumps(content)[:80]}") from None
