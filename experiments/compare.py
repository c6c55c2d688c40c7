"""Two studies side by side, or the methods of one: runs in pairs, differences paired by prompt with
intervals, and what changed in the configuration.

python -m experiments.compare STUDY_A STUDY_B
python -m experiments.compare demo other root=multirun sweep=latest
python -m experiments.compare STUDY                                     every two methods of one
                                                                        study
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from experiments.collect import printable
from experiments.report.comparison import (
    LEGEND,
    between,
    changes,
    differences,
    name,
    readable,
    within,
)
from experiments.report.knobs import told_apart
from experiments.study import studies
from experiments.system.files import write_text
from experiments.terminal.options import start
from experiments.terminal.tables import markdown


@dataclass
class Compare:
    """python -m experiments.compare STUDY_A STUDY_B: paired differences between two studies, or
    (one name) between the methods of one."""

    # one study or two: names, or folders of a study, of a sweep or of one run
    names: list[str] = field(default_factory=list)
    root: str | None = None  # the folder of studies; null: multirun, else outputs
    sweep: str = "latest"
    output: str = "outputs/compare"


def main(wanted: Compare) -> None:
    if len(wanted.names) not in (1, 2):
        raise ValueError(
            "one study or two are compared: python -m experiments.compare STUDY_A STUDY_B; "
            f"got {len(wanted.names)} names"
        )
    found = [studies.read(each, wanted.root, wanted.sweep) for each in wanted.names]
    results = [told_apart(study.results) for study in found]
    alone: list[str] = []
    if len(found) == 2:
        pairs, alone = between(*results)
        title, nothing = (
            f"A = {found[0].title}, B = {found[1].title}",
            "no run of one study has its like in the other",
        )
        same = "same target, drafter, temperature and batch"
    else:
        pairs, title, nothing = (
            within(results[0]),
            f"{found[0].title}: A -> B",
            "no two runs of the study are alike",
        )
        same = "same target, temperature, batch, prompts and length"
        alone = [] if pairs else [name(result) for result in results[0]]
    if not pairs:
        raise ValueError("\n".join([f"{nothing}: {same}", *alone]))
    changed = (changes(pairs) or ["nothing"]) if len(found) == 2 else []
    text = readable(differences(pairs))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(printable(text, title, console.width))
    console.print(LEGEND, style="dim")
    for line in ["changed:", *changed] if changed else []:
        console.print(line, markup=False)
    for line in alone:
        console.print(line, style="yellow", markup=False)
    notes = [
        LEGEND,
        "",
        *(["Changed:"] if changed else []),
        *(f"- {line}" for line in [*changed, *alone]),
    ]
    path = Path(wanted.output) / f"{'_'.join(study.title for study in found)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, markdown(text) + "\n" + "\n".join(notes) + "\n")
    console.print(f"written: {path}")


if __name__ == "__main__":
    start(main, Compare)
