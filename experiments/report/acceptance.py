"""Figures of what became of drafted nodes: per depth, per sibling rank, per round."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from experiments.report.looks import (
    COLOURS,
    STYLE,
    Drawn,
    entitle,
    legend,
    line_styles,
    named,
    panels,
    span,
    wrapped,
)
from experiments.report.marks import Frame

FEW = 10  # below it a rate is drawn hollow, or left out of a heat map's numbers
NUMBERED = 6  # ranks; wider heat maps have no room for numbers in their cells
PANELS = 9  # small multiples, at most
# grows darker in grey, too
GREYS = LinearSegmentedColormap.from_list("blues", ["#f7fbff", "#6baed6", "#08306b"])


def heat_map(acceptance: Frame) -> Drawn:
    """Accepted / reached per depth and sibling rank, a panel per run that drafts."""
    runs, left_out = _first_runs(acceptance)
    columns = min(3, len(runs))
    runs = [(name, _read_often(part)) for name, part in runs]
    deepest_of_all = max(int(part["depth"].max()) for _, part in runs)
    height = 0.85 + 0.24 * min(deepest_of_all, 12)
    figure, axes = panels(-(-len(runs) // columns), columns, height)
    shown = None
    for axis, (name, part) in zip(axes, runs, strict=False):
        deepest, widest = int(part["depth"].max()), int(part["rank"].max()) + 1
        rate = np.full((deepest, widest), np.nan)
        for cell in part.itertuples():
            if cell.reached:
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
                        fontsize=7.5,
                    )
        shown = axis.imshow(rate, cmap=GREYS, vmin=0, vmax=1, aspect="auto")
        entitle(axis, wrapped(name, 20))
        axis.grid(visible=False)
        across, down = (1 if count <= 8 else -(-count // 6) for count in (widest, deepest))
        axis.set_xticks(range(0, widest, across), range(1, widest + 1, across))
        axis.set_yticks(range(0, deepest, down), range(1, deepest + 1, down))
    for axis in axes[len(runs) :]:
        axis.set_axis_off()
    figure.supxlabel("sibling rank", fontsize=STYLE["font.size"])
    figure.supylabel("depth", fontsize=STYLE["font.size"])
    figure.colorbar(
        shown,
        ax=axes,
        label="accepted / reached",
        shrink=min(1.0, 2.2 / (height * -(-len(runs) // columns))),
        pad=0.01,
        aspect=18,
    )
    reached = [part["reached"].sum() for _, part in runs]
    numbered = any(part["rank"].max() < NUMBERED for _, part in runs)
    numbers = f"Numbers where at least {FEW} were reached; blank" if numbered else "Blank"
    return Drawn(
        figure,
        "Acceptance per depth and sibling rank",
        "Share of the drafted nodes that were accepted among those reached (whose parent was "
        f"accepted), n = {span(reached)} reached nodes per run. {numbers}: never reached. Each "
        f"panel ends at the last depth with a node that was reached {FEW} times.{left_out}",
    )


def _read_often(part: Frame) -> Frame:
    """A run's cells down to the last depth at which there is something to read."""
    often = part[part["reached"] >= FEW]
    deepest = (often if len(often) else part[part["reached"] > 0])["depth"].max()
    return part[part["depth"] <= deepest]


def acceptance_per_depth(groups: Frame) -> Drawn:
    """Lines over depth: groups of siblings of which one was accepted / groups reached; a panel per
    temperature."""
    temperatures = sorted(groups["temperature"].unique())
    looks = line_styles(named(groups, without=("temperature",)))
    figure, axes = panels(1, len(temperatures), 2.7, sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        here = groups[groups["temperature"] == temperature]
        for name, part in here.groupby(named(groups, without=("temperature",)), sort=False):
            part = part.groupby("depth")[["reached", "accepted"]].sum()
            rate, few = part["accepted"] / part["reached"], part["reached"] < FEW
            axis.plot(rate.index, rate, label=str(name), **looks[name])
            axis.plot(
                rate.index[few],
                rate[few],
                **(looks[name] | {"linestyle": "", "markerfacecolor": "white"}),
            )
        axis.set(xlabel="depth (tokens)", ylim=(0, 1.02))
        if len(temperatures) > 1:
            entitle(axis, f"T = {temperature:g}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("accepted / reached")
    legend(figure, axes)
    first = groups[groups["depth"] == 1]["reached"]
    return Drawn(
        figure,
        "Acceptance per depth",
        "The chance to get to a depth from the one above it: groups of siblings of which one was "
        f"accepted / groups reached. n = {span(first)} rounds at depth 1; hollow: fewer than {FEW} "
        "groups.",
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
        entitle(axis, wrapped(name, 20))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(axis="x", visible=False)
    for axis in axes[len(runs) :]:
        axis.set_axis_off()
    figure.supxlabel("accepted drafted tokens in a round", fontsize=STYLE["font.size"])
    figure.supylabel("rounds (%)", fontsize=STYLE["font.size"])
    rounds = lengths.groupby("run")["rounds"].sum()
    return Drawn(
        figure,
        "Accepted lengths",
        f"How many drafted tokens a round accepted, in % of the rounds (n = {span(rounds)} per "
        "run), before cuts at the end of a text. Dashed: the mean; τ counts the bonus token on "
        f"top.{left_out}",
    )


def reliability(bins: Frame) -> Drawn:
    """The share of nodes that was accepted against the chance that was expected of them."""
    names = named(bins)
    looks = line_styles(names)
    figure, (axis,) = panels(1, 1, 2.9)
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.7, linestyle=":")
    for name, part in bins.groupby(names, sort=False):
        axis.plot(part["chance"], part["accepted"], label=str(name), **looks[name])
    axis.set(xlabel="expected chance of acceptance", ylabel="share accepted")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    legend(figure, [axis])
    nodes = bins.groupby("run")["nodes"].sum()
    return Drawn(
        figure,
        "Reliability",
        "Drafted nodes by the chance of acceptance that was expected of them before the target's "
        f"pass, and the share that was accepted; n = {span(nodes)} nodes per run. On the dotted "
        "line chances are calibrated.",
    )


def _first_runs(frame: Frame) -> tuple[list[tuple[str, Frame]], str]:
    """One frame per run, by name: all of them, or the lowest temperature's, or the first of these;
    and what was left out."""
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
