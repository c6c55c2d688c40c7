"""A study's runs -> report/index.html in the study's folder, with its figures (PNG, PDF) and tables
(CSV, LaTeX) beside it.

python -m experiments.report study=demo
python -m experiments.report study=outputs/demo/FOLDER          one run
"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from experiments.report.contents import write
from experiments.study import studies
from experiments.terminal.options import start


@dataclass
class Report:
    """python -m experiments.report study=NAME: one HTML page, figures and tables of a study's
    runs."""

    study: str = MISSING  # a name, or the folder of a study, of a sweep or of one run
    root: str | None = None  # the folder of studies; null: multirun, else outputs
    sweep: str = "latest"  # | all | the name of a sweep's folder
    # where `python -m experiments.profile` has left this machine's forward times
    profile: str = "outputs/profile"
    folder: str | None = None  # null: "report" in the study's folder


def main(wanted: Report) -> None:
    study = studies.read(wanted.study, wanted.root, wanted.sweep)
    page = write(
        study,
        Path(wanted.folder) if wanted.folder else study.folder / "report",
        Path(wanted.profile),
    )
    print(page)
    for kind in ("figures", "tables"):
        print(f"{page.parent / kind}: {len(list((page.parent / kind).iterdir()))} files")


if __name__ == "__main__":
    start(main, Report)
