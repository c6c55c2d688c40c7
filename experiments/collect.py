"""A study's runs -> one table: printed, and written as table.csv and table.md into the study's
folder.

python -m experiments.collect study=demo
python -m experiments.collect study=outputs/demo/FOLDER          one run
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from omegaconf import MISSING
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.certificates.law import WORDS
from experiments.report import frames
from experiments.study import studies
from experiments.study.outcome import Interval
from experiments.system.files import write_text
from experiments.terminal.options import start
from experiments.terminal.tables import markdown

TITLES = {
    "run": "run",
    "target": "target",
    "drafter": "drafter",
    "settings": "settings",
    "verifier": "verifier",
    "temperature": "T",
    "batch": "batch",
    "tau": "tau",
    "acceptance_rate": "accepted",
    "tokens_per_second": "tokens/s",
    "distinct_4grams": "distinct",
    "diverging": "differ",
    "law": "law",
    "prompts": "n",
}
DECIMALS = {
    "temperature": "{:g}",
    "tokens_per_second": "{:.0f}",
    "distinct_4grams": "{:.0%}",
    "diverging": "{:.0f}",
}
COMMON = ("target", "law", "n", "baseline")
LEGEND = (
    "tau: tokens kept / rounds, bonus included, all prompts pooled. accepted: of the drafted "
    "tokens whose parent was accepted, the share that was accepted too. tokens/s: while decoding. "
    "vs X: speed-up over X, seconds per token of X / those of the method, whole calls, paired by "
    "prompt in one run; the median and its 95% bootstrap interval. distinct: share of distinct "
    "4-grams in the method's output; text that repeats itself flatters every "
    f"drafter. law: {WORDS}. differ: prompts whose greedy output differs from plain decoding "
    "(near-ties of rounding, other kernels). n: prompts."
)


@dataclass
class Collect:
    """python -m experiments.collect study=NAME: one table from a study's runs."""

    study: str = MISSING  # a name, or the folder of a study, of a sweep or of one run
    root: str | None = None  # the folder of studies; null: multirun, else outputs
    sweep: str = "latest"  # | all | the name of a sweep's folder


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows as text: titles, rounded numbers, and each speed-up in one column with its
    interval."""
    shown: dict[str, list[str]] = {}
    for column in table.columns:
        if column.endswith(("_low", "_high")) or not (
            column in TITLES or column.startswith("speedup_")
        ):
            continue
        if column.startswith("speedup_"):
            title = f"vs {column.removeprefix('speedup_')}"
            ends = table[[column, f"{column}_low", f"{column}_high"]].itertuples(index=False)
            shown[title] = [_speedup(*values) for values in ends]
        elif column in TITLES and (column != "batch" or table["batch"].nunique() > 1):
            shown[TITLES[column]] = [
                _text(value, DECIMALS.get(column, "{:.2f}")) for value in table[column]
            ]
    return pd.DataFrame(shown)


def _text(value: object, form: str) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "-"
    return form.format(value) if isinstance(value, float) else str(value)


def _speedup(median: float, low: float | None, high: float | None) -> str:
    return "-" if pd.isna(median) else str(Interval(median, None if pd.isna(low) else low, high, 0))


def printable(text: pd.DataFrame, title: str, width: int = 120) -> Table:
    """For a terminal: columns that are the same in every row move into the caption, intervals onto
    a second line."""
    text = text.drop(columns="settings", errors="ignore")  # the files have them
    same = [
        column
        for column in text.columns
        if len(text) > 1 and text[column].nunique() == 1 and column in COMMON
    ]
    caption = ", ".join(f"{column} {text[column].iloc[0]}" for column in same)
    shown = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in text.columns.drop(same):
        words = column in ("target", "drafter", "verifier")
        shown.add_column(
            column.replace("vs ", "vs\n"),
            overflow="fold",
            min_width=min(24, max(map(len, text[column]))) if words and width >= 110 else None,
            justify="left" if words else "right",
        )
    for row in text.drop(columns=same).values.tolist():
        shown.add_row(*(value.replace(" [", "\n\\[") for value in row))
    return shown


def collect(study: studies.Study, folder: Path | None = None) -> pd.DataFrame:
    """Write the table into the study's folder, with a line for each job that has no result, and
    return it."""
    folder = folder or study.folder
    table = frames.table(study.results)
    text = f"{markdown(readable(table))}\n{LEGEND}\n"
    if study.notes:
        text += "\nWithout a measurement:\n" + "".join(f"- {note}\n" for note in study.notes)
    write_text(folder / "table.csv", table.to_csv(index=False))
    write_text(folder / "table.md", text)
    return table


def main(wanted: Collect) -> None:
    study = studies.read(wanted.study, wanted.root, wanted.sweep)
    table = collect(study)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if len(table):
        console.print(
            printable(readable(table), f"{study.title}: {', '.join(study.sweeps)}", console.width)
        )
        console.print(LEGEND, style="dim")
    for note in study.notes:
        console.print(note, style="yellow", markup=False)
    if study.others:
        console.print(
            f"sweeps that were begun before, not in the table: {', '.join(study.others)} "
            "(sweep=all takes them in)",
            style="dim",
        )
    console.print(f"written: {study.folder / 'table.md'}, {study.folder / 'table.csv'}")


if __name__ == "__main__":
    start(main, Collect)
