"""Figures of a study, each a function from a frame to a matplotlib Figure, for notebooks as well.

`acceptance_per_depth` and `time_by_phase` also take {label: Report}, e.g. {"ngram": out.report}. Colours are Okabe and Ito's
(safe for colour-blind readers); markers, line styles and hatches tell the same apart in grey.
"""

from collections.abc import Mapping
from itertools import cycle
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from specdec.metrics import Report

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo")
PHASES = ("prefill", "draft", "score", "verify", "commit", "other")
FEW = 10  # below it a rate is drawn hollow
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}

Frame = pd.DataFrame
Reports = Mapping[str, Report]


def acceptance_per_depth(acceptance: Frame | Reports) -> Figure:
    """The chance to get to a depth from the one above it: accepted / reached groups of siblings.

    Columns of the frame: drafter, temperature, depth, rank, reached, accepted.
    """
    frame = acceptance if isinstance(acceptance, pd.DataFrame) else _acceptance(acceptance)
    temperatures = sorted(frame["temperature"].unique(), key=lambda t: t or 0)  # reports do not say theirs: None
    styles = _styles(frame["drafter"])
    figure, axes = _axes(
        len(temperatures), f"Acceptance per depth (hollow: reached fewer than {FEW} times)", sharey=True
    )
    for axis, temperature in zip(axes, temperatures, strict=True):
        for drafter, part in frame[_same(frame["temperature"], temperature)].groupby("drafter", sort=False):
            groups = part[part["rank"] == 0].groupby("depth")["reached"].sum()
            rate = part.groupby("depth")["accepted"].sum() / groups[groups > 0]
            rate = rate.dropna()
            rare = rate[groups[rate.index] < FEW]
            axis.plot(rate.index, rate, label=str(drafter), **styles[drafter])
            hollow = styles[drafter] | {"linestyle": "", "markerfacecolor": "white"}
            axis.plot(rare.index, rare, **hollow)
        axis.set(xlabel="depth (drafted tokens)", ylim=(0, 1.02))
        if temperature is not None:
            axis.set_title(f"T = {temperature:g}", fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("accepted / reached")
    rounds = frame[(frame["rank"] == 0) & (frame["depth"] == 1)].groupby("drafter")["reached"].agg(["min", "max"])
    _legend(figure, axes, {name: f"{name} (n = {_range(*ends)} rounds)" for name, ends in rounds.iterrows()})
    return figure


def tau_against_temperature(table: Frame) -> Figure:
    """Columns: drafter, temperature, tau, distinct_4grams, prompts. One line per drafter; the second panel says how repetitive
    the output was, since loops flatter every drafter."""
    figure, (left, right) = _axes(
        2, f"Block efficiency, bonus included, and repetition (n = {_prompts(table)} prompts)"
    )
    styles = _styles(table["drafter"])
    for drafter, part in table.groupby("drafter", sort=False):
        line = part.groupby("temperature")[["tau", "distinct_4grams"]].mean()
        left.plot(line.index, line["tau"], label=str(drafter), **styles[drafter])
        right.plot(line.index, 100 * line["distinct_4grams"], label=str(drafter), **styles[drafter])
    left.set(xlabel="temperature", ylabel="tau (tokens per round)")
    left.set_ylim(bottom=min(1.0, float(table["tau"].min())))
    right.set(xlabel="temperature", ylabel="distinct 4-grams in the output (%)", ylim=(0, 102))
    for axis in (left, right):
        axis.set_xticks(sorted(table["temperature"].unique()))
    _legend(figure, [left])
    return figure


def time_by_phase(phases: Frame | Reports) -> Figure:
    """Columns: drafter, temperature, phase, ms_per_token, prompts. Stacked bars of milliseconds per token."""
    frame = phases if isinstance(phases, pd.DataFrame) else _phases(phases)
    frame = frame.assign(bar=_bars(frame))
    wide = frame.pivot_table(index="bar", columns="phase", values="ms_per_token", sort=False)
    figure, (axis,) = _axes(1, f"Time by phase (n = {_prompts(frame)} prompts)", height=1.2 + 0.32 * len(wide))
    left = pd.Series(0.0, index=wide.index)
    order = [phase for phase in PHASES if phase in wide]
    for phase, colour, hatch in zip(order, COLOURS, HATCHES, strict=False):
        axis.barh(wide.index, wide[phase], left=left, color=colour, hatch=hatch, edgecolor="white", label=phase)
        left += wide[phase].fillna(0)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("milliseconds per token")
    axis.legend(fontsize=7, ncols=len(order), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def speedups(table: Frame) -> Figure:
    """Columns: drafter, temperature, prompts, and speedup_X, speedup_X_low, speedup_X_high per baseline X."""
    names = [
        c.removeprefix("speedup_") for c in table if c.startswith("speedup_") and not c.endswith(("_low", "_high"))
    ]
    bars = _bars(table)
    height = 0.8 / max(1, len(names))
    title = f"Speed-up, median over prompts and 95% interval (n = {_prompts(table)})"
    figure, (axis,) = _axes(1, title, height=1.2 + 0.24 * len(bars) * max(1, len(names)))
    for index, (name, colour, hatch) in enumerate(zip(names, cycle(COLOURS), cycle(HATCHES), strict=False)):
        middle, low, high = (table[f"speedup_{name}{end}"].astype(float) for end in ("", "_low", "_high"))
        places = [place + (index - (len(names) - 1) / 2) * height for place in range(len(table))]
        error = [(middle - low).fillna(0), (high - middle).fillna(0)]
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "ecolor": "black", "capsize": 2}
        axis.barh(places, middle, height=height, xerr=error, label=f"over {name}", **look)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(bars)), bars)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("seconds per token of the baseline / of the method")
    axis.legend(fontsize=7, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


# ------------------------------------------------------------------------------------------------------------- helpers


def _axes(count: int, title: str, height: float = 3.5, **options: Any) -> tuple[Figure, list[Any]]:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * count if count > 1 else 6.4, height), layout="constrained")
        axes = figure.subplots(1, count, squeeze=False, **options)[0]
        figure.suptitle(title, fontsize=10)
    return figure, list(axes)


def _legend(figure: Figure, axes: list[Any], names: Mapping[Any, str] | None = None) -> None:
    """One legend for all panels, below them."""
    lines = {text: line for axis in axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    labels = [(names or {}).get(text, text) for text in lines]
    columns = 2 if max(map(len, labels)) > 30 else 3
    figure.legend(lines.values(), labels, fontsize=7, ncols=columns, loc="outside lower center", frameon=False)


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _styles(drafters: pd.Series) -> dict[Any, dict[str, Any]]:
    looks = zip(cycle(COLOURS), cycle(MARKERS), cycle(LINES), strict=False)
    return {
        drafter: {"color": colour, "marker": marker, "linestyle": line, "markersize": 4}
        for drafter, (colour, marker, line) in zip(drafters.unique(), looks, strict=False)
    }


def _same(column: pd.Series, value: float | None) -> pd.Series:
    return column.isna() if value is None else column == value


def _bars(frame: Frame) -> pd.Series:
    """What a bar is called: the drafter, with the temperature where there is one."""
    temperatures = frame["temperature"].map(lambda t: "" if pd.isna(t) else f", T = {t:g}")
    several = frame["target"].nunique() > 1 if "target" in frame else False
    return (
        frame["drafter"].map(lambda text: fill(text, 26)) + temperatures + (("\n" + frame["target"]) if several else "")
    )


def _prompts(frame: Frame) -> str:
    return _range(frame["prompts"].min(), frame["prompts"].max())


def _acceptance(reports: Reports) -> Frame:
    rows = [
        {"drafter": label, "depth": depth, "rank": rank, "reached": cell.reached, "accepted": cell.accepted}
        for label, report in reports.items()
        for (depth, rank), cell in report.acceptance.items()
    ]
    return pd.DataFrame(rows).assign(temperature=None)


def _phases(reports: Reports) -> Frame:
    rows = [
        {
            "drafter": label,
            "temperature": None,
            "phase": phase,
            "ms_per_token": 1000 * seconds / max(1, report.num_tokens),
            "prompts": len(report.tau_per_row),
        }
        for label, report in reports.items()
        for phase, seconds in report.seconds.items()
    ]
    return pd.DataFrame(rows)
