"""The first table of docs/benchmarks.md: all ways interleaved prompt by prompt in one process,
ratios paired, medians over prompts.

    python -m experiments.benchmark
    python -m experiments.benchmark limit=2 deep_limit=1 max_new_tokens=16        a trial

"At its best length" takes the best of `lengths` for each side, by the median over prompts. Our
chains are tried both drafted to the end and stopped where the draft model is unsure, as
transformers' assistant does.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Line, Options, line
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Bench, Compared


@dataclass
class Benchmark(Options):
    """python -m experiments.benchmark: measure ours against transformers' ways, print a table and
    write it to a folder."""

    draft: str = "demo-draft"
    # of chains, ours and transformers' alike
    lengths: list[int] = field(default_factory=lambda: [2, 3, 4, 5, 8])
    cool: float = 0.6  # the second temperature; the first is 0


# the latter stop where the draft model is unsure, as transformers' assistant does
CHAINS = ("chain", "stopped")
UNSURE = 0.4  # transformers' default confidence threshold
# Besides chains, small_model is tried with these tree shapes: the drafter's arguments.
RANKED = [(4, 8), (4, 16), (6, 16)]  # depth, nodes
RANKED_DEEP = [(4, 16), (6, 16), (8, 32)]
SAMPLED = [[2, 2, 1, 1], [3, 2, 2, 1, 1]]  # children per depth
BATCH = 8


def ways(
    bench: "Bench", deep: bool, temperature: float, shapes: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """none, transformers, chains and assisted generation at each length, and the given shapes; on
    the unchanged target also ngram and prompt lookup."""
    from experiments.measuring.theirs import Theirs

    wanted, target = bench.wanted, bench.deep if deep else bench.target
    assert isinstance(wanted, Benchmark)
    draft = bench.draft(wanted.draft)
    theirs = Theirs(target, {"temperature": temperature}, wanted.seed)
    found: dict[str, Any] = {
        "none": bench.ours(target, temperature, {"name": "none"}),
        "transformers": theirs,
    }
    if not deep:
        found["ngram"] = bench.ours(
            target, temperature, {"name": "ngram", "max_ngram": 3, "length": 10}
        )
        found["prompt_lookup"] = replace(theirs, lookup=(3, 10))
    for length in wanted.lengths:
        stopped = {"depth": length, "stop": {"threshold": UNSURE}}
        shapes = {**shapes, f"chain {length}": {"depth": length}, f"stopped {length}": stopped}
        found[f"assisted {length}"] = replace(theirs, draft=draft, num_assistant_tokens=length)
    for name, arguments in shapes.items():
        found[name] = bench.ours(
            target, temperature, {"name": "small_model", "model": draft, **arguments}
        )
    return found


def ranked(shapes: list[tuple[int, int]]) -> dict[str, dict[str, Any]]:
    return {
        f"ranked {d}/{n}": {"depth": d, "branching": 1, "draw": "ranked", "nodes": n}
        for d, n in shapes
    }


# ---------------------------------------------------------------------------------------- the lines


def shallow(found: "Compared") -> list[Line]:
    chain, shape = found.best(CHAINS, "none"), found.best([*CHAINS, "ranked"], "none")
    assisted, fastest = (
        found.best(["assisted"], "none"),
        found.best(["none", "ngram", *CHAINS, "ranked"], "transformers"),
    )
    best = f"best shape {shape}: {found.times(shape, assisted)}"
    return [
        line("`none` against transformers `generate`", found.times("none", "transformers")),
        line(
            "`ngram` against transformers prompt lookup (3-grams, 10 tokens)",
            found.times("ngram", "prompt_lookup"),
            f"tau {found.ours('ngram').tau:.2f}",
        ),
        line(
            "`small_model` against transformers assisted generation, each at its best length",
            found.times(chain, assisted),
            f"{chain} (tau {found.ours(chain).tau:.2f}), {assisted}; {best}",
        ),
        line(
            "best of the three against transformers `generate`",
            found.times(fastest, "transformers"),
            fastest,
        ),
    ]


def deepened(title: str, found: "Compared", sampled: bool) -> list[Line]:
    shape = found.best([*CHAINS, "ranked", "sampled"], "none")
    detail = f"{shape}, tau {found.ours(shape).tau:.2f}"
    lines = [
        line(
            f"{title}: `small_model`, best shape, against `none`",
            found.times(shape, "none"),
            detail,
        )
    ]
    if sampled:
        chain, assisted = found.best(CHAINS, "none"), found.best(["assisted"], "none")
        what = (
            f"{title}: `small_model` against transformers assisted sampling, each at its best "
            "length"
        )
        detail = f"{chain}, {assisted}; best shape {shape}: {found.times(shape, assisted)}"
        lines.append(line(what, found.times(chain, assisted), detail))
    return lines


def overheads(bench: "Bench", found: "Compared") -> list[Line]:
    """For the chain at its best length: time outside the models, and measured against predicted
    speed-up."""
    from experiments.measuring.forward_times import forward_times
    from experiments.measuring.intervals import median_interval

    wanted = bench.wanted
    assert isinstance(wanted, Benchmark)
    chain = found.best(["chain"], "none")
    ours, plain = found.ours(chain).per_prompt, found.ours("none").per_prompt
    length = int(chain.split()[1])
    context = round(median(entry.prompt_tokens for entry in plain)) + wanted.max_new_tokens // 2
    target = forward_times(bench.target, context, [1, length + 1])
    draft = forward_times(bench.draft(wanted.draft), context, [1])
    round_seconds = target[length + 1] + length * draft[1]
    alone, in_run = [], []
    for one, other in zip(ours, plain, strict=True):
        measured = other.decoding / one.decoding
        alone.append(measured / (one.tau * target[1] / round_seconds))
        # the prefill counts as a call
        each = (one.target_seconds + one.draft_seconds) / (one.rounds + 1)
        in_run.append(measured / (one.tau * other.target_seconds / (other.rounds + 1) / each))
    return [
        line(
            f"time outside the models' forward calls, {chain}",
            f"{found.outside(chain):.1%}",
            f"the same of `none`: {found.outside('none'):.1%}",
        ),
        line(
            f"measured speed-up of {chain} / tau x t(1) / (t(nodes) + drafting)",
            str(median_interval(alone)),
            f"passes alone, {context} tokens of context: t(1) {1000 * target[1]:.2f} ms, "
            f"t({length + 1}) {1000 * target[length + 1]:.2f} ms, draft {1000 * draft[1]:.2f} ms x "
            f"{length}; with the passes' times inside the loops instead: "
            f"{median_interval(in_run)}",
        ),
    ]


def batched(bench: "Bench") -> Line:
    what = f"batch {BATCH}, `none`: tokens/s against batch 1"
    whole = len(bench.prompts) // BATCH * BATCH
    if not whole:
        return line(what, "-", f"needs limit >= {BATCH}")
    plain = {"none": bench.ours(bench.target, 0.0, {"name": "none"}, ignore_eos=True)}
    alone, together = (
        bench.compare(f"batch {size}", dict(plain), whole, size).ours("none") for size in (1, BATCH)
    )
    gain = together.wall_tokens_per_second / alone.wall_tokens_per_second
    return line(
        what,
        f"{gain:.2f}x",
        f"{together.wall_tokens_per_second:.0f} tokens/s; {whole // BATCH} batches",
    )


def wide_pass(bench: "Bench") -> Line:
    from experiments.measuring.forward_times import forward_times

    seconds = forward_times(bench.target, 256, [1, 64])
    detail = f"{1000 * seconds[1]:.2f} ms, {1000 * seconds[64]:.2f} ms"
    what = "64-node tree pass against a 1-node pass, 256 tokens of context"
    return line(what, f"{seconds[64] / seconds[1]:.2f}x", detail)


def memory(bench: "Bench") -> Line:
    from experiments.measuring.forward_times import peak_memory

    wanted, peaks = bench.wanted, []
    assert isinstance(wanted, Benchmark)
    what, room = (
        "peak memory of generate beyond weights, caches and steps",
        bench.target.context - 32,
    )
    for tokens in (room // 8, room // 2, room):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(
                peak_memory, wanted.target, wanted.draft, wanted.dtype, tokens
            ).result()
        if peak is None:
            return line(what, "-", "needs Linux")
        peaks.append((tokens, peak / 2**20))
    detail = "; ".join(f"{tokens} tokens: {peak:.1f} MiB" for tokens, peak in peaks)
    return line(what, f"{peaks[-1][1] - peaks[0][1]:+.1f} MiB", detail)


def main(wanted: Benchmark) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    found = {"T = 0": bench.compare("T = 0", ways(bench, False, 0.0, ranked(RANKED)), wanted.limit)}
    lines = shallow(found["T = 0"])
    sampled = {
        f"sampled {'-'.join(map(str, k))}": {"depth": len(k), "branching": k} for k in SAMPLED
    }
    for temperature in (0.0, wanted.cool) if wanted.deep_limit else ():
        title = f"extra_layers={wanted.extra_layers}, T = {temperature:g}"
        shapes = ranked(RANKED_DEEP) | (sampled if temperature else {})
        found[title] = bench.compare(
            title, ways(bench, True, temperature, shapes), wanted.deep_limit
        )
        lines += deepened(title, found[title], sampled=temperature > 0)
    lines += [*overheads(bench, found["T = 0"]), batched(bench), wide_pass(bench), memory(bench)]
    bench.publish("benchmark", [pd.DataFrame(lines)], found)


if __name__ == "__main__":
    start(main, Benchmark)
