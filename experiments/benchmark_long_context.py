"""From which length on, and for how many rows, a target gains by drafting from a part of its memory
(`sparse_self`): measured, and computed from the cost of passes.

    python -m experiments.benchmark_long_context
    python -m experiments.benchmark_long_context lengths=[300,600] rows=[1] limit=2      a trial

Both ways are interleaved batch by batch in one process. Times leave the prefill out, and are
medians of ratios over batches. Computed: a pass costs a + b x length for each number of rows; what
a round costs and gives says how long a text must be for a speed-up of 1. The target has its rotary
positions stretched (`specdec.load(context=...)`); `prompts=FOLDER` takes files of a folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.benchmarks.options import Options
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Bench, Compared


@dataclass
class LongContext(Options):
    """python -m experiments.benchmark_long_context: speed-up of sparse_self against length and
    rows, measured and computed; print a table and write it to a folder."""

    # positions of the target
    context: int = 4096
    lengths: list[int] = field(default_factory=lambda: [500, 1500, 3400])  # of prompts
    # texts that decode side by side
    rows: list[int] = field(default_factory=lambda: [1, 8])
    # which tokens sparse_self reads: streaming | snapkv | chunks
    select: str = "streaming"
    # tokens that it reads
    budget: int = 256
    # of its chains
    depth: int = 3
    temperature: float = 1.0
    limit: int = 8
    deep_limit: int = 0
    max_new_tokens: int = 32
    repeats: int = 20  # of the passes whose cost is measured
    output: str = "outputs/benchmark_long_context"


class Costs(NamedTuple):
    """Seconds of passes at one length."""

    plain: float  # over one node
    verify: float  # over a draft and its root
    draft: float  # over one node and a memory of `budget` tokens


class Line(NamedTuple):
    """A pass costs `start` + `slope` x length."""

    start: float
    slope: float


def fitted(lengths: Sequence[int], seconds: Sequence[float]) -> Line:
    import numpy as np

    slope, start = np.polyfit(lengths, seconds, 1)
    return Line(float(start), float(slope))


def speed_up(tau: float, depth: int, plain: float, verify: float, draft: float) -> float:
    """A round takes `depth` drafting passes and one that verifies, and gives tau tokens."""
    return tau * plain / (depth * draft + verify)


def pays_from(tau: float, depth: int, plain: Line, verify: Line, draft: float) -> str:
    """The length at which `speed_up` is 1."""
    gained = tau * plain.slope - verify.slope
    needed = depth * draft + verify.start - tau * plain.start
    if needed <= 0:
        return "any"
    return f"{needed / gained:,.0f}" if gained > 0 else "never"


def measured(bench: "Bench", length: int, rows: int) -> "Compared":
    from experiments import prompts
    from experiments.measuring.ways import load

    wanted = bench.wanted
    assert isinstance(wanted, LongContext)
    source = "folder" if Path(wanted.prompts).expanduser().is_dir() else "jsonl"
    given = prompts.read(source, wanted.prompts, limit=max(wanted.limit, 3 * rows), tokens=length)
    target = load(wanted.target, dtype=wanted.dtype, context=wanted.context)
    sparse = {"name": "sparse_self", "select": wanted.select, "budget": wanted.budget}
    drafters = {"none": {"name": "none"}, "sparse_self": {**sparse, "depth": wanted.depth}}
    ways = {
        name: bench.ours(target, wanted.temperature, drafter, ignore_eos=True)
        for name, drafter in drafters.items()
    }
    return bench.compare(f"{length} tokens, {rows} rows", dict(ways), None, rows, given=given)


def costs(wanted: LongContext, length: int, rows: int) -> Costs:
    from experiments.measuring.forward_times import forward_times
    from experiments.measuring.ways import load

    target = load(wanted.target, dtype=wanted.dtype, context=wanted.context)
    nodes = [1, wanted.depth + 1]
    plain, verify = forward_times(target, length, nodes, rows, wanted.repeats).values()
    budget = min(wanted.budget, length)
    (draft,) = forward_times(target, budget, [1], rows, wanted.repeats).values()
    return Costs(plain, verify, draft)


def main(wanted: LongContext) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench
    from experiments.measuring.intervals import ratio_interval

    bench, lines, found = Bench(wanted), [], {}
    for rows in wanted.rows:
        passes, taus = [], []
        for length in wanted.lengths:
            compared = measured(bench, length, rows)
            found[f"{length} tokens, {rows} rows"] = compared
            ours, none = compared.ours("sparse_self"), compared.ours("none")
            seconds = [
                {entry.batch: entry.decoding for entry in way.per_prompt} for way in (none, ours)
            ]
            passes.append(costs(wanted, length, rows))
            taus.append(ours.tau)
            gained = ratio_interval(*(list(each.values()) for each in seconds))
            lines.append(
                {
                    "rows": rows,
                    "length": length,
                    "accepted": f"{ours.acceptance_rate:.2f}",
                    "tau": f"{ours.tau:.2f}",
                    "measured": gained.text(unit="x"),
                    "computed": f"{speed_up(ours.tau, wanted.depth, *passes[-1]):.2f}x",
                    "ms of a pass: plain, verifying, drafting": ", ".join(
                        f"{1e3 * each:.1f}" for each in passes[-1]
                    ),
                    "distinct 4-grams": f"{ours.distinct_4grams or 0:.0%}",
                }
            )
        plain, verify = (fitted(wanted.lengths, [each[kind] for each in passes]) for kind in (0, 1))
        start_at = pays_from(taus[-1], wanted.depth, plain, verify, passes[-1].draft)
        lines.append({"rows": rows, "length": "pays from", "computed": f"{start_at} tokens"})
    bench.publish("benchmark_long_context", [pd.DataFrame(lines).fillna("")], found)


if __name__ == "__main__":
    start(main, LongContext)
