"""What choosing a drafter in every round gains: a portfolio against each of its members, and `auto`
against `ngram`, interleaved prompt by prompt in one process.

    python -m experiments.benchmark_portfolio
    python -m experiments.benchmark_portfolio deep=true limit=6 max_new_tokens=96
    python -m experiments.benchmark_portfolio limit=2 max_new_tokens=32        a trial

The second command decodes with the deepened target, beside which drafts cost little.

Tokens/s of decoding against `none`, summed over all prompts, at each temperature and as a geometric
mean over temperatures. The worst prompt: the smallest ratio of `auto` to `ngram`, whole calls.
"""

from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Options
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Compared


@dataclass
class Benchmark(Options):
    """python -m experiments.benchmark_portfolio: measure a portfolio and its members, print a table
    and write it to a folder."""

    deep_limit: int = 0
    deep: bool = False  # on the deepened target
    draft: str | None = "demo-draft"  # null: lookups only
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])
    output: str = "outputs/benchmark_portfolio"


def drafters(wanted: Benchmark) -> dict[str, dict[str, Any]]:
    members: dict[str, dict[str, Any]] = {"suffix": {"name": "suffix", "min_prob": 0.2}}
    if wanted.draft:
        members["small_model"] = {"name": "small_model", "model": wanted.draft}
    return {
        "none": {"name": "none"},
        "ngram": {"name": "ngram"},
        **members,
        "portfolio": {"name": "portfolio", "members": list(members.values())},
        "auto": {"name": "auto"},
    }


def rates(wanted: Benchmark, found: "dict[float, Compared]") -> "list[Any]":
    """One row per drafter."""
    rows = []
    for name in drafters(wanted):
        ratios = [each.rate(name) / each.rate("none") for each in found.values()]
        row = {"drafter": name}
        row |= {f"T = {t:g}": f"{ratio:.2f}x" for t, ratio in zip(found, ratios, strict=True)}
        row["geometric mean"] = f"{geometric_mean(ratios):.2f}x"
        row["tau"] = ", ".join(f"{each.ours(name).tau:.2f}" for each in found.values())
        row["auto / it, worst prompt"] = ", ".join(
            f"{min(each.ratio('auto', name).per_batch):.2f}" for each in found.values()
        )
        rows.append(row)
    return rows


def main(wanted: Benchmark) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    found, target = {}, bench.deep if wanted.deep else bench.target
    for temperature in wanted.temperatures:
        ways: dict[str, Any] = {
            name: bench.ours(target, temperature, settings)
            for name, settings in drafters(wanted).items()
        }
        found[temperature] = bench.compare(f"T = {temperature:g}", ways)
    titled = {f"T = {temperature:g}": each for temperature, each in found.items()}
    bench.publish("benchmark_portfolio", [pd.DataFrame(rates(wanted, found))], titled)


if __name__ == "__main__":
    start(main, Benchmark)
