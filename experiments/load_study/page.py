"""A load study as tables, figures and a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from experiments.load_study.measures import PLAIN, crossing, medians, sentence, with_speedups
from experiments.report.looks import Drawn, legend, line_styles, panels
from experiments.report.page import Section, render, write_figures, write_tables
from experiments.report.tables import PERCENT, WHOLE, Told, mebibytes, milliseconds
from experiments.report.tables import PLAIN as NUMBER
from experiments.system.files import write_text

Looks = dict[Any, dict[str, Any]]  # of each drafter's lines

TERMS = {
    "speed-up": "mean time of a request from its arrival to its end: plain decoding / the drafter, "
    "at the same load, on the same requests",
    "TTFT": "time to first token: from the arrival of a request, its wait for a seat included",
    "gap": "time between two tokens of a text; tokens of one round arrive together, with gaps of 0",
    "goodput": "requests a second that kept both limits, on TTFT and on their mean gap",
    "queue": "requests without a seat; a mean over time, as the seats in use",
    "tau": "tokens that a row kept / rounds in which it was live",
    "set aside": "how often a request lost its seat because memory was short",
}


def crossings(plays: pd.DataFrame, unit: str) -> list[str]:
    """A sentence for each drafter: where it stops paying."""
    table = medians(with_speedups(plays))
    return [
        sentence(str(name), own["load"].tolist(), own["speedup"].tolist(), unit)
        for name, own in table.groupby("drafter", sort=False)
        if name != PLAIN
    ]


def sections(plays: pd.DataFrame, rounds: pd.DataFrame, unit: str, how: str) -> list[Section]:
    """how: what was played, in a sentence."""
    table = medians(with_speedups(plays))
    repeats = plays["repeat"].nunique()
    plays_of = f"Medians over {repeats} repeats" if repeats > 1 else "One play of each load"
    caption = f"{plays_of}. {how}"
    looks = line_styles(table["drafter"])  # a drafter looks alike in all figures
    pays = Section("Speed-up against load", notes=crossings(plays, unit))
    pays.tables["load"] = _throughput(table, unit, caption)
    pays.figures["speedup_against_load"] = _lines(
        table[table["drafter"] != PLAIN],
        looks,
        ["speedup"],
        ["speed-up"],
        unit,
        "Speed-up",
        f"{caption} Rings: the load from which on a drafter is slower than plain decoding.",
    )
    pays.figures["throughput_against_load"] = _lines(
        table,
        looks,
        ["tokens_per_second", "goodput"],
        ["tokens/s", "requests/s in time"],
        unit,
        "Throughput and goodput",
        caption,
    )
    waits = Section("Waiting", {"waiting": _waiting(table, unit, caption)})
    waits.figures["waiting_against_load"] = _lines(
        table,
        looks,
        ["first_token_p95", "gap_p95"],
        ["TTFT, p95 (s)", "gap, p95 (s)"],
        unit,
        "Waiting",
        caption,
    )
    inside = Section("Inside the engine", {"memory": _memory(table, unit, caption)})
    inside.figures["over_time"] = _over_time(rounds, looks, unit)
    return [pays, waits, inside, Section("Definitions", terms=TERMS)]


def _told(title: str, text: dict[str, list[str]], raw: pd.DataFrame, caption: str) -> Told:
    return Told(title, pd.DataFrame(text), raw, caption)


def _begun(table: pd.DataFrame, unit: str) -> dict[str, list[str]]:
    loads = [f"{load:g}" for load in table["load"]]
    return {"method": list(table["drafter"]), f"load, {unit}": loads}


def _throughput(table: pd.DataFrame, unit: str, caption: str) -> Told:
    text = _begun(table, unit) | {
        "speed-up": list(map(NUMBER, table["speedup"])),
        "tokens/s": list(map(WHOLE, table["tokens_per_second"])),
        "requests/s": list(map(NUMBER, table["requests_per_second"])),
        "goodput": list(map(NUMBER, table["goodput"])),
        "in time": list(map(PERCENT, table["in_time"])),
        "tau": list(map(NUMBER, table["tau"])),
    }
    return _told("Speed-up and throughput", text, table, caption)


def _waiting(table: pd.DataFrame, unit: str, caption: str) -> Told:
    text = _begun(table, unit) | {
        f"{word} {each}, ms": list(map(milliseconds, table[f"{name}_{each}"]))
        for word, name in (("TTFT", "first_token"), ("gap", "gap"))
        for each in ("p50", "p95", "p99")
    }
    return _told("Time to first token and gaps", text, table, caption)


def _memory(table: pd.DataFrame, unit: str, caption: str) -> Told:
    text = _begun(table, unit) | {
        "queue": list(map(NUMBER, table["queue"])),
        "longest queue": list(map(WHOLE, table["queue_most"])),
        "seats in use": list(map(NUMBER, table["seats"])),
        "most pages": list(map(WHOLE, table["pages_most"])),
        "memory, MiB": list(map(mebibytes, table["memory_bytes"])),
        "set aside": list(map(WHOLE, table["set_aside"])),
    }
    return _told("Queue, seats and memory", text, table, caption)


def _lines(
    table: pd.DataFrame,
    looks: Looks,
    columns: Sequence[str],
    labels: Sequence[str],
    unit: str,
    title: str,
    caption: str,
) -> Drawn:
    """A panel for each column, over the load; a line for each drafter."""
    figure, axes = panels(1, len(columns), 2.6)
    for axis, column, label in zip(axes, columns, labels, strict=True):
        for name, own in table.groupby("drafter", sort=False):
            axis.plot(own["load"], own[column], label=name, **looks[name])
        if column == "speedup":
            axis.axhline(1.0, color="black", linewidth=0.8, label="without speculation")
            _name_crossings(axis, table, looks)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(table["load"].unique()))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(unit)
        axis.set_ylabel(label)
    legend(figure, axes)
    return Drawn(figure, f"{title} against load", caption)


def _name_crossings(axis: Axes, table: pd.DataFrame, looks: Looks) -> None:
    """The load from which on each drafter is slower than none. Names are above one another."""
    height = 5
    for name, own in table.groupby("drafter", sort=False):
        load = crossing(own["load"].tolist(), own["speedup"].tolist())
        if load is not None:
            axis.plot([load], [1.0], "o", color=looks[name]["color"], fillstyle="none")
            place = {"xytext": (4, height), "textcoords": "offset points"}
            axis.annotate(f"{name}: {load:.3g}", (load, 1.0), fontsize=7, **place)
            height += 9


def _over_time(rounds: pd.DataFrame, looks: Looks, unit: str) -> Drawn:
    """Queue, seats and tau at the highest load, in the first repeat."""
    highest = rounds["load"].max()
    shown = rounds[(rounds["load"] == highest) & (rounds["repeat"] == rounds["repeat"].min())]
    figure, axes = panels(3, 1, 1.5, sharex=True)
    for name, own in shown.groupby("drafter", sort=False):
        look = {**looks[name], "marker": None}
        # tau of a tenth of the rounds at a time: single rounds jump
        width = max(1, len(own) // 10)
        kept, rows = (own[each].rolling(width).sum() for each in ("tokens", "rows"))
        for axis, values in zip(axes, (own["queue"], own["seats"], kept / rows), strict=True):
            axis.plot(own["second"], values, label=name, **look)
    for axis, label in zip(axes, ("queue", "seats in use", "tau"), strict=True):
        axis.set_ylabel(label)
    axes[-1].set_xlabel("seconds")
    legend(figure, axes)
    caption = (
        f"{highest:g} {unit}, the first repeat. Tau is a moving mean over a tenth of the rounds."
    )
    return Drawn(figure, "Queue, seats and tau over time", caption)


def write(
    plays: pd.DataFrame, rounds: pd.DataFrame, unit: str, how: str, folder: Path, command: str
) -> Path:
    """The page and everything beside it. Returns the page's path."""
    parts = sections(plays, rounds, unit, how)
    figures = {name: drawn for part in parts for name, drawn in part.figures.items()}
    tables = {name: told for part in parts for name, told in part.tables.items()}
    write_figures(figures, folder / "figures")
    write_tables(tables, folder / "tables")
    others = [name for name in plays["drafter"].unique() if name != PLAIN]
    loads = ", ".join(f"{load:g}" for load in sorted(plays["load"].unique()))
    lead = f"{', '.join(['Plain decoding', *others])}, at loads of {loads} {unit}."
    write_text(folder / "index.html", render("Load study", lead, parts, command))
    return folder / "index.html"
