"""A study's runs -> its figures, as PNG and PDF in the study's folder (experiments/figures.py draws them).

python -m experiments.plot study=demo
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import MISSING

from experiments import figures, options, studies


@dataclass
class Plot:
    """python -m experiments.plot study=NAME: figures of a study's runs."""

    study: str = MISSING
    root: str = "multirun"
    sweep: str = "latest"  # | all | the name of a sweep's folder


def draw(study: studies.Study) -> dict[str, Figure]:
    """The figures that the study has data for, by name."""
    results = study.results
    if not results:
        raise ValueError(f"no job of {study.folder} has a result; `python -m experiments.collect` lists why")
    table, acceptance = studies.table(results), studies.acceptance(results)
    drawn = {"time_by_phase": figures.time_by_phase(studies.phases(results))}
    if len(acceptance):
        drawn["acceptance_per_depth"] = figures.acceptance_per_depth(acceptance)
    drawn["tau_against_temperature"] = figures.tau_against_temperature(table)
    if any(column.startswith("speedup_") for column in table):
        drawn["speedups"] = figures.speedups(table)
    return drawn


def save(drawn: dict[str, Figure], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in drawn.items():
        for suffix in ("png", "pdf"):
            path = folder / f"{name}.{suffix}"
            figure.savefig(path, dpi=160)
            written.append(path)
    return written


def main() -> None:
    wanted = options.parse(Plot)
    try:
        study = studies.read(wanted.study, wanted.root, wanted.sweep)
        drawn = draw(study)
    except ValueError as error:
        sys.exit(str(error))
    for path in save(drawn, study.folder / "figures"):
        print(path)


if __name__ == "__main__":
    main()
