"""The README's table of trained and self-speculating drafters: tau and wall clock at several temperatures, all interleaved
with plain decoding prompt by prompt in one process; and tau under every rule at temperature 1.

    python -m experiments.benchmark_drafters
    python -m experiments.benchmark_drafters limit=2 deep_limit=0 rules_limit=1 max_new_tokens=16        a trial

Predicted: tau x t(1) / (t(nodes) + drafting), with the passes as timed inside this run's own loops, where t(1) is that of
plain decoding.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmark import Measured, times
from experiments.terminal import options


@dataclass
class Benchmark:
    """python -m experiments.benchmark_drafters: measure the README's table of drafters, print it, and write it to a folder."""

    target: str = "demo"
    prompts: str = "demo"
    limit: int = 12
    deep_limit: int = 6  # prompts on the deepened target; 0 leaves it out
    rules_limit: int = 8  # prompts of the table of rules, decoded in one batch; 0 leaves it out
    max_new_tokens: int = 128
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])
    deep_temperature: float = 0.6
    extra_layers: int = 42
    dtype: str = "bfloat16"
    seed: int = 0
    threads: int | None = None
    output: str = "outputs/benchmark_drafters"


@dataclass(frozen=True)
class Row:
    """A drafter, and what is asked of it at temperature 0.6."""

    settings: dict[str, Any]
    tau: str
    speed: str
    deep: str  # with extra_layers


ROWS = {
    "medusa, 24 nodes": Row({"name": "medusa", "nodes": 24}, "2.3", "1.3x", "1.5x"),
    "eagle, ranked 5/24": Row({"name": "eagle", "depth": 5, "nodes": 24}, "3.6", "1.3x", "2.2x"),
    "eagle3, ranked 5/24": Row({"name": "eagle3", "depth": 5, "nodes": 24}, "eagle's", "eagle's", "eagle's"),
    "small_model, ranked 4/16": Row(
        {"name": "small_model", "depth": 4, "draw": "ranked", "nodes": 16}, "2.7", "-", "1.7x"
    ),
    "layer_skip": Row({"name": "layer_skip"}, "1.8", "-", "refused"),
    "early_exit": Row({"name": "early_exit"}, "2.0", "1.05x", "refused"),
}
CHAIN = {"depth": 4, "branching": 1, "nodes": None, "draw": "wor"}
WOR_TREE = {"depth": 3, "branching": [3, 2, 1], "nodes": None, "draw": "wor"}
RULES = {  # of sampled trees; DET trees have one rule that matters
    "chain of 4": (CHAIN, ("naive", "token", "block")),
    "WOR tree 3-2-1": (WOR_TREE, ("naive", "rrs_wor", "traversal")),
}


class Bench:
    def __init__(self, wanted: Benchmark) -> None:
        from experiments import prompts
        from experiments.measuring import ways

        self.wanted = wanted
        self.target = ways.load(wanted.target, dtype=wanted.dtype)
        self.prompts = prompts.read("jsonl", wanted.prompts, category="category", limit=wanted.limit)
        encoded = ways.encode(self.target, self.prompts)
        self.batches = [([ids], [prompt.index]) for ids, prompt in zip(encoded, self.prompts, strict=True)]

    def drafter(self, settings: dict[str, Any]) -> Any:
        from experiments.measuring.ways import make_drafter
        from specdec.plugins import described

        return make_drafter(
            {**described("drafter", settings["name"]), **without_name(settings)}, {"dtype": self.wanted.dtype}
        )

    def measure(self, target: Any, temperature: float, limit: int, rows: dict[str, Row]) -> Measured:
        from experiments.measuring.ways import Ours, interleaved
        from experiments.terminal.progress import bar
        from specdec.plugins import build

        sampling = {"temperature": temperature}
        ways = {"none": Ours(target, build("drafter", "none"), sampling=sampling, seed=self.wanted.seed)}
        for name, row in rows.items():
            ways[name] = Ours(target, self.drafter(row.settings), sampling=sampling, seed=self.wanted.seed)
        samples: dict[str, list[Any]] = {name: [] for name in ways}
        with bar(f"T = {temperature:g}, {target.config.num_hidden_layers} layers", limit) as advance:
            for done in interleaved(dict(ways), self.batches[:limit], self.wanted.max_new_tokens, warmup=1):
                for name, sample in done.items():
                    samples[name].append(sample)
                advance()
        return Measured(samples)

    def rules(self) -> list[tuple[str, str, str, float]]:
        """(drafter, shape, rule, tau) at temperature 1."""
        from experiments.measuring.ways import Ours
        from experiments.terminal.progress import bar

        found = []
        chosen = self.batches[: self.wanted.rules_limit]
        prompts, ids = [batch[0][0] for batch in chosen], [batch[1][0] for batch in chosen]
        tries = [("medusa", "static, 24 nodes", {}, ("naive", "rrs_wor", "traversal"))]
        for name in ("eagle", "eagle3", "small_model", "layer_skip", "early_exit"):
            tries += [(name, shape, settings, rules) for shape, (settings, rules) in RULES.items()]
        with bar("rules at T = 1", len(tries)) as advance:
            for name, shape, settings, rules in tries:
                for rule in rules:
                    drafter = self.drafter({"name": name, **settings})
                    way = Ours(
                        self.target, drafter, rule_of(rule), {"temperature": 1.0}, self.wanted.seed, ignore_eos=True
                    )
                    sample = way(prompts, ids, self.wanted.max_new_tokens)
                    assert sample.report
                    found.append((name, shape, rule, float(sample.report.tau)))
                advance()
        return found


def rule_of(name: str) -> Any:
    from specdec.plugins import build

    return build("verifier", name)


def without_name(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "name"}


def predicted(found: Measured, name: str) -> float:
    """Measured speed-up / what tau x t(1) / (t(nodes) + drafting) predicts, the median over prompts."""
    shares = []
    for ours, plain in zip(found.samples[name], found.samples["none"], strict=True):
        rounds = ours.report.target_calls
        one = plain.target_seconds / (plain.report.target_calls + 1)  # the prefill is a call too
        each = ours.target_seconds / (rounds + 1) + ours.report.seconds["draft"] / rounds
        speed = (
            plain.report.decode_seconds
            / plain.report.num_tokens
            / (ours.report.decode_seconds / ours.report.num_tokens)
        )
        shares.append(speed / (ours.report.tau * one / each))
    return median(shares)


def table(found: dict[float, Measured], deep: Measured | None, wanted: Benchmark) -> list[tuple[str, ...]]:
    header = ["drafter"]
    for temperature in found:
        asked = temperature == wanted.deep_temperature
        header += [
            f"tau T={temperature:g}" + (" (asked)" if asked else ""),
            f"against none T={temperature:g}" + (" (asked)" if asked else ""),
        ]
    header += [f"extra_layers={wanted.extra_layers} T={wanted.deep_temperature:g} (asked)", "measured / predicted"]
    rows = [tuple(header), ("---",) * len(header)]
    for name, row in ROWS.items():
        cells = [name]
        for temperature, each in found.items():
            asked = temperature == wanted.deep_temperature
            cells.append(f"{each.tau(name):.2f}" + (f" ({row.tau})" if asked else ""))
            cells.append(times(each.ratio(name, "none")) + (f" ({row.speed})" if asked else ""))
        there = deep is not None and name in deep.samples
        cells.append((times(deep.ratio(name, "none")) if deep and there else "-") + f" ({row.deep})")
        main = found.get(wanted.deep_temperature) or next(iter(found.values()))
        cells.append(f"{predicted(main, name):.2f}" + (f", {predicted(deep, name):.2f} deep" if deep and there else ""))
        rows.append(tuple(cells))
    return rows


def markdown(rows: list[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def main() -> None:
    wanted = options.parse(Benchmark)
    import torch
    from transformers.utils import logging

    from experiments.system.files import write_json
    from experiments.system.surroundings import surroundings

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    began = time.perf_counter()
    bench = Bench(wanted)
    found = {each: bench.measure(bench.target, each, wanted.limit, ROWS) for each in wanted.temperatures}
    deep = None
    if wanted.deep_limit:
        from experiments.measuring import ways

        target = ways.load(wanted.target, dtype=wanted.dtype, extra_layers=wanted.extra_layers)
        able = {name: row for name, row in ROWS.items() if row.deep != "refused"}
        deep = bench.measure(target, wanted.deep_temperature, wanted.deep_limit, able)
    rules = bench.rules() if wanted.rules_limit else []
    where = surroundings()
    machine = where["machine"]
    distinct = ", ".join(f"{each.distinct('none'):.0%} at T = {temperature:g}" for temperature, each in found.items())
    text = markdown(table(found, deep, wanted)) + "\n"
    if rules:
        text += markdown(
            [("drafter", "shape", "rule", "tau at T=1"), ("---",) * 4, *((*r[:3], f"{r[3]:.2f}") for r in rules)]
        )
    text += (
        f"\nMedians over {len(bench.prompts)} prompts ({wanted.deep_limit} on the deepened target, {wanted.rules_limit} for the rules) "
        f"with 95% bootstrap intervals of paired ratios, {wanted.dtype}, batch 1, {wanted.max_new_tokens} new tokens, "
        f"{where['threads']} threads, {machine['gpu'] or machine['cpu']}. Distinct 4-grams of plain decoding: {distinct}. "
        f"`python -m experiments.benchmark_drafters`, {(time.perf_counter() - began) / 60:.0f} minutes.\n"
    )
    print(text)
    folder = Path(wanted.output) / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    record = {
        "config": vars(wanted),
        **where,
        "ways": {f"T = {temperature:g}": each.summary() for temperature, each in found.items()},
        "deep": deep.summary() if deep else None,
        "rules": rules,
    }
    write_json(folder / "benchmark.json", record)


if __name__ == "__main__":
    main()
