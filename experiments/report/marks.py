"""What several figures draw: error bars, the line of no gain with the noise around it, a marker per
temperature."""

from typing import Any

import pandas as pd

from experiments.report.looks import called, span

Frame = pd.DataFrame
INTERVALS = "medians over prompts with 95% bootstrap intervals"
ERROR = {"ecolor": "#333333", "capsize": 1.5, "error_kw": {"elinewidth": 0.7}}


def ends(frame: Frame, name: str) -> tuple[pd.Series, pd.Series, pd.Series]:
    middle, low, high = (frame[f"{name}{end}"].astype(float) for end in ("", "_low", "_high"))
    return middle, low, high


def reach(middle: float, low: float | None, high: float | None) -> Any:
    return None if low is None or pd.isna(low) else [[middle - low], [high - middle]]


def point(axis: Any, x: float, y: float, look: dict[str, Any], fill: str) -> None:
    """A marker: full, empty, or empty with a dot inside."""
    face = look["color"] if fill == "full" else "white"
    axis.plot(
        x, y, look["marker"], color=look["color"], markerfacecolor=face, zorder=3, markersize=6
    )
    if fill == "dot":
        axis.plot(x, y, ".", color=look["color"], markersize=2.5, zorder=4)


def prompts_of(frame: Frame) -> str:
    return span(frame["prompts"])


def no_gain(axis: Any, noise: Any, vertical: bool = False) -> None:
    """The line of no gain, and how far the baseline strays from itself."""
    (axis.axvline if vertical else axis.axhline)(1, color="black", linewidth=0.8, zorder=1)
    if noise is not None and noise.low is not None:
        (axis.axvspan if vertical else axis.axhspan)(
            noise.low, noise.high, color="#888888", alpha=0.3, linewidth=0, zorder=0
        )


def band(noise: Any, baseline: str) -> str:
    if noise is None or noise.low is None:
        return ""
    return f" Grey: {called(baseline)} against itself, {noise} (n = {noise.n})."


def fills_of(temperatures: pd.Series) -> dict[float, str]:
    return dict(zip(sorted(temperatures.unique()), ("full", "none", *["dot"] * 99), strict=False))


def fill_words(fills: dict[float, str]) -> str:
    if len(fills) < 2:
        return ""
    words = {"full": "Filled", "none": "open", "dot": "dotted"}
    told = {
        look: ", ".join(f"{t:g}" for t, own in fills.items() if own == look)
        for look in fills.values()
    }
    return " " + "; ".join(f"{words[look]}: T = {values}" for look, values in told.items()) + "."
