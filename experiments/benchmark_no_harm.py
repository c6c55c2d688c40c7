"""What a bank costs and what it saves: drafters that fail and drafters that work, alone and under
`no_harm`, interleaved with plain decoding prompt by prompt in one process.

    python -m experiments.benchmark_no_harm
    python -m experiments.benchmark_no_harm limit=2 max_new_tokens=32        a trial

The first columns are tokens/s of decoding, summed over all prompts; the others are medians of
whole calls by prompt, prefills included. What fails: tokens drawn at random, a draft model whose
weights are shuffled, n-grams at T = 1.5.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Options
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    import specdec
    from experiments.benchmarks.bench import Bench, Compared

HOT = 1.5  # the temperature at which n-grams fail


@dataclass
class Benchmark(Options):
    """python -m experiments.benchmark_no_harm: measure drafters with and without `no_harm`, print a
    table and write it to a folder."""

    deep_limit: int = 0
    draft: str = "demo-draft"
    random_length: int = 8  # tokens of a random chain
    # of drafters that fail
    fail_temperatures: list[float] = field(default_factory=lambda: [0.0, 1.0])
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])
    # drafters that pay
    good: list[str] = field(default_factory=lambda: ["small_model", "ngram"])
    output: str = "outputs/benchmark_no_harm"


def at_random(vocabulary: int, length: int) -> "specdec.Drafter":
    """Chains of tokens that have nothing to do with the text."""
    import torch

    from specdec import Drafter, State, TokenTree
    from specdec.chance import Draws

    class AtRandom(Drafter):
        chain, max_nodes = True, length + 1

        def propose(self, state: State, chance: Draws) -> TokenTree:
            depth = min(length, state.deepest)
            steps = torch.arange(1, depth + 1, device=state.device)
            tokens = (state.lengths[:, None] + steps) * 7919 % vocabulary
            room = (state.room - 1).clamp(0, depth)
            return TokenTree.chain(torch.cat([state.roots[:, None], tokens], 1), room)

    return AtRandom()


def shuffled(model: "specdec.TransformersLM") -> "specdec.TransformersLM":
    """The same model with the numbers of each weight in another order: as costly, and useless."""
    import copy

    import torch

    import specdec

    spoilt, random = copy.deepcopy(model.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in spoilt.parameters():
            order = torch.randperm(weight.numel(), generator=random).to(weight.device)
            weight.copy_(weight.flatten()[order].view_as(weight))
    return specdec.TransformersLM(spoilt, model.tokenizer, f"{model.name}, shuffled")


def cases(bench: "Bench", wanted: Benchmark) -> "list[tuple[str, float, Any, bool]]":
    """(title, temperature, drafter, whether it works)."""
    spoilt = {"name": "small_model", "model": shuffled(bench.draft(wanted.draft))}
    random = at_random(bench.target.vocabulary, wanted.random_length)
    found: list[tuple[str, float, Any, bool]] = []
    for temperature in wanted.fail_temperatures:
        found.append((f"random chain of {wanted.random_length}", temperature, random, False))
        found.append(("small_model, shuffled weights", temperature, spoilt, False))
    found.append(("ngram", HOT, {"name": "ngram"}, False))
    for name in wanted.good:
        settings = (
            {"name": name, "model": wanted.draft} if name == "small_model" else {"name": name}
        )
        found += [(name, temperature, settings, True) for temperature in wanted.temperatures]
    return found


def ways(bench: "Bench", temperature: float, drafter: Any) -> dict[str, Any]:
    from dataclasses import replace

    from specdec import Drafter

    none = bench.ours(bench.target, temperature, {"name": "none"})
    if isinstance(drafter, Drafter):
        alone = replace(none, drafter=drafter)
    else:
        alone = bench.ours(bench.target, temperature, drafter)
    banked = replace(alone, options={**alone.options, "no_harm": True})
    return {"none": none, "alone": alone, "no_harm": banked, "again": none}


def row(title: str, temperature: float, works: bool, found: "Compared") -> "dict[str, str]":
    bank = found.rounds[found.rounds["way"] == "no_harm"]
    plain = (bank["nodes"] == 0).mean()
    none, alone, banked, again = map(found.rate, ("none", "alone", "no_harm", "again"))
    return {
        "drafter": title,
        "T": f"{temperature:g}",
        "tokens/s against none, all prompts: alone": f"{alone / none:.2f}x",
        "no_harm": f"{banked / none:.2f}x",
        "no_harm / alone": f"{banked / alone:.2f}" if works else "-",
        "none again": f"{again / none:.2f}x",
        "alone against none": found.times("alone", "none"),
        "no_harm against none": found.times("no_harm", "none"),
        "no_harm against alone": found.times("no_harm", "alone") if works else "-",
        "none against itself": found.times("again", "none"),
        "tau alone": f"{found.ours('alone').tau:.2f}",
        "rounds without drafts": f"{plain:.0%}",
    }


def main(wanted: Benchmark) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench

    bench, found, rows = Bench(wanted), {}, []
    for title, temperature, drafter, works in cases(bench, wanted):
        name = f"{title}, T = {temperature:g}"
        found[name] = bench.compare(name, ways(bench, temperature, drafter))
        rows.append(row(title, temperature, works, found[name]))
    bench.publish("benchmark_no_harm", [pd.DataFrame(rows)], found)


if __name__ == "__main__":
    start(main, Benchmark)
