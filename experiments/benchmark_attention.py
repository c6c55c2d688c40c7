"""Whether attention over a long context gains by reading the prefix and the tree apart, merged by
log-sum-exp: the prefix needs no mask, and the tree is small.

    python -m experiments.benchmark_attention
    python -m experiments.benchmark_attention "contexts=[512]" "nodes=[1,8]" repeats=3      a trial

Attention alone, all layers of a target's shape, one row, random keys and values, on the CPU; both
ways take turns. "of a pass" compares what is gained with the target's whole pass at that context.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.terminal.options import start
from experiments.terminal.tables import markdown


@dataclass
class Attention:
    """python -m experiments.benchmark_attention: milliseconds of attention as it is and in two
    parts; print a table and write it to a folder."""

    target: str = "demo"  # whose heads, layers and dtype are taken
    # committed tokens before the pass
    contexts: list[int] = field(default_factory=lambda: [256, 1024, 4096])
    # scored in a pass, the root included
    nodes: list[int] = field(default_factory=lambda: [1, 8, 32])
    context: int = 8192  # positions of the target
    dtype: str | None = "bfloat16"
    repeats: int = 30
    threads: int | None = None
    output: str = "outputs/benchmark_attention"


def measured(wanted: Attention) -> list[dict[str, Any]]:
    """A row per context and number of nodes."""
    import specdec
    from experiments.measuring.forward_times import forward_times
    from experiments.measuring.split_attention import Inputs, Sizes, in_two_parts, times, whole
    from experiments.system.libraries import set_threads

    target = specdec.load(wanted.target, dtype=wanted.dtype, device="cpu", context=wanted.context)
    set_threads(wanted.threads, target)
    rows = []
    for context in wanted.contexts:
        passes = forward_times(target, context, wanted.nodes, repeats=wanted.repeats)
        for nodes in wanted.nodes:
            given = Inputs.random(Sizes.of(target.config), context, nodes, target.dtype)
            off = (whole(given) - in_two_parts(given)).abs().max()
            one, apart = times(given, (whole, in_two_parts), wanted.repeats)
            rows.append(
                {
                    "context": context,
                    "nodes": nodes,
                    "as it is, ms": f"{1000 * one:.2f}",
                    "in two parts, ms": f"{1000 * apart:.2f}",
                    "ratio": f"{one / apart:.2f}x",
                    "gained, of a pass": f"{(one - apart) / passes[nodes]:.1%}",
                    "largest difference": f"{float(off):.1g}",
                }
            )
    return rows


def main(wanted: Attention) -> None:
    import pandas as pd

    from experiments.system.files import write_text
    from experiments.system.libraries import quiet_transformers, set_threads
    from experiments.system.surroundings import surroundings

    quiet_transformers()
    set_threads(wanted.threads)
    table = pd.DataFrame(measured(wanted))
    where = surroundings()
    head = f"{wanted.target}, one row, {where.machine.processor}, {where.threads} threads"
    text = f"{head}\n\n{markdown(table)}"
    folder = Path(wanted.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", table.to_csv(index=False))
    print(text)


if __name__ == "__main__":
    start(main, Attention)
