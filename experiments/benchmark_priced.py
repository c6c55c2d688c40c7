"""`priced` against the best fixed shape of a sweep, at several temperatures; how far what it
expects of its rounds holds; and what deciding costs.

    python -m experiments.benchmark_priced
    python -m experiments.benchmark_priced compile=true limit=4
    python -m experiments.benchmark_priced limit=2 learn=1 max_new_tokens=16 repeats=2

The second command compiles passes and drafts, the third is a quick trial. All ways of a temperature
take turns prompt by prompt in one process, where the cost table was measured just before. The
shapes of the sweep are fixed; `priced` has one setting at all temperatures. What it knows of
acceptance it learns on the first `learn` prompts, which do not count: the others are held out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Options
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    import pandas as pd

    from experiments.benchmarks.bench import Bench
    from experiments.measuring.ways import Ours
    from specdec import Costs, Step
    from specdec.pricing.costs import Curves


@dataclass
class Benchmark(Options):
    """python -m experiments.benchmark_priced: measure `priced` against fixed shapes, print tables
    and write them to a folder."""

    limit: int = 8
    deep_limit: int = 0
    learn: int = 2  # prompts that it learns from first
    max_new_tokens: int = 64
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])
    # that are priced, by name
    drafters: list[str] = field(default_factory=lambda: ["small_model", "eagle"])
    deep: bool = False  # on the deepened target
    compile: bool = False  # with compiled passes and drafts
    repeats: int = 10  # rounds of each size in the cost table
    output: str = "outputs/benchmark_priced"


SWEEP: dict[str, dict[str, Any]] = {
    "chain 2": {"depth": 2, "branching": 1, "draw": "wor"},
    "chain 4": {"depth": 4, "branching": 1, "draw": "wor"},
    "chain 6": {"depth": 6, "branching": 1, "draw": "wor"},
    "ranked 2/6": {"depth": 2, "branching": 4, "draw": "ranked", "nodes": 6},
    "ranked 3/10": {"depth": 3, "branching": 6, "draw": "ranked", "nodes": 10},
    "ranked 4/16": {"depth": 4, "branching": 6, "draw": "ranked", "nodes": 16},
    "ranked 5/24": {"depth": 5, "branching": 6, "draw": "ranked", "nodes": 24},
    "sequoia 3/6": {"depth": 3, "branching": 1, "draw": "sequoia", "nodes": 6},
}
CHAIN = {"branching": 1, "draw": "wor"}  # what is priced; at T = 0, compiled: and ranked trees
NONE, PRICED, JUDGED = "none", "priced", "judged"


def table_of(bench: "Bench", name: str) -> "Costs":
    from specdec import Costs

    target, repeats = _target(bench), bench.wanted.repeats
    drafter = bench.ours(target, 0.0, {"name": name, **CHAIN}).drafter
    plain = Costs.measure(target, None, sizes=((0, 0),), repeats=repeats)
    return Costs.measure(target, drafter, repeats=repeats).joined([plain])


def _target(bench: "Bench") -> Any:
    target = bench.deep if bench.wanted.deep else bench.target
    return _compiled(bench, target) if bench.wanted.compile else target


@cache
def _compiled(bench: "Bench", target: Any) -> Any:
    return bench.compiled(target)


def ways(bench: "Bench", name: str, temperature: float, priced: Any) -> "dict[str, Ours]":
    from experiments.measuring.ways import Ours

    target = _target(bench)
    found = {
        shape: bench.ours(target, temperature, {"name": name, **settings})
        for shape, settings in SWEEP.items()
    }
    options = {"temperature": temperature, "seed": bench.wanted.seed}
    none = bench.ours(target, temperature, {"name": "none"})
    return {NONE: none, **found, PRICED: Ours(target, priced, options)}


def learn(bench: "Bench", ways: "dict[str, Ours]") -> None:
    """The first prompts, in every way, so that all of them are warm."""
    for prompt in bench.prompts[: bench.wanted.learn]:
        for way in ways.values():
            tokens = way.target.tokenizer(prompt.text)["input_ids"]
            way([tokens], [prompt.index], bench.wanted.max_new_tokens)


def expected(bench: "Bench", way: "Ours", curves: "Curves") -> dict[str, Any]:
    """What `priced` expected of its rounds on the held-out prompts, and the share of deciding."""
    from specdec.measuring.promises import promises, reliability

    steps, deciding, decoding = [], 0.0, 0.0
    for prompt in bench.prompts[bench.wanted.learn :]:
        tokens = way.target.tokenizer(prompt.text)["input_ids"]
        run = way.run([tokens], [prompt.index], bench.wanted.max_new_tokens)
        run.finish()
        steps += run.report.steps
        deciding += run.report.account["priced"]["deciding_seconds"]
        decoding += run.report.decode_seconds
    kept, trust = promises(steps), reliability(steps)
    assert kept is not None
    assert trust is not None
    return {
        "tokens, measured / expected": f"{kept.token_ratio:.2f}",
        "time, measured / expected": f"{kept.time_ratio:.2f}",
        "calibration error": f"{trust.error:.3f}",
        "price / ratio": f"{price_over_ratio(steps, curves):.3f}",
        "deciding": f"{deciding / decoding:.1%}",
    }


def price_over_ratio(steps: "Sequence[Step]", curves: "Curves") -> float:
    """Long-run tokens per second under one price / under the best ratio of each round, if each
    recorded round could keep any number of its best nodes, by their expected chances."""
    from specdec.pricing.price import Choice, rate_under_price, rate_under_ratio
    from specdec.tree import host_depths

    kinds = []
    for step in steps:
        if step.decision is None or step.decision.survivals is None:
            continue
        order = (-step.decision.survivals[0, 1:]).argsort(kind="stable") + 1
        depths = host_depths(step.parents.astype(int))[0]
        options, tokens, levels = [Choice(1, curves.plain)], 1.0, 0
        for count, node in enumerate(order.tolist(), 1):
            tokens += float(step.decision.survivals[0, node])
            levels = max(levels, int(depths[node]))
            options.append(Choice(tokens, curves.round(1 + count, levels)))
        kinds.append((1.0, options))
    return rate_under_price(kinds) / rate_under_ratio(kinds)


def measured(bench: "Bench", name: str) -> "tuple[pd.DataFrame, dict[str, Any]]":
    """A row per temperature, and what was compared."""
    import pandas as pd

    from specdec.plugins import build
    from specdec.pricing.measure import label

    wanted = bench.wanted
    costs = table_of(bench, name)
    costs.save(Path(wanted.output) / f"costs_{name}.json")
    inner = bench.ours(_target(bench), 0.0, {"name": name, **CHAIN}).drafter
    rows, compared, speeds = [], {}, dict[str, list[float]]()
    for temperature in wanted.temperatures:
        # Two that learn the same: the one whose expectations are judged reads the held-out prompts.
        made, judged = (
            build("drafter", {"name": "priced", "drafter": inner, "costs": costs}) for _ in range(2)
        )
        lined = ways(bench, name, temperature, made)
        asked = replace(lined[PRICED], drafter=judged)
        learn(bench, {**lined, JUDGED: asked})
        curves = costs.curves(label(inner), 128, 1, temperature > 0, wanted.compile)
        trust = expected(bench, asked, curves)
        found = bench.compare(
            f"{name}, T = {temperature:g}",
            dict(lined),
            warmup=0,
            given=bench.prompts[wanted.learn :],
            forget=False,
        )
        compared[f"{name}, T = {temperature:g}"] = found
        for shape in (*SWEEP, PRICED):
            speeds.setdefault(shape, []).append(found.ratio(shape, NONE).median)
        best = max(SWEEP, key=lambda shape: speeds[shape][-1])
        rows.append(
            {
                "drafter": name,
                "T": f"{temperature:g}",
                "best fixed shape": best,
                "it against none": found.times(best, NONE),
                "priced against none": found.times(PRICED, NONE),
                "priced against it": found.times(PRICED, best),
                "tau": f"{found.ours(PRICED).tau:.2f}",
                **trust,
            }
        )
    over_all = {shape: geometric_mean(each) for shape, each in speeds.items()}
    best = max(SWEEP, key=lambda shape: over_all[shape])
    rows.append(
        {
            "drafter": name,
            "T": "all",
            "best fixed shape": best,
            "it against none": f"{over_all[best]:.2f}x",
            "priced against none": f"{over_all[PRICED]:.2f}x",
            "priced against it": f"{over_all[PRICED] / over_all[best]:.2f}x",
        }
    )
    return pd.DataFrame(rows).fillna(""), compared


def main(wanted: Benchmark) -> None:
    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    tables, titled = [], dict[str, Any]()
    for name in wanted.drafters:
        table, compared = measured(bench, name)
        tables.append(table)
        titled |= compared
    bench.publish("benchmark_priced", tables, titled)


if __name__ == "__main__":
    start(main, Benchmark)
