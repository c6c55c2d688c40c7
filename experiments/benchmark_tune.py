"""What `tune` finds within its budget, against the best of a full sweep over its candidates.

    python -m experiments.benchmark_tune
    python -m experiments.benchmark_tune budget=20s tuned_on=6 limit=8        a trial

`tune` runs first, on the first `tuned_on` prompts. Then what it has chosen and every candidate
decode the other prompts in turn, at each temperature, in one process. Speed-up: tokens per second
against plain decoding, and the geometric mean over temperatures. The best of the sweep is chosen
afterwards, on the prompts that it is measured on, which flatters it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING

from experiments import tune
from experiments.benchmarks.options import Options
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Compared


@dataclass
class Benchmark(Options):
    """python -m experiments.benchmark_tune: measure what `tune` chooses against all that it could
    have chosen, print a table and write it to a folder."""

    limit: int = 32
    deep_limit: int = 0
    max_new_tokens: int = 96
    tuned_on: int = 24  # prompts that `tune` may see
    draft: str | None = "demo-draft"  # null: none
    budget: str = "5min"  # of `tune`
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])
    output: str = "outputs/benchmark_tune"


CHOSEN = "chosen by tune"


def asked_of(wanted: Benchmark) -> tune.Tune:
    return tune.Tune(
        target=wanted.target,
        prompts=wanted.prompts,
        draft=wanted.draft,
        budget=wanted.budget,
        temperatures=wanted.temperatures,
        max_new_tokens=wanted.max_new_tokens,
        limit=wanted.tuned_on,
        dtype=wanted.dtype,
        seed=wanted.seed,
        threads=wanted.threads,
        output=str(Path(wanted.output) / "tuned.yaml"),
    )


def table(found: "dict[float, Compared]", chosen: str) -> list[dict[str, str]]:
    """A row per drafter, the fastest first, and what the choice comes to."""
    first = next(iter(found.values()))
    rates = {
        name: [each.rate(name) / each.rate("none") for each in found.values()]
        for name in first.ways
    }
    means = {name: geometric_mean(each) for name, each in rates.items()}
    best = max((name for name in means if name != CHOSEN), key=lambda name: means[name])
    rows = []
    for name in sorted(means, key=lambda name: -means[name]):
        shown = f"{CHOSEN}: {chosen}" if name == CHOSEN else name
        row = {"drafter": shown}
        row |= {f"T = {t:g}": f"{r:.2f}x" for t, r in zip(found, rates[name], strict=True)}
        rows.append(row | {"geometric mean": f"{means[name]:.2f}x"})
    ratio = f"{means[CHOSEN] / means[best]:.2f}x"
    return [*rows, {"drafter": f"{CHOSEN} / the best of the sweep", "geometric mean": ratio}]


def main(wanted: Benchmark) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench
    from experiments.system.files import read_json

    bench = Bench(wanted)
    apart = bench.prompts[wanted.tuned_on :]
    if not apart:
        raise ValueError(
            f"tuned_on={wanted.tuned_on} leaves none of the {len(bench.prompts)} prompts to "
            "compare on; raise limit, or lower tuned_on"
        )
    asked = asked_of(wanted)
    tune.main(asked)
    settings = read_json(Path(asked.output).with_suffix(".json"))["drafter"]
    ways, _ = tune.usable(asked, bench.target)
    ways[CHOSEN] = bench.ours(bench.target, 0.0, settings)
    found = {
        temperature: bench.compare(
            f"T = {temperature:g}",
            {name: way.at(temperature) for name, way in ways.items()},
            given=apart,
        )
        for temperature in wanted.temperatures
    }
    rows = table(found, tune.title(settings))
    titled = {f"T = {temperature:g}": each for temperature, each in found.items()}
    bench.publish("benchmark_tune", [pd.DataFrame(rows).fillna("")], titled)


if __name__ == "__main__":
    start(main, Benchmark)
