"""The table of heads in docs/benchmarks.md: tau of chains and of sampled trees, speed, and what a
round's draft costs; all ways interleaved in one process, intervals over prompts.

    python -m experiments.benchmark_heads
    python -m experiments.benchmark_heads dflash=trained/dflash/head
    python -m experiments.benchmark_heads limit=2 max_new_tokens=16 compile=false      a trial

tau is measured at `temperatures`, and speed at `temperature`, there with compiled passes and prompt
by prompt. Ratios of tau are ratios of pooled tau; those of times are medians of paired ratios. A
sampled tree has its siblings drawn without replacement and is judged by `traversal`. "marginals":
the same head, whose laws are averaged over the token before them.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Line, Options, line
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Bench, Compared


@dataclass
class Heads(Options):
    """python -m experiments.benchmark_heads: heads that guess blocks against heads that guess
    token by token; print a table and write it to a folder."""

    dspark: str = "demo-dspark"  # a bundled head, or a folder
    dflash: str | None = None  # a folder; null leaves it out
    eagle: str = "demo-eagle"  # likewise
    eagle3: str = "demo-eagle3"  # likewise
    medusa: str = "demo-medusa"  # likewise
    length: int = 7  # of chains
    nodes: int = 16  # of sampled trees
    # of these trees: how often the first, second ... child of an accepted node is accepted
    acceptance: list[float] = field(default_factory=lambda: [0.6, 0.15, 0.07, 0.04])
    ranked: int = 24  # nodes of ranked and static trees
    levels: int = 5  # of eagle's trees
    temperatures: list[float] = field(default_factory=lambda: [0.6, 1.0])
    temperature: float = 0.6  # of speed
    batch: int = 8  # prompts of one call where only tau is measured
    limit: int = 32
    deep_limit: int = 0
    compile: bool = True  # passes, where speed is measured
    output: str = "outputs/benchmark_heads"


def chains(wanted: Heads) -> dict[str, dict[str, Any]]:
    """By name: drafters whose tau is compared."""
    chain = {"depth": wanted.length, "draw": "wor"}
    tree = {
        "depth": wanted.length,
        "draw": "sequoia",
        "nodes": wanted.nodes,
        "acceptance": list(wanted.acceptance),
    }
    spark = {"name": "dspark", "heads": wanted.dspark}
    found = {
        "dspark, chain": {**spark, **chain},
        "dspark, tree": {**spark, **tree},
        "dspark, tree, marginals": {**spark, **tree, "conditional": False},
        "eagle3, chain": {"name": "eagle3", "heads": wanted.eagle3, **chain},
        "medusa": {"name": "medusa", "heads": wanted.medusa, "nodes": wanted.ranked},
    }
    if wanted.dflash is not None:
        flash = {"name": "dflash", "heads": wanted.dflash}
        found |= {"dflash, chain": {**flash, **chain}, "dflash, tree": {**flash, **tree}}
    return found


def fast(wanted: Heads) -> dict[str, dict[str, Any]]:
    """By name: drafters whose speed is compared."""
    eagle: dict[str, Any] = {"name": "eagle", "heads": wanted.eagle, "depth": wanted.levels}
    blocks: dict[str, dict[str, Any]] = {"dspark": {"name": "dspark", "heads": wanted.dspark}}
    if wanted.dflash is not None:
        blocks["dflash"] = {"name": "dflash", "heads": wanted.dflash}
    found = {"eagle, ranked": {**eagle, "nodes": wanted.ranked}}
    found["eagle, chain"] = {**eagle, "draw": "wor"}
    for name, head in blocks.items():
        found[f"{name}, ranked"] = {**head, "draw": "ranked", "nodes": wanted.ranked}
        found[f"{name}, chain"] = {**head, "draw": "wor", "depth": wanted.length}
        found[f"{name}, chain of {wanted.levels}"] = {**head, "draw": "wor", "depth": wanted.levels}
    return found


def tau_lines(found: "Compared", temperature: float, wanted: Heads) -> list[Line]:
    pairs = [
        ("dspark, chain", "eagle3, chain"),
        ("dflash, chain", "eagle3, chain"),
        ("dspark, chain", "dflash, chain"),
        ("dspark, tree", "dspark, chain"),
        ("dspark, tree", "dspark, tree, marginals"),
        ("dflash, tree", "dflash, chain"),
    ]
    told = [
        line(
            f"T = {temperature:g}: tau, {one} / {other}",
            found.tau_ratio(one, other).text("{:.2f}", "x"),
        )
        for one, other in pairs
        if {one, other} <= set(found.ways)
    ]
    rules = {name: found.ours(name).verifier for name in found.ways if name != "none"}
    return told + [
        line(f"T = {temperature:g}: tau, {name}", found.tau(name).text(), f"rule {rule}")
        for name, rule in rules.items()
    ]


def speed_lines(found: "Compared", wanted: Heads) -> list[Line]:
    at = f"T = {wanted.temperature:g}"
    blocks = [name for name in found.ways if name.startswith(("dspark", "dflash"))]
    best = max(blocks, key=lambda name: found.ratio(name, "eagle, ranked").median)
    told = [
        line(
            f"{at}: tokens/s, best block head / eagle, ranked",
            found.times(best, "eagle, ranked"),
            best,
        )
    ]
    block, eagle = f"dspark, chain of {wanted.levels}", "eagle, chain"
    told.append(
        line(
            f"{at}: drafting a round, {block} / {eagle} of {wanted.levels}",
            f"{found.drafting(block) / found.drafting(eagle):.2f}",
            f"{1e3 * found.drafting(block):.2f} ms, {1e3 * found.drafting(eagle):.2f} ms",
        )
    )
    for name in found.ways:
        if name != "none":
            tau = found.tau(name).text()
            told.append(
                line(f"{at}: time, {name} against none", found.times(name, "none"), f"tau {tau}")
            )
    return told


def main(wanted: Heads) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    titled: dict[str, Any] = {}
    told: list[Line] = []
    for temperature in wanted.temperatures:
        found = compared(bench, chains(wanted), temperature, wanted.batch)
        titled[f"T = {temperature:g}"] = found
        told += tau_lines(found, temperature, wanted)
    target = bench.compiled(bench.target) if wanted.compile else bench.target
    found = compared(bench, fast(wanted), wanted.temperature, 1, target)
    titled[f"speed at T = {wanted.temperature:g}"] = found
    told += speed_lines(found, wanted)
    bench.publish("benchmark_heads", [pd.DataFrame(told)], titled)


def compared(
    bench: "Bench",
    drafters: dict[str, dict[str, Any]],
    temperature: float,
    batch: int,
    target: Any = None,
) -> "Compared":
    """All drafters and plain decoding, in turn."""
    ways: dict[str, Any] = {
        name: bench.ours(target or bench.target, temperature, settings)
        for name, settings in {"none": {"name": "none"}, **drafters}.items()
    }
    return bench.compare(f"T = {temperature:g}, batches of {batch}", ways, batch=batch)


if __name__ == "__main__":
    start(main, Heads)
