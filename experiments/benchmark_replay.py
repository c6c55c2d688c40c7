"""Replays of recorded trees against live runs, and what recording costs.

    python -m experiments.benchmark_replay
    python -m experiments.benchmark_replay limit=4 max_new_tokens=16 seeds=1        a trial

Twelve settings, four shapes under three rules each, at every temperature: tau of the replay with
its 95% interval over texts, beside tau of live runs on the same prompts. At temperature 0 both are
the same rounds. Above it live runs have seeds of their own, so that both have noise.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Line, Options, line
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Bench, Compared
    from experiments.measuring.play import Play
    from experiments.records.recording import Recording

WIDE: dict[str, Any] = {"depth": 4, "branching": [3, 2, 1, 1]}
CHAINS = ("naive", "token", "block")
TREES = ("naive", "rrs_wor", "traversal")
SETTINGS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"depth": 2, "branching": 1}, CHAINS),
    ({"depth": 4, "branching": 1}, CHAINS),
    ({"depth": 3, "branching": [2, 1, 1]}, TREES),
    (WIDE, TREES),
]


@dataclass
class Replayed(Options):
    """python -m experiments.benchmark_replay: measure replays against live runs and the cost of
    recording, print two tables and write them to a folder."""

    limit: int = 16
    dtype: str = "float32"  # near-ties of bfloat16 are decided by the shape of a batch
    deep_limit: int = 3
    max_new_tokens: int = 64
    draft: str = "demo-draft"
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])
    seeds: int = 2  # live runs of each setting above temperature 0
    batch: int = 16  # prompts side by side, in live runs and in records that are replayed
    every: list[int] = field(default_factory=lambda: [1, 2, 4])  # of records that are timed
    output: str = "outputs/benchmark_replay"


@dataclass
class Setting:
    """One shape under one rule at one temperature."""

    name: str
    temperature: float
    tau: float
    low: float | None
    high: float | None
    live: float
    rounds: int

    @property
    def inside(self) -> bool:
        return self.low is not None and self.high is not None and self.low <= self.live <= self.high

    def row(self) -> dict[str, str]:
        ends = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return {
            "setting": self.name,
            "T": f"{self.temperature:g}",
            "tau, replayed": f"{self.tau:.3f}{ends}",
            "tau, live": f"{self.live:.3f}",
            "replayed / live": f"{self.tau / self.live:.3f}",
        }


def play(bench: "Bench", target: Any, limit: int, batch: int) -> "Play":
    from experiments.measuring.play import Play

    return Play(bench.prompts[:limit], target, False, batch, bench.wanted.max_new_tokens)


def recording(
    bench: "Bench", target: Any, temperature: float, every: int, folder: Path
) -> "Recording":
    from experiments.measuring import lineup
    from experiments.records.recording import Recording
    from experiments.records.wide import Wide
    from experiments.study.schema import Target

    wanted = bench.wanted
    assert isinstance(wanted, Replayed)
    small = {"name": "small_model", "model": wanted.draft, **WIDE}
    drafter = lineup.make_drafter(small, Target(wanted.target, dtype=wanted.dtype))
    options = {"temperature": temperature, "seed": wanted.seed}
    return Recording(target, Wide(drafter, every), options, 128, folder)


def recorded(bench: "Bench", temperature: float, place: Path) -> Path:
    """A record of all prompts, as `experiments.record` writes it."""
    from experiments.records import folder as files
    from experiments.records.recording import record
    from experiments.records.shapes import described
    from experiments.records.wide import Wide

    wanted = bench.wanted
    assert isinstance(wanted, Replayed)
    way = recording(bench, bench.target, temperature, 1, place / f"T={temperature:g}")
    assert isinstance(way.drafter, Wide)
    files.begin(way.folder, {"every": 1})
    prompts = play(bench, bench.target, wanted.limit, wanted.batch)
    facts, _ = record(prompts, way, lambda: None)
    about = {
        "drafter": "small_model",
        "shape": described(way.drafter.inner.shape),
        "temperature": temperature,
        "vocabulary": bench.target.vocabulary,
    }
    files.finish(way.folder, {**facts, **about})
    return way.folder


def live(bench: "Bench", shape: dict[str, Any], rule: str, temperature: float) -> float:
    """tau of live runs on the same prompts; at temperature 0 one, of the record's own seed."""
    from experiments.measuring.measures import pooled

    wanted = bench.wanted
    assert isinstance(wanted, Replayed)
    small = {"name": "small_model", "model": wanted.draft, **shape}
    way = bench.ours(bench.target, temperature, small, verifier=rule)
    seeds = range(1, wanted.seeds + 1) if temperature else range(1)
    reports = []
    for seed in seeds:
        one = replace(way, options={**way.options, "seed": wanted.seed + seed})
        prompts = play(bench, bench.target, wanted.limit, wanted.batch)
        reports += [each.samples["live"].report for each in prompts({"live": one}, 0)]
    return float(pooled([report for report in reports if report is not None])["tau"])


def compared(bench: "Bench", temperature: float, folder: Path) -> Iterator[tuple[Setting, float]]:
    """Each setting, and the seconds that its replay took."""
    from experiments.records import replaying

    for shape, rules in SETTINGS:
        for rule in rules:
            began = time.perf_counter()
            found = replaying.replay(str(folder), None, shape, rule)
            took, tau = time.perf_counter() - began, found.tau
            widths = shape["branching"]
            children = f"{shape['depth']}" if widths == 1 else "-".join(map(str, widths))
            name = f"{'chain of' if widths == 1 else 'tree'} {children}, {rule}"
            alive = live(bench, shape, rule, temperature)
            numbers = tau.median, tau.low, tau.high, alive, found.taken.rounds
            yield Setting(name, temperature, *numbers), took


def summary(settings: list[Setting]) -> list[Line]:
    told = []
    for temperature in sorted({each.temperature for each in settings}):
        mine = [each for each in settings if each.temperature == temperature]
        off = max(abs(each.tau - each.live) for each in mine)
        bias = mean(each.tau / each.live - 1 for each in mine)
        inside = f"live inside the interval in {sum(each.inside for each in mine)} of {len(mine)}"
        told.append(
            line(
                f"T = {temperature:g}: replays against live runs, {len(mine)} settings",
                f"largest difference of tau {off:.1e}" if not temperature else inside,
                "" if not temperature else f"mean of replayed / live - 1: {bias:+.1%}",
            )
        )
    return told


def costs(bench: "Bench", place: Path) -> tuple[list[Line], "dict[str, Compared]"]:
    """Recording against plain decoding of the same text, prompt by prompt, at batch 1."""
    wanted = bench.wanted
    assert isinstance(wanted, Replayed)
    told, came, hottest = list[Line](), dict[str, "Compared"](), max(wanted.temperatures)
    targets = {"": (bench.target, wanted.limit // 2)}
    if wanted.deep_limit:
        targets[f", extra_layers={wanted.extra_layers}"] = (bench.deep, wanted.deep_limit)
    for more, (target, limit) in targets.items():
        ways = {"none": bench.ours(target, hottest, {"name": "none"})}
        ways |= {
            f"every={every}": recording(bench, target, hottest, every, place / "timed")
            for every in wanted.every
        }
        title = f"T = {hottest:g}{more}"
        found = came[title] = bench.compare(title, ways, limit)
        for every in wanted.every:
            ratio = found.ratio("none", f"every={every}").text(unit="x")
            told.append(line(f"{title}: recording, every={every}, against plain decoding", ratio))
    return told, came


def main(wanted: Replayed) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    settings: list[Setting] = []
    pairs, seconds = 0, 0.0
    with tempfile.TemporaryDirectory() as place:
        for temperature in wanted.temperatures:
            folder = recorded(bench, temperature, Path(place))
            for one, took in compared(bench, temperature, folder):
                settings.append(one)
                pairs, seconds = pairs + one.rounds, seconds + took
        told, found = costs(bench, Path(place))
    speed = line("10,000 replayed rounds", f"{1e4 * seconds / pairs:.1f} s", f"of {pairs}")
    rows = pd.DataFrame([each.row() for each in settings])
    bench.publish(
        "benchmark_replay", [rows, pd.DataFrame([*summary(settings), speed, *told])], found
    )


if __name__ == "__main__":
    start(main, Replayed)
