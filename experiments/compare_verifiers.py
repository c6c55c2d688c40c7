"""The same drafts under every rule: exact expected lengths on table models beside the bound for any
rule, and tau on a real pair.

python -m experiments.compare_verifiers
python -m experiments.compare_verifiers folder=outputs/rules prompts=24
"""

import itertools
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
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
    """The lossless rules that sample."""
    from experiments.certificates import suite
    from specdec.plugins import build

    built = {name: build("verifier", name) for name in suite.rules()}
    return [
        name for name, rule in built.items() if rule.lossless and not rule.zero_temperature_only
    ]


def on_tables() -> pd.DataFrame:
    """Columns: tables, drafts, rule, accepted. The rule "bound" is what no lossless rule
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
    """Where a rule that should accept no more than another accepts more: naive <= rrs <= traversal
    <= bound on sampled trees, token <= block <= bound on chains. Deterministic siblings promise no
    such order."""
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
    """Left: exact accepted lengths, mean over the tables, with the bound as a line. Right: tau per
    temperature."""
    from experiments.report.looks import COLOURS, HATCHES, MARKERS, STYLE

    names = [name for name in dict.fromkeys(exact["rule"]) if name != "bound"]
    looks = {name: (COLOURS[i % 8], HATCHES[i % 8], MARKERS[i % 8]) for i, name in enumerate(names)}
    looks = {
        name: (look[0] if i < 8 else "#999999", *look[1:])
        for i, (name, look) in enumerate(looks.items())
    }
    panels = [] if measured is None else sorted(measured["temperature"].unique())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8 + 2.8 * len(panels), 4.2), layout="constrained")
        axes = figure.subplots(1, 1 + len(panels), squeeze=False)[0]
        mean = exact.groupby(["drafts", "rule"], sort=False)["accepted"].mean()
        shapes = list(dict.fromkeys(exact["drafts"]))
        for place, shape in enumerate(shapes):
            present = [name for name in names if (shape, name) in mean.index]
            width = 0.8 / len(present)
            for number, name in enumerate(present):
                colour, hatch, _ = looks[name]
                left = place - 0.4 + (number + 0.5) * width
                axes[0].bar(
                    left,
                    mean[shape, name],
                    width,
                    color=colour,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0.3,
                )
            axes[0].hlines(
                mean[shape, "bound"], place - 0.45, place + 0.45, color="black", linewidth=1.4
            )
        axes[0].set_xticks(
            range(len(shapes)),
            [
                shape.replace(" 2 x 2", "\n2 x 2").replace("without ", "without\n")
                for shape in shapes
            ],
            fontsize=6.5,
        )
        axes[0].set(
            ylabel="accepted drafted tokens per round",
            title="exact, table models; line: bound for any rule",
        )
        for axis, temperature in zip(axes[1:], panels, strict=True):
            part = measured[measured["temperature"] == temperature]  # type: ignore[index]
            shapes = list(dict.fromkeys(part["drafts"]))
            for shape, points in part.groupby("drafts", sort=False):
                for number, point in enumerate(points.itertuples()):
                    # side by side
                    place = shapes.index(shape) + 0.7 * ((number + 0.5) / len(points) - 0.5)
                    reach = (
                        None
                        if point.low is None
                        else [[point.tau - point.low], [point.high - point.tau]]
                    )
                    colour, _, marker = looks[point.rule]
                    axis.errorbar(
                        place,
                        point.tau,
                        reach,
                        fmt=marker,
                        color=colour,
                        markersize=4.5,
                        elinewidth=0.8,
                        capsize=1.5,
                    )
            axis.set_xticks(
                range(len(shapes)), [shape.replace(" ", "\n") for shape in shapes], fontsize=7
            )
            axis.set(title=f"measured, T = {temperature:g}")
        if panels:
            axes[1].set_ylabel("tau (bonus included), 95% bootstrap interval")
        handles = [
            axes[0].scatter([], [], color=looks[n][0], marker=looks[n][2], label=n) for n in names
        ]
        figure.legend(
            handles=handles, fontsize=7, ncols=math.ceil(len(names) / 2), loc="outside lower center"
        )
    return figure


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
    """A column per rule, all of them."""
    wide = table.pivot_table(index=rows, columns="rule", values=values, sort=False).round(decimals)
    return wide.to_string(na_rep="-")


if __name__ == "__main__":
    start(main, Compare)
