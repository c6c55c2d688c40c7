"""Every rule on the same drafts: exact expected lengths on table models, next to the bound for any
rule, and tau on a real pair.

python -m experiments.compare_verifiers
python -m experiments.compare_verifiers folder=outputs/rules prompts=24
"""

import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.measuring.intervals import pooled_interval
from experiments.terminal.options import start

SHAPES: dict[str, dict[str, Any]] = {
    "chain of 3": {"depth": 3, "draw": "wor"},
    "i.i.d. 2 x 2": {"depth": 2, "branching": 2, "draw": "wr"},
    "without replacement 2 x 2": {"depth": 2, "branching": 2, "draw": "wor"},
    "top-k 2 x 2": {"depth": 2, "branching": 2, "draw": "topk"},
    "hub 2 x 2": {"depth": 2, "branching": 2, "draw": "hub"},
}
TABLES = ("zeros", "ties")


@dataclass
class Compare:
    """python -m experiments.compare_verifiers: every rule on the same drafts."""

    folder: str = "outputs/compare_verifiers"
    target: str = "demo"
    draft: str = "demo-draft"
    prompts: int = 16
    max_new_tokens: int = 96
    temperatures: list[float] = field(default_factory=lambda: [0.3, 0.7, 1.0])


def rules() -> list[str]:
    """The lossless rules that work above temperature 0."""
    from experiments.certificates import suite
    from specdec.plugins import build

    built = {name: build("verifier", name) for name in suite.rules()}
    return [
        name for name, rule in built.items() if rule.lossless and not rule.zero_temperature_only
    ]


def on_tables() -> pd.DataFrame:
    """Columns: tables, drafts, rule, accepted. The rule "bound" is the value that no lossless rule
    exceeds."""
    from experiments.certificates.bound import most_accepted
    from experiments.certificates.certificate import Pair
    from experiments.certificates.exact import exact
    from experiments.certificates.tables import standard
    from experiments.terminal.progress import bar
    from specdec import Refused

    rows = []
    sets = [tables for tables in standard() if tables.name in TABLES]
    with bar("tables", len(sets) * len(SHAPES)) as advance:
        for tables, (title, shape) in itertools.product(sets, SHAPES.items()):
            for rule in rules():
                pair = Pair({"name": "small_model", **shape}, {"name": rule})
                try:
                    found = exact(tables, pair.on_tables, pair.rule(1.0), shape["depth"] + 1)
                except Refused:
                    continue
                rows.append(
                    {
                        "tables": tables.name,
                        "drafts": title,
                        "rule": rule,
                        "accepted": found.accepted,
                    }
                )
            bound = most_accepted(tables, pair.on_tables, shape["depth"])
            rows.append(
                {"tables": tables.name, "drafts": title, "rule": "bound", "accepted": bound}
            )
            advance()
    return pd.DataFrame(rows)


def on_a_real_pair(wanted: Compare) -> pd.DataFrame:
    """Columns: temperature, drafts, rule, tau (all prompts pooled) and its 95% bootstrap interval
    over prompts. Trees of five levels, two children on the first two."""
    import specdec
    from experiments.prompts import read
    from experiments.terminal.progress import bar
    from specdec.plugins import build

    target, draft = specdec.load(wanted.target), specdec.load(wanted.draft)
    texts = [
        prompt.text for prompt in read("jsonl", "demo", category="category", limit=wanted.prompts)
    ]
    rows = []
    cases = list(itertools.product(wanted.temperatures, SHAPES.items(), rules()))
    with bar("tau", len(cases)) as advance:
        for temperature, (title, shape), rule in cases:
            advance()
            widths = [2, 2, 1, 1, 1] if "branching" in shape else 1
            settings = {
                "name": "small_model",
                "model": draft,
                "depth": 5,
                "branching": widths,
                "draw": shape["draw"],
            }
            try:
                out = specdec.generate(
                    target,
                    texts,
                    drafter=build("drafter", settings),
                    verifier=rule,
                    temperature=temperature,
                    max_new_tokens=wanted.max_new_tokens,
                )
            except specdec.Refused:
                continue
            tau = pooled_interval(
                *(
                    np.sum([getattr(step, name) for step in out.steps], 0)
                    for name in ("kept", "live")
                )
            )
            drafts = title.replace(" 2 x 2", "").replace(" of 3", "")
            found = {"tau": tau.median, "low": tau.low, "high": tau.high}
            rows.append({"temperature": temperature, "drafts": drafts, "rule": rule, **found})
    return pd.DataFrame(rows)


ORDERS = (
    ["naive", "rrs_wr", "traversal", "bound"],
    ["naive", "rrs_wor", "traversal", "bound"],
    ["token", "block", "bound"],
)


def out_of_order(exact: pd.DataFrame) -> list[str]:
    """Violations of the expected order of accepted lengths: naive <= rrs <= traversal <= bound on
    sampled trees, token <= block <= bound on chains. For deterministic siblings no order is
    expected."""
    found = []
    for (tables, drafts), part in exact.groupby(["tables", "drafts"], sort=False):
        accepted = dict(zip(part["rule"], part["accepted"], strict=True))
        for order in ORDERS:
            present = [rule for rule in order if rule in accepted]
            for weaker, stronger in itertools.pairwise(present):
                if accepted[weaker] > accepted[stronger] + 1e-9 and "top" not in str(drafts):
                    found.append(
                        f"{tables}, {drafts}: {weaker} {accepted[weaker]:.6f} > {stronger} "
                        f"{accepted[stronger]:.6f}"
                    )
    return found


def draw(exact: pd.DataFrame, measured: pd.DataFrame | None) -> Figure:
    """Above: exact accepted lengths, mean over the tables, with the bound as a line. Below: tau and
    its interval, a panel per temperature."""
    from experiments.report.looks import bar_styles, entitle, legend, line_styles, panels
    from experiments.report.marks import reach

    rules = [name for name in dict.fromkeys(exact["rule"]) if name != "bound"]
    bars, points = bar_styles(rules), line_styles(rules)
    temperatures = [] if measured is None else sorted(measured["temperature"].unique())
    figure, (first, *others) = panels(1 + len(temperatures), 1, 2.3)
    mean = exact.groupby(["drafts", "rule"], sort=False)["accepted"].mean()
    drafts = list(dict.fromkeys(exact["drafts"]))
    for number, shape in enumerate(drafts):
        present = [name for name in rules if (shape, name) in mean.index]
        for name, place in zip(present, _side_by_side(number, len(present)), strict=True):
            first.bar(place, mean[shape, name], 0.8 / len(present), **bars[name])
        ends = number - 0.45, number + 0.45
        first.hlines(mean[shape, "bound"], *ends, color="black", linewidth=1.4)
    first.set_ylabel("accepted per round")
    entitle(first, "exact, on table models; line: the bound for any rule")
    _name_drafts(first, drafts)
    for axis, temperature in zip(others, temperatures, strict=True):
        assert measured is not None
        part = measured[measured["temperature"] == temperature]
        shapes = list(dict.fromkeys(part["drafts"]))
        for number, shape in enumerate(shapes):
            own = part[part["drafts"] == shape]
            places = _side_by_side(number, len(own))
            for place, one in zip(places, own.itertuples(), strict=True):
                up = reach(one.tau, one.low, one.high)
                look = points[one.rule] | {"linestyle": ""}
                axis.errorbar(place, one.tau, up, elinewidth=0.9, capsize=2, **look)
        axis.set_ylabel("τ (tokens per round)")
        entitle(axis, f"measured, T = {temperature:g}, 95% bootstrap intervals over prompts")
        _name_drafts(axis, shapes)
    for name in rules:
        look = points[name] if others else {"color": bars[name]["color"], "marker": "s"}
        first.plot([], [], **(look | {"linestyle": ""}), label=name)
    legend(figure, [first])
    return figure


def _side_by_side(number: int, count: int) -> list[float]:
    """Positions of `count` marks that share the place `number` of an axis."""
    return [number + 0.8 * ((each + 0.5) / count - 0.5) for each in range(count)]


def _name_drafts(axis: Axes, drafts: list[str]) -> None:
    from experiments.report.looks import wrapped

    names = [wrapped(name.replace(" 2 x 2", ""), 12) for name in drafts]
    axis.set_xticks(range(len(drafts)), names, fontsize=8)
    axis.grid(axis="x", visible=False)


def main(wanted: Compare) -> None:
    from experiments.report.looks import save
    from experiments.system.files import write_text
    from experiments.system.libraries import quiet_transformers

    quiet_transformers()
    folder = Path(wanted.folder)
    folder.mkdir(parents=True, exist_ok=True)
    exact = on_tables()
    write_text(folder / "exact.csv", exact.to_csv(index=False))
    print(_pivot(exact, ["tables", "drafts"], "accepted", 4))
    wrong = out_of_order(exact)
    print(
        "\n".join(["out of order:", *wrong])
        if wrong
        else "naive <= rrs <= traversal <= bound, token <= block <= bound: all hold"
    )
    try:
        measured = on_a_real_pair(wanted)
    except ValueError as error:
        print(f"tau is not measured: {error}", file=sys.stderr)
        measured = None
    if measured is not None:
        write_text(folder / "tau.csv", measured.to_csv(index=False))
        print(_pivot(measured, ["temperature", "drafts"], "tau", 3))
    for suffix in ("png", "pdf"):
        save(draw(exact, measured), folder / f"compare_verifiers.{suffix}")
        print(folder / f"compare_verifiers.{suffix}")


def _pivot(table: pd.DataFrame, rows: list[str], values: str, decimals: int) -> str:
    """A table with a column for every rule."""
    wide = table.pivot_table(index=rows, columns="rule", values=values, sort=False).round(decimals)
    return wide.to_string(na_rep="-")


if __name__ == "__main__":
    start(main, Compare)
