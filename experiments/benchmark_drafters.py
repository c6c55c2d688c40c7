"""The table of trained and self-speculating drafters in docs/benchmarks.md: tau and wall clock at
several temperatures, all interleaved with plain decoding prompt by prompt in one process; and tau
under every rule at temperature 1.

    python -m experiments.benchmark_drafters
    python -m experiments.benchmark_drafters limit=2 deep_limit=0 rules_limit=1 max_new_tokens=16

The second command is a quick trial.

Predicted: tau x t(1) / (t(nodes) + drafting). The passes are timed inside this run's own loops;
t(1) is the time of a pass in plain decoding.
"""

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Options
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    import pandas as pd

    from experiments.benchmarks.bench import Bench, Compared


@dataclass
class Benchmark(Options):
    """python -m experiments.benchmark_drafters: measure trained and self-speculating drafters,
    print a table and write it to a folder."""

    limit: int = 12
    deep_limit: int = 6
    rules_limit: int = 8  # prompts of the table of rules, decoded in one batch; 0 leaves it out
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])
    deep_temperature: float = 0.6  # on the deepened target
    output: str = "outputs/benchmark_drafters"


ROWS: dict[str, dict[str, Any]] = {
    "medusa, 24 nodes": {"name": "medusa", "nodes": 24},
    "eagle, ranked 5/24": {"name": "eagle", "depth": 5, "nodes": 24},
    "eagle3, ranked 5/24": {"name": "eagle3", "depth": 5, "nodes": 24},
    "small_model, ranked 4/16": {"name": "small_model", "depth": 4, "draw": "ranked", "nodes": 16},
    "layer_skip": {"name": "layer_skip"},
    "early_exit": {"name": "early_exit"},
}
# these draft with the target's own layers and refuse a deepened target
OWN_LAYERS = ("layer_skip", "early_exit")
CHAIN = {"depth": 4, "branching": 1, "nodes": None, "draw": "wor"}
WOR_TREE = {"depth": 3, "branching": [3, 2, 1], "nodes": None, "draw": "wor"}
RULES: dict[
    str, tuple[dict[str, Any], tuple[str, ...]]
] = {  # of sampled trees; DET trees have one rule that matters
    "chain of 4": (CHAIN, ("naive", "token", "block")),
    "WOR tree 3-2-1": (WOR_TREE, ("naive", "rrs_wor", "traversal")),
}


def measured(bench: "Bench", deep: bool, temperature: float, limit: int) -> "Compared":
    target = bench.deep if deep else bench.target
    rows = {
        "none": {"name": "none"},
        **{n: row for n, row in ROWS.items() if not (deep and n in OWN_LAYERS)},
    }
    ways: dict[str, Any] = {
        name: bench.ours(target, temperature, settings) for name, settings in rows.items()
    }
    return bench.compare(
        f"T = {temperature:g}, {target.config.num_hidden_layers} layers", ways, limit
    )


def rules(bench: "Bench", limit: int) -> "pd.DataFrame":
    """Columns: drafter, shape, rule, tau at temperature 1. All prompts in one batch."""
    import pandas as pd

    tried: list[tuple[str, str, dict[str, Any], str]] = []
    for rule in ("naive", "rrs_wor", "traversal"):
        tried.append(("medusa", "static, 24 nodes", {}, rule))
    for name in ("eagle", "eagle3", "small_model", *OWN_LAYERS):
        for shape, (settings, judges) in RULES.items():
            tried += [(name, shape, settings, rule) for rule in judges]
    ways: dict[str, Any] = {
        f"{name}, {shape}, {rule}": bench.ours(
            bench.target, 1.0, {"name": name, **settings}, verifier=rule, ignore_eos=True
        )
        for name, shape, settings, rule in tried
    }
    found = bench.compare("rules at T = 1", ways, limit, batch=limit, warmup=0)
    taus = [f"{found.ours(way).tau:.2f}" for way in ways]
    rows = [
        (name, shape, rule, tau) for (name, shape, _, rule), tau in zip(tried, taus, strict=True)
    ]
    return pd.DataFrame(rows, columns=["drafter", "shape", "rule", "tau at T=1"])


def predicted(found: "Compared", name: str) -> float:
    """Measured speed-up / what tau x t(1) / (t(nodes) + drafting) predicts, the median over
    prompts."""
    drafting = found.rounds[found.rounds["way"] == name].groupby("prompt")["draft_seconds"].sum()
    shares = []
    for ours, plain in zip(found.ours(name).per_prompt, found.ours("none").per_prompt, strict=True):
        one = plain.target_seconds / (plain.rounds + 1)  # the prefill counts as a call
        each = ours.target_seconds / (ours.rounds + 1) + drafting[ours.prompt] / ours.rounds
        shares.append(plain.decoding / ours.decoding / (ours.tau * one / each))
    return median(shares)


def table(
    found: "dict[float, Compared]", deep: "Compared | None", wanted: Benchmark
) -> "pd.DataFrame":
    import pandas as pd

    main = found.get(wanted.deep_temperature) or next(iter(found.values()))
    rows = []
    for name in ROWS:
        row = {"drafter": name}
        for temperature, each in found.items():
            row[f"tau T={temperature:g}"] = f"{each.ours(name).tau:.2f}"
            row[f"against none T={temperature:g}"] = each.times(name, "none")
        refused = deep is None or name not in deep.ways
        there = "-" if refused or deep is None else deep.times(name, "none")
        row[f"extra_layers={wanted.extra_layers} T={wanted.deep_temperature:g}"] = there
        more = "" if refused or deep is None else f", {predicted(deep, name):.2f} deep"
        row["measured / predicted"] = f"{predicted(main, name):.2f}{more}"
        rows.append(row)
    return pd.DataFrame(rows)


def main(wanted: Benchmark) -> None:
    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    found = {each: measured(bench, False, each, wanted.limit) for each in wanted.temperatures}
    deep = (
        measured(bench, True, wanted.deep_temperature, wanted.deep_limit)
        if wanted.deep_limit
        else None
    )
    tables = [
        table(found, deep, wanted),
        *([rules(bench, wanted.rules_limit)] if wanted.rules_limit else []),
    ]
    titled = {f"T = {temperature:g}": each for temperature, each in found.items()}
    if deep:
        titled[f"extra_layers={wanted.extra_layers}, T = {wanted.deep_temperature:g}"] = deep
    bench.publish("benchmark_drafters", tables, titled)


if __name__ == "__main__":
    start(main, Benchmark)
