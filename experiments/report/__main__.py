"""A study's runs -> report/index.html in the study's folder, with its figures (PNG, PDF) and tables
(CSV, LaTeX) beside it.

python -m experiments.report study=demo
python -m experiments.report study=outputs/demo/FOLDER          one run
python -m experiments.report study=load                         a load study (experiments.load)
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
    page = _of_load_study(wanted) or _of_study(wanted)
    print(page)
    for kind in ("figures", "tables"):
        print(f"{page.parent / kind}: {len(list((page.parent / kind).iterdir()))} files")


def _of_load_study(wanted: Report) -> Path | None:
    from experiments.load_study import record  # it needs torch, which --help does not

    folder = record.find(wanted.study, wanted.root)
    into = Path(wanted.folder) if wanted.folder else None
    return None if folder is None else record.draw(folder, into)


def _of_study(wanted: Report) -> Path:
    study = studies.read(wanted.study, wanted.root, wanted.sweep)
    return write(
        study,
        Path(wanted.folder) if wanted.folder else study.folder / "report",
        Path(wanted.profile),
    )


if __name__ == "__main__":
    start(main, Report)
