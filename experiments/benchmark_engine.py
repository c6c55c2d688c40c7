"""What `specdec.Engine` gains and costs: requests that come and go against fixed batches, pages
against contiguous memory, shared prompts, and many requests with little memory.

    python -m experiments.benchmark_engine
    python -m experiments.benchmark_engine batches samples        some of its parts
    python -m experiments.benchmark_engine soak requests=500      a trial

batches   every request has its own length, drawn once: an engine against the same engine that is
          given the next requests only when all before them are over
transformers  the first of them against transformers' continuous batching, where that runs
generate  an engine of one seat against `generate`
pages     the memory in pages against contiguous memory, in tokens/s and in bytes at the peak
samples   many samples of one prompt: pages, and passes that read
host      the share of a round that the scheduler takes
soak      many requests, random cancels, little memory: what is left in use at the end
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from experiments.benchmarks.options import Line
from experiments.terminal.options import start

PARTS = ("batches", "transformers", "generate", "pages", "samples", "host", "soak")


@dataclass
class Benchmark:
    """python -m experiments.benchmark_engine: measure the engine, print a table and write it to a
    folder."""

    names: list[str] = field(default_factory=lambda: list(PARTS))  # the parts
    target: str = "demo"
    draft: str = "demo-draft"
    dtype: str = "bfloat16"
    prompts: int = 64
    shortest: int = 16  # new tokens of a request, at least
    longest: int = 256  # and at most
    seats: int = 8  # requests that decode at the same time
    samples: int = 32  # of one prompt
    requests: int = 10_000  # of the soak
    repeats: int = 3
    seed: int = 0
    threads: int | None = None
    output: str = "outputs/benchmark_engine"


def main(wanted: Benchmark) -> None:
    from pathlib import Path

    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from experiments.benchmarks import serving
    from experiments.system.files import write_text
    from experiments.terminal.tables import markdown

    if unknown := [name for name in wanted.names if name not in PARTS]:
        raise ValueError(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    bench = serving.Serving(wanted)
    parts: dict[str, Callable[[], list[Line]]] = {
        "batches": bench.batches,
        "transformers": bench.transformers,
        "generate": bench.generate,
        "pages": bench.pages,
        "samples": bench.samples,
        "host": bench.host,
        "soak": bench.soak,
    }
    lines = [line for name in wanted.names for line in parts[name]()]
    table = Table("what", "measured", "how")
    for one in lines:
        table.add_row(one["what"], one["measured"], one["how"])
    Console().print(table)
    folder = Path(wanted.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "benchmark_engine.md", markdown(pd.DataFrame(lines)))


if __name__ == "__main__":
    start(main, Benchmark)
