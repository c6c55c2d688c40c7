"""How figures look: for print, for colour-blind readers, and in grey.

Colours are Okabe and Ito's, then three of Paul Tol's; markers, line styles and hatches tell the
same apart without them. Text can be read when a figure is shown 400 pixels wide. A figure has no
title: its caption says what it shows, with units and n.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.system.files import written

COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442"),
    *("#882255", "#999933", "#332288"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
FIXED = "\N{NO-BREAK SPACE}"  # a line never breaks inside "T = 0"
WIDTH = 5.4  # inches: 388 points, so that text of 8 points is 8 pixels in a figure of 400
SMALL = 8  # points: titles of panels, legends


@dataclass(frozen=True)
class Drawn:
    """A figure with its title and caption."""

    figure: Figure
    title: str
    caption: str


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width; `height` is that of one row, in inches. Every panel has numbers
    on its axes, also where it shares them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
        for axis in axes.flat:
            axis.tick_params(labelleft=True, labelbottom=True)
    return figure, list(axes.flat)


def save(figure: Figure, path: Path) -> None:
    """As its suffix says. Fonts in PDF are TrueType, which journals ask for: that setting is read
    when a file is written."""
    with matplotlib.rc_context(STYLE), written(path) as draft:
        figure.savefig(draft, dpi=200, format=path.suffix.removeprefix("."))


def entitle(axis: Axes, text: str) -> None:
    """A panel's title; styles are read when text is set, so it says its size itself."""
    axis.set_title(text, fontsize=SMALL)


def line_styles(names: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """Colour, marker and line by name; beyond the colours there are, other pairs of colour and
    marker."""
    found = {}
    for number, name in enumerate(dict.fromkeys(names)):
        found[name] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": _other(MARKERS, number),
            "linestyle": LINES[number % len(LINES)],
        }
    return found


def _other(marks: Sequence[Any], number: int) -> Any:
    """The mark that goes with colour `number`; another one once the colours come again."""
    return marks[(number + number // len(COLOURS)) % len(marks)]


def bar_styles(names: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """Colour and hatch by name."""
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "hatch": _other(HATCHES, i),
            "edgecolor": "white",
            "linewidth": 0.4,
        }
        for i, name in enumerate(dict.fromkeys(names))
    }


def legend(figure: Figure, axes: Sequence[Axes], columns: int | None = None) -> None:
    """One legend for all panels, below them. The figure grows by its height."""
    found = {
        text: line
        for axis in axes
        for line, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if found:
        with matplotlib.rc_context(STYLE):
            columns = columns or _columns(max(map(len, found)))
            figure.legend(found.values(), found, ncols=columns, loc="outside lower center")
        width, height = figure.get_size_inches()
        figure.set_size_inches(width, height + 0.17 * -(-len(found) // columns))


def _columns(longest: int) -> int:
    """How many columns a legend has room for, by the letters of its longest name."""
    inches = 0.6 + longest * SMALL / 72 * 0.6  # the line before it, and letters of average width
    return max(1, min(4, int(WIDTH / inches)))


def named(frame: pd.DataFrame, without: Iterable[str] = ()) -> pd.Series:
    """What a run is called in a figure: its drafter, with the target, batch and temperature where
    the drafter has several, and with the verifier where nothing else tells two runs apart (`auto`
    takes another one at T = 0)."""
    words = {
        "target": lambda value: f"on {value}",
        "verifier": str,
        "batch": lambda value: f"batch {value}",
        "temperature": lambda value: f"T = {value:g}".replace(" ", FIXED),
    }
    names = frame["drafter"].astype(str)
    for column, word in words.items():
        if column in without or column not in frame:
            continue
        others = [other for other in words if other in frame and other != column]
        same = ["drafter", *others] if column == "verifier" else ["drafter"]
        varying = frame.groupby(same)[column].transform("nunique") > 1
        names = names.where(~varying, names + ", " + frame[column].map(word))
    return names


def wrapped(name: str, width: int = 30) -> str:
    return fill(name, width)


def span(values: pd.Series | Sequence[Any]) -> str:
    """ "8", or "4 to 8"."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def called(baseline: str) -> str:
    """What a baseline is called in sentences."""
    return {
        "none": "plain decoding",
        "transformers": "transformers' generate",
        "assisted": "transformers' assisted generation",
        "prompt_lookup": "transformers' prompt lookup",
    }.get(baseline, baseline)
