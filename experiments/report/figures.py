"""The figures of a report, each from frames of experiments/report/frames.py to a figure with its caption.

Draw the first baseline's ratios unless told otherwise. "Median" is over prompts (batches of them, at batch sizes above 1).
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from experiments.report.looks import (
    COLOURS,
    HATCHES,
    Drawn,
    bar_styles,
    called,
    entitle,
    legend,
    line_styles,
    named,
    panels,
    span,
    wrapped,
)

Frame = pd.DataFrame
FEW = 10  # below it a rate is drawn hollow, or left out of a heat map's numbers
PHASES = ("prefill", "draft", "score", "verify", "commit", "other")
INTERVALS = "medians over prompts with 95% bootstrap intervals"
NUMBERED = 6  # ranks; wider heat maps have no room for numbers in their cells
PANELS = 9  # small multiples, at most
GREYS = LinearSegmentedColormap.from_list("blues", ["#f7fbff", "#6baed6", "#08306b"])  # grows darker in grey, too


def speedups(table: Frame, baselines: list[str], noise: Any = None) -> Drawn:
    """Bars per run and baseline."""
    names = named(table).map(wrapped)
    height = 0.8 / len(baselines)
    figure, (axis,) = panels(1, 1, 0.9 + 0.2 * len(table) * max(1.6, len(baselines)))
    for index, (name, look) in enumerate(bar_styles(baselines).items()):
        middle, low, high = _ends(table, f"speedup_{name}")
        places = np.arange(len(table)) + (index - (len(baselines) - 1) / 2) * height
        error = [middle - low, high - middle]
        axis.barh(places, middle, height=0.92 * height, xerr=error, label=f"over {called(name)}", **look, **ERROR)
    _one(axis, noise, vertical=True)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("speed-up (seconds per token of the baseline / of the method)")
    legend(figure, [axis])
    return Drawn(
        figure,
        "Speed-up",
        f"Speed-up of each run over its own baselines: {INTERVALS}, n = {_n(table)} prompts, whole calls, prefill "
        f"included.{_band(noise, baselines[0])}",
    )


def pareto(table: Frame, baseline: str, noise: Any = None) -> Drawn:
    """Speed-up against tau."""
    figure, (axis,) = panels(1, 1, 3.4)
    names = named(table, without=("temperature",))
    looks, fills = line_styles(names), _fills(table["temperature"])
    middle, low, high = _ends(table, f"speedup_{baseline}")
    for name, temperature, *point in zip(
        names, table["temperature"], table["tau"], middle, low, high, table["tau_low"], table["tau_high"], strict=True
    ):
        tau, speed, speed_low, speed_high, tau_low, tau_high = point
        look = looks[name]
        across = _reach(tau, tau_low, tau_high)
        up = _reach(speed, speed_low, speed_high)
        axis.errorbar(tau, speed, up, across, color=look["color"], elinewidth=0.7, capsize=1.5, linestyle="", zorder=2)
        _point(axis, tau, speed, look, fills[temperature])
    for name, look in looks.items():
        axis.plot([], [], look["marker"], color=look["color"], label=name)
    _one(axis, noise)
    axis.set(xlabel="block efficiency τ (tokens per round, bonus included)", ylabel=f"speed-up over {called(baseline)}")
    legend(figure, [axis])
    return Drawn(
        figure,
        "Speed-up against τ",
        f"Speed-up over {called(baseline)} against block efficiency, one point per run: {INTERVALS} (of τ: all prompts pooled), "
        f"n = {_n(table)} prompts.{_fill_words(fills)} What lies below a method of the same τ pays more for it.{_band(noise, baseline)}",
    )


def heat_map(acceptance: Frame) -> Drawn:
    """Accepted / reached per depth and sibling rank, a panel per run that drafts."""
    runs, left_out = _first_runs(acceptance)
    columns = min(3, len(runs))
    often = acceptance[acceptance["reached"] >= FEW]  # deeper down there is nothing to read
    deepest = int((often if len(often) else acceptance)["depth"].max())
    acceptance = acceptance[acceptance["depth"] <= deepest]
    widest = int(acceptance["rank"].max()) + 1
    height = 0.75 + 0.22 * min(deepest, 12)
    figure, axes = panels(-(-len(runs) // columns), columns, height, sharex=False, sharey=True)
    shown = None
    for axis, (name, part) in zip(axes, runs, strict=False):
        rate = np.full((deepest, widest), np.nan)
        for cell in part.itertuples():
            if cell.reached and cell.depth <= deepest:
                rate[cell.depth - 1, cell.rank] = cell.accepted / cell.reached
                if cell.reached >= FEW and widest <= NUMBERED:
                    value = rate[cell.depth - 1, cell.rank]
                    ink = "white" if value > 0.5 else "black"
                    axis.text(
                        cell.rank,
                        cell.depth - 1,
                        f"{value:.2f}".removeprefix("0"),
                        color=ink,
                        ha="center",
                        va="center",
                        fontsize=6.5,
                    )
        shown = axis.imshow(rate, cmap=GREYS, vmin=0, vmax=1, aspect="auto")
        entitle(axis, wrapped(name, 26))
        axis.grid(visible=False)
        axis.set_xticks(range(widest), range(1, widest + 1))
        axis.set_yticks(range(deepest), range(1, deepest + 1))
        if widest > 12:
            axis.set_xticks(range(0, widest, 4), range(1, widest + 1, 4))
        if deepest > 12:
            axis.set_yticks(range(0, deepest, 4), range(1, deepest + 1, 4))
    for axis in axes[len(runs) :]:
        axis.set_axis_off()
    figure.supxlabel("sibling rank", fontsize=8.5)
    figure.supylabel("depth", fontsize=8.5)
    figure.colorbar(
        shown,
        ax=axes,
        label="accepted / reached",
        shrink=min(1.0, 2.2 / (height * -(-len(runs) // columns))),
        pad=0.01,
        aspect=18,
    )
    reached = acceptance.groupby("run")["reached"].sum()
    numbers = f"Numbers where at least {FEW} were reached; blank" if widest <= NUMBERED else "Blank"
    return Drawn(
        figure,
        "Acceptance per depth and sibling rank",
        f"Share of the drafted nodes that were accepted among those reached (whose parent was accepted), n = {span(reached)} "
        f"reached nodes per run. {numbers}: never reached. Depths at which no run reached {FEW} are left out.{left_out}",
    )


def acceptance_per_depth(groups: Frame) -> Drawn:
    """Lines over depth: groups of siblings of which one was accepted / groups reached; a panel per temperature."""
    temperatures = sorted(groups["temperature"].unique())
    looks = line_styles(named(groups, without=("temperature",)))
    figure, axes = panels(1, len(temperatures), 2.7, sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        here = groups[groups["temperature"] == temperature]
        for name, part in here.groupby(named(groups, without=("temperature",)), sort=False):
            part = part.groupby("depth")[["reached", "accepted"]].sum()
            rate, few = part["accepted"] / part["reached"], part["reached"] < FEW
            axis.plot(rate.index, rate, label=str(name), **looks[name])
            axis.plot(rate.index[few], rate[few], **(looks[name] | {"linestyle": "", "markerfacecolor": "white"}))
        axis.set(xlabel="depth (drafted tokens)", ylim=(0, 1.02))
        if len(temperatures) > 1:
            entitle(axis, f"T = {temperature:g}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("accepted / reached")
    legend(figure, axes)
    first = groups[groups["depth"] == 1]["reached"]
    return Drawn(
        figure,
        "Acceptance per depth",
        "The chance to get to a depth from the one above it: groups of siblings of which one was accepted / groups reached. "
        f"n = {span(first)} rounds at depth 1; hollow: fewer than {FEW} groups.",
    )


def accepted_lengths(lengths: Frame) -> Drawn:
    """Histograms of accepted drafted tokens per round, a panel per run that drafts."""
    runs, left_out = _first_runs(lengths)
    columns = min(3, len(runs))
    figure, axes = panels(-(-len(runs) // columns), columns, 1.7, sharex=True, sharey=True)
    for axis, (name, part) in zip(axes, runs, strict=False):
        share = 100 * part["rounds"] / part["rounds"].sum()
        axis.bar(part["accepted"], share, color=COLOURS[0], width=0.85)
        mean = (part["accepted"] * part["rounds"]).sum() / part["rounds"].sum()
        axis.axvline(mean, color="black", linewidth=0.9, linestyle="--")
        entitle(axis, wrapped(name, 28))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(axis="x", visible=False)
    for axis in axes[len(runs) :]:
        axis.set_axis_off()
    figure.supxlabel("accepted drafted tokens in a round", fontsize=8.5)
    figure.supylabel("rounds (%)", fontsize=8.5)
    rounds = lengths.groupby("run")["rounds"].sum()
    return Drawn(
        figure,
        "Accepted lengths",
        f"How many drafted tokens a round accepted, in % of the rounds (n = {span(rounds)} per run), before cuts at the end of "
        f"a text. Dashed: the mean; τ counts the bonus token on top.{left_out}",
    )


def tau_against_temperature(table: Frame) -> Drawn:
    """Left tau, right how repetitive the output was."""
    figure, (left, right) = panels(1, 2, 2.8)
    names = named(table, without=("temperature",))
    looks = line_styles(names)
    for name, part in table.groupby(names, sort=False):
        part = part.sort_values("temperature")
        error = [(part["tau"] - part["tau_low"]), (part["tau_high"] - part["tau"])]
        left.errorbar(
            part["temperature"], part["tau"], error, label=str(name), elinewidth=0.7, capsize=2, **looks[name]
        )
        right.plot(part["temperature"], 100 * part["distinct_4grams"], **looks[name])
    left.set(xlabel="temperature", ylabel="τ (tokens per round)")
    right.set(xlabel="temperature", ylabel="distinct 4-grams (%)", ylim=(0, 102))
    legend(figure, [left])
    return Drawn(
        figure,
        "τ against temperature",
        f"Block efficiency, all prompts pooled with 95% bootstrap intervals, and the share of distinct 4-grams of the same outputs: loops "
        f"flatter every drafter, so that τ means little where the share is small. n = {_n(table)} prompts.",
    )


def tau_by_position(parts: Frame, width: int) -> Drawn:
    """tau along the output, a panel per temperature."""
    temperatures = sorted(parts["temperature"].unique())
    names = named(parts, without=("temperature",))
    looks = line_styles(names)
    figure, axes = panels(1, len(temperatures), 2.9, sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        here = parts[parts["temperature"] == temperature]
        for name, part in here.groupby(names[here.index], sort=False):
            axis.plot(part["first"] + width / 2, part["tau"], label=str(name), **looks[name])
        axis.set_xlabel("position in the output")
        if len(temperatures) > 1:
            entitle(axis, f"T = {temperature:g}")
    axes[0].set_ylabel("τ (tokens per round)")
    legend(figure, axes)
    return Drawn(
        figure,
        "τ by position in the output",
        f"Block efficiency of the rounds that begin in each bin of {width} output tokens; n = {span(parts['rounds'])} rounds per "
        "point. A rise along the output often means that the text repeats itself.",
    )


def time_by_phase(phases: Frame) -> Drawn:
    """Stacked bars of milliseconds per token."""
    plain_first = phases.sort_values("drafter", key=lambda names: names != "none", kind="stable")
    frame = plain_first.assign(bar=named(plain_first).map(wrapped))
    wide = frame.pivot_table(index="bar", columns="phase", values="ms_per_token", sort=False)
    figure, (axis,) = panels(1, 1, 0.9 + 0.3 * len(wide))
    left = pd.Series(0.0, index=wide.index)
    for phase, colour, hatch in zip(PHASES, COLOURS, HATCHES, strict=False):
        if phase in wide:
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4, "height": 0.72}
            axis.barh(wide.index, wide[phase], left=left, label=phase, **look)
            left += wide[phase].fillna(0)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("milliseconds per token")
    legend(figure, [axis], columns=6)
    return Drawn(
        figure,
        "Time by phase",
        f"Where the time of a token goes, sums over n = {_n(phases)} prompts: reading the prompt, drafting, the target's pass, "
        'verification, keeping the accepted path, and the rest of the loop. "none" is plain decoding in the same runs (mean of them).',
    )


def predicted_and_measured(table: Frame) -> Drawn:
    """Predicted against measured speed-up while decoding; a marker per model of it."""
    models = {"speedup_formula": "closed form (Leviathan et al.)", "speedup_profile": "from the machine's profile"}
    models = {name: label for name, label in models.items() if name in table}
    figure, axes = panels(1, len(models), 3.4, sharex=True, sharey=True)
    names = named(table, without=("temperature",))
    looks, fills = line_styles(names), _fills(table["temperature"])
    whole = table[["speedup", *models]].to_numpy(dtype=float)
    low, high = 0.92 * np.nanmin(whole), 1.06 * np.nanmax(whole)
    for axis, (model, label) in zip(axes, models.items(), strict=True):
        axis.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=1)
        for name, temperature, x, y in zip(names, table["temperature"], table["speedup"], table[model], strict=True):
            _point(axis, x, y, looks[name], fills[temperature])
        axis.set(xlim=(low, high), ylim=(low, high), xlabel="measured speed-up")
        entitle(axis, label)
        axis.set_box_aspect(1)
    for name, look in looks.items():
        axes[0].plot([], [], look["marker"], color=look["color"], label=name)
    axes[0].set_ylabel("predicted speed-up")
    legend(figure, axes)
    errors = "; ".join(f"{label}: {100 * table[f'{name}_error'].abs().median():.0f}%" for name, label in models.items())
    return Drawn(
        figure,
        "Predicted and measured",
        f"Speed-up over plain decoding while decoding, all n = {_n(table)} prompts pooled; on the line they agree. Median relative "
        f"error: {errors}.{_fill_words(fills)}",
    )


def per_category(parts: Frame, baseline: str) -> Drawn:
    """Grouped bars: tau and speed-up by category of prompts."""
    kinds = list(dict.fromkeys(parts["category"]))
    column = f"speedup_{baseline}"
    names = named(parts)
    looks = bar_styles(names)
    both = column in parts and parts[column].notna().any()
    figure, axes = panels(2 if both else 1, 1, 2.0, sharex=True)
    for index, (name, part) in enumerate(parts.groupby(names, sort=False)):
        width = 0.82 / len(looks)
        places = [kinds.index(kind) - 0.41 + (index + 0.5) * width for kind in part["category"]]
        axes[0].bar(places, part["tau"], 0.94 * width, label=str(name), **looks[name])
        if both:
            middle, low, high = _ends(part, column)
            error = [middle - low, high - middle]
            axes[1].bar(places, middle, 0.94 * width, yerr=error, **looks[name], **ERROR)
    axes[0].set_ylabel("τ (tokens per round)")
    if both:
        axes[1].set_ylabel(f"speed-up over\n{called(baseline)}")
        axes[1].axhline(1, color="black", linewidth=0.8)
    axes[-1].set_xticks(range(len(kinds)), [wrapped(kind, 14) for kind in kinds])
    for axis in axes:
        axis.grid(axis="x", visible=False)
    legend(figure, axes)
    return Drawn(
        figure,
        "By category",
        f"Block efficiency (rounds of the category pooled) and speed-up over {called(baseline)} ({INTERVALS}; none below three "
        f"prompts). n = {span(parts['prompts'])} prompts per category.",
    )


# ------------------------------------------------------------------------------------------------------------- helpers

ERROR = {"ecolor": "#333333", "capsize": 1.5, "error_kw": {"elinewidth": 0.7}}


def _ends(frame: Frame, name: str) -> tuple[pd.Series, pd.Series, pd.Series]:
    return tuple(frame[f"{name}{end}"].astype(float) for end in ("", "_low", "_high"))  # type: ignore[return-value]


def _reach(middle: float, low: float | None, high: float | None) -> Any:
    return None if low is None or pd.isna(low) else [[middle - low], [high - middle]]


def _point(axis: Any, x: float, y: float, look: dict[str, Any], fill: str) -> None:
    """A marker: full, empty, or empty with a dot inside."""
    face = look["color"] if fill == "full" else "white"
    axis.plot(x, y, look["marker"], color=look["color"], markerfacecolor=face, zorder=3, markersize=6)
    if fill == "dot":
        axis.plot(x, y, ".", color=look["color"], markersize=2.5, zorder=4)


def _n(frame: Frame) -> str:
    return span(frame["prompts"])


def _one(axis: Any, noise: Any, vertical: bool = False) -> None:
    """The line of no gain, and how far the baseline strays from itself."""
    (axis.axvline if vertical else axis.axhline)(1, color="black", linewidth=0.8, zorder=1)
    if noise is not None and noise.low is not None:
        (axis.axvspan if vertical else axis.axhspan)(
            noise.low, noise.high, color="#888888", alpha=0.3, linewidth=0, zorder=0
        )


def _band(noise: Any, baseline: str) -> str:
    if noise is None or noise.low is None:
        return ""
    return f" Grey: {called(baseline)} against itself, {noise} (n = {noise.n})."


def _fills(temperatures: pd.Series) -> dict[float, str]:
    return dict(zip(sorted(temperatures.unique()), ("full", "none", *["dot"] * 99), strict=False))


def _fill_words(fills: dict[float, str]) -> str:
    if len(fills) < 2:
        return ""
    words = {"full": "Filled", "none": "open", "dot": "dotted"}
    told = {look: ", ".join(f"{t:g}" for t, own in fills.items() if own == look) for look in fills.values()}
    return " " + "; ".join(f"{words[look]}: T = {values}" for look, values in told.items()) + "."


def _first_runs(frame: Frame) -> tuple[list[tuple[str, Frame]], str]:
    """One frame per run, by name: all of them, or the lowest temperature's, or the first of these; and what was left out."""
    drafting = frame[frame["drafter"] != "none"]
    note = ""
    if drafting["run"].nunique() > PANELS and drafting["temperature"].nunique() > 1:
        lowest = drafting["temperature"].min()
        drafting, note = (
            drafting[drafting["temperature"] == lowest],
            f" Of {frame['run'].nunique()} runs, those at T = {lowest:g}.",
        )
    names = named(drafting)
    groups = [(str(names[part.index[0]]), part) for _, part in drafting.groupby("run", sort=False)]
    if len(groups) > PANELS:
        note = f" The first {PANELS} of {frame['run'].nunique()} runs."
    return groups[:PANELS], note
