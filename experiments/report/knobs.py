"""Speed-up and tau against what a study varies: a line joins runs that differ in that one thing
only."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from experiments.report import frames
from experiments.report.looks import Drawn, called, legend, line_styles, named, panels, wrapped
from experiments.report.marks import INTERVALS, band, ends, no_gain, prompts_of
from experiments.study.result import Result

NAMES_ONLY = ("label", "study", "progress")  # of a configuration: what changes no number


@dataclass(frozen=True)
class Knob:
    """Something that a study may vary. A run has it where `value` is a number."""

    name: str
    axis: str  # the axis label, with its unit
    paths: tuple[str, ...]  # the settings that turn it, and what hangs below them
    value: Callable[[Result], float | None]
    log: bool = False


def _draft_length(result: Result) -> float | None:
    drafter = result.effective.drafter
    return drafter.get("length", drafter.get("depth"))


def _cost_ratio(result: Result) -> float | None:
    """Seconds of one plain pass of the target / seconds of drafting per round of the method."""
    return 1 / result.draft_cost if result.draft_cost and result.method.drafter != "none" else None


def _context(result: Result) -> float:
    return float(median(entry.prompt_tokens for entry in result.method.per_prompt))


def _seats(result: Result) -> float:
    return float(result.config.seats or result.config.batch_size)


def _sparsity(result: Result) -> float | None:
    """The share of the drafter's weights that are zero, by the name that the study `pruned` gives
    its folder; 0 where the target drafts for itself."""
    model = str(result.effective.drafter.get("model"))
    if model == result.config.target.name:
        return 0.0
    named = re.fullmatch(r"sparsity-(0?\.\d+)", Path(model).name)
    return float(named[1]) if named else None


KNOBS = (
    Knob(
        "batch size",
        "batch size (prompts)",
        ("batch_size",),
        lambda r: r.config.batch_size,
        log=True,
    ),
    Knob("seats", "seats (prompts side by side)", ("seats",), _seats, log=True),
    Knob(
        "draft length", "draft length (tokens)", ("drafter.length", "drafter.depth"), _draft_length
    ),
    Knob(
        "nodes",
        "drafted nodes per round (mean)",
        ("drafter.nodes", "drafter.branching", "drafter.depth", "drafter.length", "drafter.tree"),
        lambda r: r.method.nodes_per_round,
    ),
    Knob(
        "cost ratio",
        "one plain pass of the target / one round's drafting (seconds)",
        ("target.extra_layers",),
        _cost_ratio,
        log=True,
    ),
    Knob(
        "exit layer",
        "layers of the target that draft",
        ("drafter.exit",),
        lambda r: r.effective.drafter.get("exit"),
    ),
    Knob("sparsity", "zeros among the drafter's weights (share)", ("drafter.model",), _sparsity),
    Knob("context", "prompt length (tokens, median)", ("prompts",), _context, log=True),
    Knob(
        "drafter size",
        "weights that the drafter adds (MiB)",
        ("drafter.model", "drafter.heads"),
        lambda r: r.method.memory.drafter_weights / 2**20,
        log=True,
    ),
)


def flat(settings: Any, path: str = "") -> dict[str, Any]:
    """{"drafter.length": 4, ...}"""
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = asdict(settings)
    if not isinstance(settings, dict):
        return {path: settings}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{path}.{name}" if path else str(name))
    return found


NAMED = (
    "label",
    "drafter",
    "verifier",
    "target.name",
    "target.extra_layers",
    "sampling.temperature",
    "batch_size",
)


def shortened(results: Sequence[Result]) -> list[Result]:
    """The results with shorter labels, without settings that all drafting runs share: these do not
    distinguish runs, and the page lists them once."""
    words = [
        {word for word in str(result.config.label).split(" ")[1:] if "=" in word}
        for result in results
        if result.method.drafter != "none"
    ]
    common = set.intersection(*words) if len(words) > 1 else set()

    def short(label: str) -> str:
        return " ".join(word for word in label.split(" ") if word not in common)

    return [
        replace(result, config=replace(result.config, label=short(str(result.config.label))))
        for result in results
    ]


def told_apart(results: list[Result]) -> list[Result]:
    """The results, with other varied settings (such as prompts.tokens) added to the labels of runs
    that would otherwise share a name."""
    keys = [json.dumps({**frames.key(result), "run": ""}, sort_keys=True) for result in results]
    each = [flat(result.config) for result in results]
    varied = [
        path
        for path in dict.fromkeys(path for settings in each for path in settings)
        if path not in NAMES_ONLY
        and not _under(path, NAMED)
        and len({json.dumps(settings.get(path)) for settings in each}) > 1
    ]
    found = []
    for result, key, settings in zip(results, keys, each, strict=True):
        if keys.count(key) > 1 and varied:
            more = ", ".join(f"{path.rpartition('.')[2]}={settings.get(path)}" for path in varied)
            result = replace(
                result, config=replace(result.config, label=f"{result.config.label}, {more}")
            )
        found.append(result)
    return found


def lines(results: Iterable[Result], knob: Knob) -> pd.DataFrame:
    """Rows of `frames.table` with `x`, the knob's value, and `line`, which joins runs that differ
    in nothing else; only lines of two values or more."""
    rows, kept = [], []
    for result in results:
        x = knob.value(result)
        if x is None or result.method.drafter == "none":
            continue
        whole = flat(result.config)
        turned = {path: value for path, value in whole.items() if _under(path, knob.paths)}
        settings = {
            path: value for path, value in whole.items() if path not in {*NAMES_ONLY, *turned}
        }
        base = _without(str(result.config.label), knob.paths)
        rows.append(
            (
                x,
                json.dumps([base, settings], sort_keys=True),
                json.dumps(turned, sort_keys=True),
                base,
            )
        )
        kept.append(result)
    if not rows:
        return pd.DataFrame()
    table = frames.table(kept)
    lossy = table["drafter"].str.endswith(" (lossy)").map({True: " (lossy)", False: ""})
    table["x"], table["line"], table["turned"], base = zip(*rows, strict=True)
    table["drafter"] = pd.Series(base, index=table.index) + lossy
    groups = table.groupby("line")
    table = table[
        (groups["turned"].transform("nunique") > 1) & (groups["x"].transform("nunique") > 1)
    ]
    return table.sort_values(["line", "x"], kind="stable")


def _under(path: str, above: tuple[str, ...]) -> bool:
    return any(path == one or path.startswith(f"{one}.") for one in above)


def _without(label: str, paths: tuple[str, ...]) -> str:
    """The label without the settings that the knob turns, which run.py appends as " key=value"."""
    keys = {path.rpartition(".")[2] for path in paths}
    return " ".join(
        word for word in label.split(" ") if word.partition("=")[0] not in keys or "=" not in word
    )


def drawn(results: list[Result], baseline: str, noise: Any = None) -> dict[str, Drawn]:
    """A figure for each knob that the study turns."""
    found = {}
    for knob in KNOBS:
        table = lines(results, knob)
        if len(table) and not (knob.name == "nodes" and _only_length(table)):
            found[f"against_{knob.name.replace(' ', '_')}"] = _draw(table, knob, baseline, noise)
    return found


def _only_length(table: pd.DataFrame) -> bool:
    """Whether nothing but the draft length differs: then its own figure says it."""
    shapes = table["turned"].map(json.loads)
    others = shapes.map(
        lambda s: json.dumps(
            {k: v for k, v in s.items() if k not in ("drafter.length", "drafter.depth")}
        )
    )
    return bool((others.groupby(table["line"]).transform("nunique") < 2).all())


def _draw(table: pd.DataFrame, knob: Knob, baseline: str, noise: Any) -> Drawn:
    figure, (left, right) = panels(1, 2, 2.9)
    names = named(
        table,
        without=("batch",)
        if knob.name == "batch size"
        else ("target",)
        if knob.name == "cost ratio"
        else (),
    )
    looks = line_styles(names)
    for _, part in table.groupby("line", sort=False):
        name = names[part.index[0]]
        middle, low, high = ends(part, f"speedup_{baseline}")
        error = [middle - low, high - middle]
        left.errorbar(
            part["x"], middle, error, label=str(name), elinewidth=0.7, capsize=2, **looks[name]
        )
        error = [part["tau"] - part["tau_low"], part["tau_high"] - part["tau"]]
        right.errorbar(
            part["x"], part["tau"], error, label=str(name), elinewidth=0.7, capsize=2, **looks[name]
        )
    no_gain(left, noise)
    left.set_ylabel(wrapped(f"speed-up over {called(baseline)}", 24))
    right.set_ylabel("τ (tokens per round)")
    for axis in (left, right):
        if knob.log and table["x"].min() > 0 and table["x"].max() / table["x"].min() > 4:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if knob.name == "batch size":
            axis.set_xticks(sorted(table["x"].unique()))
            axis.minorticks_off()
        axis.set_xlabel(wrapped(knob.axis, 32))
    legend(figure, [left])
    unit = "batches of prompts" if knob.name == "batch size" else "prompts"
    return Drawn(
        figure,
        f"Against {knob.name}",
        f"Speed-up over {called(baseline)} ({INTERVALS.replace('prompts', unit)}) and block "
        f"efficiency (pooled) against the {knob.axis}; a line joins runs that differ in nothing "
        f"else. n = {prompts_of(table)} prompts.{band(noise, baseline)}",
    )
