"""The figures of a report, each from frames of experiments/report/frames.py to a figure with its
caption.

Ratios are those over the first baseline, unless a function says otherwise. "Median" is over prompts
(over batches, at batch sizes above 1).
"""

from typing import Any

import numpy as np
import pandas as pd

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
from experiments.report.marks import (
    ERROR,
    INTERVALS,
    Frame,
    band,
    ends,
    fill_words,
    fills_of,
    no_gain,
    point,
    prompts_of,
    reach,
)

PHASES = ("prefill", "draft", "score", "verify", "commit", "other")


def speedups(table: Frame, baselines: list[str], noise: Any = None) -> Drawn:
    """Bars per run and baseline."""
    names = named(table).map(wrapped)
    height = 0.8 / len(baselines)
    figure, (axis,) = panels(1, 1, 0.9 + 0.2 * len(table) * max(1.6, len(baselines)))
    for index, (name, look) in enumerate(bar_styles(baselines).items()):
        middle, low, high = ends(table, f"speedup_{name}")
        places = np.arange(len(table)) + (index - (len(baselines) - 1) / 2) * height
        error = [middle - low, high - middle]
        axis.barh(
            places,
            middle,
            height=0.92 * height,
            xerr=error,
            label=f"over {called(name)}",
            **look,
            **ERROR,
        )
    no_gain(axis, noise, vertical=True)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("speed-up (time per token, baseline / method)")
    legend(figure, [axis])
    return Drawn(
        figure,
        "Speed-up",
        f"Speed-up of each run over its own baselines: {INTERVALS}, n = {prompts_of(table)} "
        f"prompts, whole calls, prefill included.{band(noise, baselines[0])}",
    )


def pareto(table: Frame, baseline: str, noise: Any = None) -> Drawn:
    """Speed-up against tau."""
    figure, (axis,) = panels(1, 1, 3.4)
    names = named(table, without=("temperature",))
    looks, fills = line_styles(names), fills_of(table["temperature"])
    middle, low, high = ends(table, f"speedup_{baseline}")
    for name, temperature, *values in zip(
        names,
        table["temperature"],
        table["tau"],
        middle,
        low,
        high,
        table["tau_low"],
        table["tau_high"],
        strict=True,
    ):
        tau, speed, speed_low, speed_high, tau_low, tau_high = values
        look = looks[name]
        across = reach(tau, tau_low, tau_high)
        up = reach(speed, speed_low, speed_high)
        axis.errorbar(
            tau,
            speed,
            up,
            across,
            color=look["color"],
            elinewidth=0.7,
            capsize=1.5,
            linestyle="",
            zorder=2,
        )
        point(axis, tau, speed, look, fills[temperature])
    for name, look in looks.items():
        axis.plot([], [], look["marker"], color=look["color"], label=name)
    no_gain(axis, noise)
    axis.set(
        xlabel="τ (tokens per round, bonus included)", ylabel=f"speed-up over {called(baseline)}"
    )
    legend(figure, [axis])
    return Drawn(
        figure,
        "Speed-up against τ",
        f"Speed-up over {called(baseline)} against τ, one point per run: "
        f"{INTERVALS} (of τ: all prompts pooled), n = {prompts_of(table)} "
        f"prompts.{fill_words(fills)} Of two methods with the same τ, the lower one has slower "
        f"rounds.{band(noise, baseline)}",
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
            part["temperature"],
            part["tau"],
            error,
            label=str(name),
            elinewidth=0.7,
            capsize=2,
            **looks[name],
        )
        right.plot(part["temperature"], 100 * part["distinct_4grams"], **looks[name])
    left.set(xlabel="temperature", ylabel="τ (tokens per round)")
    right.set(xlabel="temperature", ylabel="distinct 4-grams (%)", ylim=(0, 102))
    legend(figure, [left])
    return Drawn(
        figure,
        "τ against temperature",
        "τ, all prompts pooled, with 95% bootstrap intervals, and the share of distinct 4-grams of "
        "the same outputs: text that repeats itself flatters every drafter, so τ means little "
        f"where the share is small. n = {prompts_of(table)} prompts.",
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
        axis.set_xlabel(wrapped("position in the output", 30 // len(axes)))
        if len(temperatures) > 1:
            entitle(axis, f"T = {temperature:g}")
    axes[0].set_ylabel("τ (tokens per round)")
    legend(figure, axes)
    return Drawn(
        figure,
        "τ by position in the output",
        f"τ of the rounds that begin in each bin of {width} output tokens; n = "
        f"{span(parts['rounds'])} rounds per point. A rise along the output often means that the "
        "text repeats itself.",
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
            look = {
                "color": colour,
                "hatch": hatch,
                "edgecolor": "white",
                "linewidth": 0.4,
                "height": 0.72,
            }
            axis.barh(wide.index, wide[phase], left=left, label=phase, **look)
            left += wide[phase].fillna(0)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("milliseconds per token")
    legend(figure, [axis], columns=6)
    plain = ""
    if (phases["drafter"] == "none").any():
        plain = ' "none" is plain decoding in the same runs (mean of them).'
    return Drawn(
        figure,
        "Time by phase",
        f"Where the time of a token goes, sums over n = {prompts_of(phases)} prompts: reading the "
        "prompt, drafting, the target's pass, "
        f"verification, keeping the accepted path, and the rest of the loop.{plain}",
    )


def balance(points: Frame) -> Drawn:
    """Seconds that drafts have gained over plain decoding, along the rounds."""
    names = named(points)
    looks = line_styles(names)
    figure, (axis,) = panels(1, 1, 2.9)
    axis.axhline(0, color="black", linewidth=0.7, linestyle=":")
    for name, part in points.groupby(names, sort=False):
        every = max(1, len(part) // 8)
        axis.plot(part["rounds"], part["seconds"], label=str(name), markevery=every, **looks[name])
    axis.set(xlabel="rounds, all calls one after another", ylabel="seconds gained")
    legend(figure, [axis])
    return Drawn(
        figure,
        "Balance of the bank",
        "What drafts have gained over plain decoding, by the bank's own count (no_harm), over "
        f"n = {span(points.groupby('run')['rounds'].max())} rounds per run. Where the line falls, "
        "rounds with drafts took longer than plain ones would have; where it is level, rounds "
        "were plain.",
    )


def predicted_and_measured(table: Frame) -> Drawn:
    """Predicted against measured speed-up while decoding; a marker per model of it."""
    models = {
        "speedup_formula": "closed form (Leviathan et al.)",
        "speedup_profile": "from the machine's profile",
    }
    models = {name: label for name, label in models.items() if name in table}
    figure, axes = panels(1, len(models), 3.4, sharex=True, sharey=True)
    names = named(table, without=("temperature",))
    looks, fills = line_styles(names), fills_of(table["temperature"])
    whole = table[["speedup", *models]].to_numpy(dtype=float)
    low, high = 0.92 * np.nanmin(whole), 1.06 * np.nanmax(whole)
    for axis, (model, label) in zip(axes, models.items(), strict=True):
        axis.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=1)
        for name, temperature, x, y in zip(
            names, table["temperature"], table["speedup"], table[model], strict=True
        ):
            point(axis, x, y, looks[name], fills[temperature])
        axis.set(xlim=(low, high), ylim=(low, high), xlabel="measured speed-up")
        entitle(axis, label)
        axis.set_box_aspect(1)
    for name, look in looks.items():
        axes[0].plot([], [], look["marker"], color=look["color"], label=name)
    axes[0].set_ylabel("predicted speed-up")
    legend(figure, axes)
    errors = "; ".join(
        f"{label}: {100 * table[f'{name}_error'].abs().median():.0f}%"
        for name, label in models.items()
    )
    return Drawn(
        figure,
        "Predicted and measured",
        f"Speed-up over plain decoding while decoding, all n = {prompts_of(table)} prompts pooled; "
        f"on the line they agree. Median relative error: {errors}.{fill_words(fills)}",
    )


def per_category(parts: Frame, baseline: str) -> Drawn:
    """Grouped bars: tau and speed-up by category of prompts."""
    note = ""
    if parts["run"].nunique() > len(COLOURS) and parts["temperature"].nunique() > 1:
        lowest = parts["temperature"].min()
        parts, note = parts[parts["temperature"] == lowest], f" Only the runs at T = {lowest:g}."
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
            middle, low, high = ends(part, column)
            error = [middle - low, high - middle]
            axes[1].bar(places, middle, 0.94 * width, yerr=error, **looks[name], **ERROR)
    axes[0].set_ylabel("τ (tokens per round)")
    if both:
        axes[1].set_ylabel(wrapped(f"speed-up over {called(baseline)}", 20))
        axes[1].axhline(1, color="black", linewidth=0.8)
    axes[-1].set_xticks(range(len(kinds)), [wrapped(kind, 14) for kind in kinds])
    for axis in axes:
        axis.grid(axis="x", visible=False)
    legend(figure, axes)
    speed = f" and speed-up over {called(baseline)} ({INTERVALS}; none below three prompts)"
    return Drawn(
        figure,
        "By category",
        f"τ (rounds of the category pooled){speed if both else ''}. "
        f"n = {span(parts['prompts'])} prompts per category.{note}",
    )
