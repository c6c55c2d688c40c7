"""Weights & Biases, for whoever says logger=wandb. WANDB_MODE=offline keeps everything in the run's
folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.study.result import Result
from experiments.study.schema import Logger
from experiments.study.studies import Job, Study


def check(logger: Any) -> None:
    """Before anything runs. Raises ValueError where wandb is wanted and not installed."""
    if logger is not None and find_spec("wandb") is None:
        raise ValueError(
            "logger=wandb needs wandb, which is not installed: pip install 'specdec[wandb]'"
        )


@contextmanager
def opened(
    logger: Mapping[str, Any], title: str, folder: Path, config: Mapping[str, Any], **more: Any
) -> Iterator[Any]:
    """A wandb run that keeps its files in `folder`."""
    check(logger)
    import wandb

    with wandb.init(**logger, name=title, dir=str(folder), config=dict(config), **more) as run:
        yield run


def log_result(logger: Logger, folder: Path, result: Result, rounds: pd.DataFrame) -> None:
    """A run that is over: what was set, a curve per round, and the tables and figures of a report
    about this run alone.

    Called when all is measured, so that nothing of wandb runs while anything is timed.
    """
    import wandb
    from matplotlib import pyplot

    from experiments.report.contents import sections

    title = f"{result.study} {result.run}: {result.config.label}"
    with opened(
        vars(logger), title, folder, asdict(result.config), group=result.study, job_type="run"
    ) as run:
        for step, point in enumerate(curve(rounds)):
            run.log(point, step=step)
        alone = Study(folder, [folder.parent.name], [], [Job(folder, result.overrides, result, "")])
        for section in sections(alone):
            run.log(
                {
                    f"tables/{name}": wandb.Table(dataframe=told.text)
                    for name, told in section.tables.items()
                }
            )
            for name, drawn in section.figures.items():
                run.log({f"figures/{name}": wandb.Image(drawn.figure, caption=drawn.caption)})
                pyplot.close(drawn.figure)
        method = result.method
        run.summary.update(
            {name: value for name, value in vars(method).items() if isinstance(value, int | float)}
        )
        run.summary.update(
            {f"speedup_{name}": ratio.median for name, ratio in method.speedup.items()}
        )
        run.summary["law"] = str(result.certificate)


def curve(rounds: pd.DataFrame) -> Iterator[dict[str, float]]:
    """A point per round of the method, in the order of decoding; tau is that of all rounds so
    far."""
    method = rounds[rounds["way"] == "method"]
    milliseconds = 1e3 * method[[name for name in method if name.endswith("_seconds")]].sum(axis=1)
    tau = method["kept"].cumsum() / np.arange(1, len(method) + 1)
    points = pd.DataFrame(
        {
            "kept": method["kept"],
            "accepted": method["accepted"],
            "tau": tau,
            "round_milliseconds": milliseconds,
        }
    )
    yield from points.to_dict("records")
