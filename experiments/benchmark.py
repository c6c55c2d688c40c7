"""The README's table of figures: all ways interleaved prompt by prompt in one process, ratios paired, medians over prompts.

    python -m experiments.benchmark
    python -m experiments.benchmark limit=2 deep_limit=1 max_new_tokens=16        a trial

"At its best length" takes the best of `lengths` for both sides, by the median over prompts, and of our chains those that are drafted to
the end and those that stop where the draft model is unsure, as transformers' assistant does.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from experiments.terminal import options


@dataclass
class Benchmark:
    """python -m experiments.benchmark: measure the README's table of figures, print it, and write it to a folder."""

    target: str = "demo"
    draft: str = "demo-draft"
    prompts: str = "demo"
    limit: int = 16
    deep_limit: int = 8  # prompts on the deepened target; 0 leaves it out
    max_new_tokens: int = 128
    lengths: list[int] = field(default_factory=lambda: [2, 3, 4, 5, 8])  # of chains, ours and transformers' alike
    dtype: str = "bfloat16"
    extra_layers: int = 42
    cool: float = 0.6  # the temperature beside 0
    seed: int = 0
    threads: int | None = None
    output: str = "outputs/benchmark"


CHAINS = ("chain", "stopped")  # the latter end where the draft model is unsure, as transformers' assistant does
UNSURE = 0.4  # transformers' default confidence threshold
# Shapes of trees that small_model is tried in, besides chains: the drafter's arguments.
RANKED = [(4, 8), (4, 16), (6, 16)]  # depth, nodes
RANKED_DEEP = [(4, 16), (6, 16), (8, 32)]
SAMPLED = [[2, 2, 1, 1], [3, 2, 2, 1, 1]]  # children per depth


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    what: str
    wanted: str
    value: str
    detail: str


class Measured:
    """Samples of several ways over the same prompts."""

    def __init__(self, samples: dict[str, list[Any]]) -> None:
        self.samples = samples

    def ratio(self, method: str, baseline: str) -> Any:
        """Seconds per token of the baseline / of the method, paired by prompt: the median and its interval."""
        from experiments.measuring.intervals import median_interval

        pairs = zip(self.samples[method], self.samples[baseline], strict=True)
        return median_interval([theirs.seconds_per_token / ours.seconds_per_token for ours, theirs in pairs])

    def best(self, kinds: Sequence[str], baseline: str) -> str:
        """The fastest of the ways whose names begin with one of `kinds`."""
        names = [name for name in self.samples if name.startswith(tuple(kinds))]
        return max(names, key=lambda name: self.ratio(name, baseline).median)

    def tau(self, name: str) -> float:
        from experiments.measuring.measures import pooled

        return float(pooled([sample.report for sample in self.samples[name]])["tau"])

    def distinct(self, name: str) -> float:
        from specdec.metrics import distinct_ngrams

        return distinct_ngrams([row for sample in self.samples[name] for row in sample.tokens]) or 0.0

    def summary(self) -> dict[str, Any]:
        from experiments.measuring.measures import summary

        return {
            name: summary(found) | {"seconds_per_token": [sample.seconds_per_token for sample in found]}
            for name, found in self.samples.items()
        }


class Bench:
    def __init__(self, wanted: Benchmark) -> None:
        from experiments import prompts
        from experiments.measuring import ways

        self.wanted = wanted
        self.target = ways.load(wanted.target, dtype=wanted.dtype)
        self.draft = ways.draft_model(wanted.draft, {"dtype": wanted.dtype})
        self.prompts = prompts.read("jsonl", wanted.prompts, category="category", limit=wanted.limit)
        encoded = ways.encode(self.target, self.prompts)
        self.batches = [([ids], [prompt.index]) for ids, prompt in zip(encoded, self.prompts, strict=True)]

    def ways(self, target: Any, temperature: float, shapes: dict[str, dict[str, Any]], plain: bool) -> dict[str, Any]:
        """none, transformers, chains and assisted generation at each length, the given shapes; ngram and prompt lookup if
        `plain`."""
        from experiments.measuring.ways import Ours, Theirs
        from specdec.plugins import build

        seed, sampling = self.wanted.seed, {"temperature": temperature}
        ours, theirs = (
            Ours(target, build("drafter", "none"), sampling=sampling, seed=seed),
            Theirs(target, sampling, seed),
        )
        found: dict[str, Any] = {"none": ours, "transformers": theirs}
        if plain:
            found["ngram"] = replace(ours, drafter=build("drafter", {"name": "ngram", "max_ngram": 3, "length": 10}))
            found["prompt_lookup"] = replace(theirs, lookup=(3, 10))
        for length in self.wanted.lengths:
            stopped = {"depth": length, "stop": {"threshold": UNSURE}}
            shapes = {**shapes, f"chain {length}": {"depth": length}, f"stopped {length}": stopped}
            found[f"assisted {length}"] = replace(theirs, draft=self.draft, num_assistant_tokens=length)
        for name, arguments in shapes.items():
            drafter = build("drafter", {"name": "small_model", "model": self.draft, **arguments})
            found[name] = replace(ours, drafter=drafter)
        return found

    def measure(self, title: str, ways: dict[str, Any], limit: int) -> Measured:
        from experiments.measuring.ways import interleaved
        from experiments.terminal.progress import bar

        samples: dict[str, list[Any]] = {name: [] for name in ways}
        batches = self.batches[:limit]
        with bar(title, len(batches)) as advance:
            for done in interleaved(ways, batches, self.wanted.max_new_tokens, warmup=1):
                for name, sample in done.items():
                    samples[name].append(sample)
                advance()
        return Measured(samples)

    # ------------------------------------------------------------------------------------------------------- the lines

    def shallow(self) -> tuple[Measured, list[Line]]:
        shapes = {f"ranked {d}/{n}": {"depth": d, "branching": 1, "draw": "ranked", "nodes": n} for d, n in RANKED}
        found = self.measure("demo target, T = 0", self.ways(self.target, 0.0, shapes, True), self.wanted.limit)
        chain, shape = found.best(CHAINS, "none"), found.best([*CHAINS, "ranked"], "none")
        assisted = found.best(["assisted"], "none")
        fastest = found.best(["none", "ngram", *CHAINS, "ranked"], "transformers")
        lines = [
            Line("`none` against transformers `generate`", "1.15x", times(found.ratio("none", "transformers")), ""),
            Line(
                "`ngram` against transformers prompt lookup (3-grams, 10 tokens)",
                "1.3x",
                times(found.ratio("ngram", "prompt_lookup")),
                f"tau {found.tau('ngram'):.2f}",
            ),
            Line(
                "`small_model` against transformers assisted generation, each at its best length",
                "1.4x",
                times(found.ratio(chain, assisted)),
                f"{chain} (tau {found.tau(chain):.2f}), {assisted}; best shape {shape}: {times(found.ratio(shape, assisted))}",
            ),
            Line(
                "best of the three against transformers `generate`",
                "2.3x",
                times(found.ratio(fastest, "transformers")),
                fastest,
            ),
        ]
        return found, lines

    def deepened(self) -> tuple[dict[str, Measured], list[Line]]:
        from experiments.measuring import ways

        wanted, found, lines = self.wanted, {}, []
        deep = ways.load(wanted.target, dtype=wanted.dtype, extra_layers=wanted.extra_layers)
        shapes = {f"ranked {d}/{n}": {"depth": d, "branching": 1, "draw": "ranked", "nodes": n} for d, n in RANKED_DEEP}
        sampled = {
            f"sampled {'-'.join(map(str, widths))}": {"depth": len(widths), "branching": widths} for widths in SAMPLED
        }
        for temperature, goal in ((0.0, "1.8x"), (wanted.cool, "1.6x")):
            title = f"extra_layers={wanted.extra_layers}, T = {temperature:g}"
            tried = shapes | (sampled if temperature else {})
            each = self.measure(title, self.ways(deep, temperature, tried, False), wanted.deep_limit)
            shape = each.best([*CHAINS, "ranked", "sampled"], "none")
            found[title] = each
            lines.append(
                Line(
                    f"{title}: `small_model`, best shape, against `none`",
                    goal,
                    times(each.ratio(shape, "none")),
                    f"{shape}, tau {each.tau(shape):.2f}",
                )
            )
            if temperature:
                chain, assisted = each.best(CHAINS, "none"), each.best(["assisted"], "none")
                detail = f"{chain}, {assisted}; best shape {shape}: {times(each.ratio(shape, assisted))}"
                lines.append(
                    Line(
                        f"{title}: `small_model` against transformers assisted sampling, each at its best length",
                        "1.3x",
                        times(each.ratio(chain, assisted)),
                        detail,
                    )
                )
        return found, lines

    def overheads(self, found: Measured) -> list[Line]:
        """Time outside the models, and measured against predicted speed-up, of the chain at its best length."""
        from experiments.measuring.forward_times import forward_times
        from experiments.measuring.intervals import median_interval

        chain = found.best(["chain"], "none")
        samples, plain = found.samples[chain], found.samples["none"]
        outside = [1 - (s.target_seconds + s.draft_seconds) / s.wall_seconds for s in samples]
        length = int(chain.split()[1])
        context = round(median(len(ids[0]) for ids, _ in self.batches)) + self.wanted.max_new_tokens // 2
        target = forward_times(self.target, context, [1, length + 1])
        draft = forward_times(self.draft, context, [1])
        round_seconds = target[length + 1] + length * draft[1]
        shares, in_run = [], []
        for ours, theirs in zip(samples, plain, strict=True):
            tau, rounds = ours.report.tau, ours.report.target_calls
            measured = _decoding(theirs) / _decoding(ours)
            shares.append(measured / (tau * target[1] / round_seconds))
            each = (ours.target_seconds + ours.draft_seconds) / (rounds + 1)
            in_run.append(measured / (tau * theirs.target_seconds / (theirs.report.target_calls + 1) / each))
        return [
            Line(
                f"time outside the models' forward calls, {chain}",
                "<= 12%",
                f"{median(outside):.1%}",
                f"the same of `none`: {median(1 - s.target_seconds / s.wall_seconds for s in plain):.1%}",
            ),
            Line(
                f"measured speed-up of {chain} / tau x t(1) / (t(nodes) + drafting)",
                ">= 0.9",
                str(median_interval(shares)),
                f"passes alone, {context} tokens of context: t(1) {1000 * target[1]:.2f} ms, t({length + 1}) "
                f"{1000 * target[length + 1]:.2f} ms, draft {1000 * draft[1]:.2f} ms x {length}; with the passes' times inside "
                f"the loops instead: {median_interval(in_run)}",
            ),
        ]

    def batched(self, size: int = 8) -> Line:
        from experiments.measuring.intervals import median_interval
        from experiments.measuring.ways import Ours
        from specdec.plugins import build

        plain = Ours(self.target, build("drafter", "none"), ignore_eos=True)
        tokens, gains, rates = self.wanted.max_new_tokens, [], []
        for first in range(0, len(self.batches) - size + 1, size):
            rows = [(ids[0], number[0]) for ids, number in self.batches[first : first + size]]
            together = plain([ids for ids, _ in rows], [number for _, number in rows], tokens)
            alone = [plain([ids], [number], tokens) for ids, number in rows]
            gains.append(sum(sample.wall_seconds for sample in alone) / together.wall_seconds)
            rates.append(size * tokens / together.wall_seconds)
        what = f"batch {size}, `none`: tokens/s against batch 1"
        if not gains:
            return Line(what, "3x", "-", f"needs limit >= {size}")
        return Line(what, "3x", times(median_interval(gains)), f"{median(rates):.0f} tokens/s; {len(gains)} batches")

    def wide_pass(self) -> Line:
        from experiments.measuring.forward_times import forward_times

        seconds = forward_times(self.target, 256, [1, 64])
        detail = f"{1000 * seconds[1]:.2f} ms, {1000 * seconds[64]:.2f} ms"
        return Line(
            "64-node tree pass against a 1-node pass, 256 tokens of context",
            "<= 2.2x",
            f"{seconds[64] / seconds[1]:.2f}x",
            detail,
        )

    def memory(self) -> Line:
        from experiments.measuring.forward_times import peak_memory

        peaks = []
        room = self.target.context - 32
        for tokens in (room // 8, room // 2, room):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                peak = pool.submit(
                    peak_memory, self.wanted.target, self.wanted.draft, self.wanted.dtype, tokens
                ).result()
            if peak is None:
                return Line("peak memory of generate against new tokens", "constant", "-", "needs Linux")
            peaks.append((tokens, peak / 2**20))
        detail = "; ".join(f"{tokens} tokens: {peak:.1f} MiB" for tokens, peak in peaks)
        growth = f"{peaks[-1][1] - peaks[0][1]:+.1f} MiB"
        return Line("peak memory of generate beyond weights, caches and steps", "constant", growth, detail)


def _decoding(sample: Any) -> float:
    return sample.report.decode_seconds / max(1, sample.report.num_tokens)


def times(interval: Any) -> str:
    return f"{interval.median:.2f}x" + ("" if interval.low is None else f" [{interval.low:.2f}, {interval.high:.2f}]")


def markdown(lines: Sequence[Line], notes: Sequence[str]) -> str:
    rows = [("what", "at least", "measured", "how"), ("---",) * 4]
    rows += [(line.what, line.wanted, line.value, line.detail) for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n\n" + "\n".join(notes) + "\n"


def measure(wanted: Benchmark) -> tuple[str, dict[str, Any]]:
    """The table as markdown, and everything it was made from."""
    import torch
    from transformers.utils import logging

    from experiments.system.surroundings import surroundings

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    began = time.perf_counter()
    bench = Bench(wanted)
    shallow, lines = bench.shallow()
    measured, distinct = {"shallow": shallow}, f"{shallow.distinct('none'):.0%} at T = 0"
    if wanted.deep_limit:
        deep, more = bench.deepened()
        measured |= deep
        lines += more
        distinct += f", {deep[list(deep)[-1]].distinct('none'):.0%} at T = {wanted.cool:g}"
    steps: list[Callable[[], Line]] = [bench.batched, bench.wide_pass, bench.memory]
    lines += [*bench.overheads(shallow), *(step() for step in steps)]
    where = surroundings()
    machine = where["machine"]
    notes = [
        f"Medians over {len(bench.prompts)} prompts ({min(wanted.deep_limit, len(bench.prompts))} on the deepened target) with 95% "
        f"bootstrap intervals of paired ratios, {wanted.dtype}, batch 1, {wanted.max_new_tokens} new tokens, {where['threads']} "
        f"threads, {machine['gpu'] or machine['cpu']}. Distinct 4-grams of the output: {distinct}. "
        f"`python -m experiments.benchmark`, {(time.perf_counter() - began) / 60:.0f} minutes."
    ]
    record = {
        "config": vars(wanted),
        **where,
        "lines": [vars(line) for line in lines],
        "ways": {title: found.summary() for title, found in measured.items()},
    }
    return markdown(lines, notes), record


def main() -> None:
    from experiments.system.files import write_json

    wanted = options.parse(Benchmark)
    text, record = measure(wanted)
    print(text)
    folder = Path(wanted.output) / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    write_json(folder / "benchmark.json", record)


if __name__ == "__main__":
    main()
