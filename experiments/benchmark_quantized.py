"""What fewer bits gain: packed targets compiled against bfloat16 compiled, and how often a packed
copy of the target, drafting for it, is accepted. All ways interleaved prompt by prompt in one
process, ratios paired, medians over prompts.

    python -m experiments.benchmark_quantized
    python -m experiments.benchmark_quantized limit=2 deep_limit=0 temperatures=[0]      a trial

Packed weights pay only where passes are compiled, so the passes of all ways are.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Line, Options, line
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Bench, Compared


@dataclass
class Quantized(Options):
    """python -m experiments.benchmark_quantized: measure packed targets and the drafter
    quantized_self, print a table and write it to a folder."""

    # of packed weights
    schemes: list[str] = field(default_factory=lambda: ["int8", "int4"])
    length: int = 4  # of chains
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6])


def ways(bench: "Bench", target: Any, temperature: float, drafts: bool) -> dict[str, Any]:
    """Plain decoding of the target and of its packed copies. drafts: the copies draft for it
    too."""
    import specdec

    wanted = bench.wanted
    assert isinstance(wanted, Quantized)
    plain = {"name": "none"}
    found: dict[str, Any] = {"none": bench.ours(target, temperature, plain)}
    for scheme in wanted.schemes:
        packed = specdec.load(target, quantize=scheme)
        found[f"{scheme} none"] = bench.ours(packed, temperature, plain)
        if drafts:
            drafter = {"name": "quantized_self", "quantize": scheme, "depth": wanted.length}
            found[f"{scheme} drafts"] = bench.ours(target, temperature, drafter)
    return found


def lines(title: str, found: "Compared", schemes: list[str]) -> list[Line]:
    told = []
    for scheme in schemes:
        told.append(
            line(
                f"{title}: `none`, {scheme} against bfloat16", found.times(f"{scheme} none", "none")
            )
        )
        if f"{scheme} drafts" in found.ways:
            ours = found.ours(f"{scheme} drafts")
            told += [
                line(
                    f"{title}: `quantized_self` {scheme}, acceptance per token",
                    f"{ours.acceptance_rate:.3f}",
                    f"tau {ours.tau:.2f}",
                ),
                line(
                    f"{title}: `quantized_self` {scheme} against `none`",
                    found.times(f"{scheme} drafts", "none"),
                ),
            ]
    return told


def main(wanted: Quantized) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    found, told = {}, []
    for deep in (False, True) if wanted.deep_limit else (False,):
        target = bench.compiled(bench.deep if deep else bench.target)
        for temperature in wanted.temperatures[:1] if deep else wanted.temperatures:
            title = f"T = {temperature:g}"
            title = f"extra_layers={wanted.extra_layers}, {title}" if deep else title
            these = ways(bench, target, temperature, drafts=not deep)
            for way in these.values():
                bench.one(way)  # compiles
            limit = wanted.deep_limit if deep else wanted.limit
            found[title] = bench.compare(title, these, limit)
            told += lines(title, found[title], wanted.schemes)
    bench.publish("benchmark_quantized", [pd.DataFrame(told)], found)


if __name__ == "__main__":
    start(main, Quantized)
