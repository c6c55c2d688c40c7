"""What drafters without training give: tau, tokens per second and host time, all ways interleaved
prompt by prompt in one process, ratios paired, intervals over prompts.

    python -m experiments.benchmark_training_free
    python -m experiments.benchmark_training_free limit=4 store=8 edits=null        a trial

Trees have 16 drafted nodes. Lookups and plain decoding are coupled: they put out the same text, so
their tau is that of one text (the chains of the draft model are not). Prompts "with repetition" are
the half whose plain output has fewer distinct 4-grams. The store holds the outputs of `store` other
beginnings from the same modules. `edits`: files of that folder, rewritten with one name changed
(experiments.records.lookups); no model is needed for those. Host time: drafting, and what commits
take more than in plain decoding.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Line, Options, line
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Bench, Compared
    from specdec.drafting.suffix_store import SuffixStore


@dataclass
class TrainingFree(Options):
    """python -m experiments.benchmark_training_free: drafters that need no training against one
    another; print a table and write it to a folder."""

    temperature: float = 0.6
    limit: int = 32
    deep_limit: int = 0
    max_new_tokens: int = 96
    nodes: int = 16  # drafted
    store: int = 200  # outputs in the store
    edits: str | None = "specdec"  # a folder of Python files; null leaves it out
    edited: int = 12  # files of it
    draft: str = "demo-draft"  # of the cascade
    threshold: float | None = None  # of the cascade; null: auto
    batches: list[int] = field(default_factory=lambda: [1, 8])  # for host time
    output: str = "outputs/benchmark_training_free"


def ways(bench: "Bench", store: "SuffixStore | None") -> dict[str, Any]:
    wanted = bench.wanted
    assert isinstance(wanted, TrainingFree)
    from specdec import Coupled

    tree = {"name": "ngram", "length": wanted.nodes, "tree": True}
    suffix = {"name": "suffix", "nodes": wanted.nodes}
    model = {"name": "small_model", "model": wanted.draft, "depth": 4}
    chain = {"name": "suffix", "tree": False, "nodes": 10, "min_prob": 0.2}
    both = {"name": "cascade", "first": chain, "then": model}
    if wanted.threshold is not None:
        both["threshold"] = wanted.threshold
    drafters: dict[str, dict[str, Any]] = {
        "none": {"name": "none"},
        "ngram": tree,
        "ngram, fan-out": {**tree, "fanout": 4},
        "suffix": suffix,
        "suffix, fan-out": {**suffix, "fanout": 4},
        "suffix, warm": {**suffix, "store": store or "none", "learn": False},
        "recycle": {"name": "recycle", "nodes": wanted.nodes},
        "recycle, warm": {"name": "recycle", "nodes": wanted.nodes, "store": "memory"},
        "suffix chain": chain,
        "small_model": model,
        "cascade": both,
    }
    own = {"chance": Coupled(wanted.seed), "seed": None}
    return {
        name: bench.ours(
            bench.target, wanted.temperature, drafter, **({} if name in DRAWN else own)
        )
        for name, drafter in drafters.items()
    }


def stored(wanted: TrainingFree, bench: "Bench") -> "SuffixStore":
    """Outputs of plain decoding, of beginnings that are none of the prompts."""
    import specdec
    from experiments.demo_prompts import beginnings
    from specdec.drafting.suffix_store import SuffixStore

    texts = [passage.prompt for passage in beginnings()]
    store = SuffixStore(1_000_000, name="other outputs")
    out = specdec.generate(
        bench.target,
        texts[: wanted.store],
        drafter="suffix",
        max_new_tokens=wanted.max_new_tokens,
        temperature=wanted.temperature,
        seed=wanted.seed + 1,
        seats=16,
    )
    for tokens in out.tokens:
        store.add(tokens.tolist())
    return store


def halves(found: "Compared") -> dict[str, list[int]]:
    """Prompts by the share of distinct 4-grams in their plain output."""
    entries = sorted(found.ours("none").per_prompt, key=lambda each: each.distinct_4grams or 0.0)
    numbers = [each.prompt for each in entries]
    middle = len(numbers) // 2
    return {
        "all prompts": numbers,
        "with repetition": numbers[:middle],
        "without": numbers[middle:],
    }


DRAWN = ("suffix chain", "small_model", "cascade")  # whose chains are sampled: the rule `block`
PAIRS = (
    ("suffix", "ngram"),
    ("suffix, warm", "suffix"),
    ("suffix, fan-out", "suffix"),
    ("ngram, fan-out", "ngram"),
    ("recycle, warm", "recycle"),
)


def table(found: "Compared") -> list[dict[str, str]]:
    parts, rows = halves(found), []
    for name in found.ways:
        one = found.ours(name)
        row = {"drafter": name}
        taus = {f"tau, {part}": found.tau(name, prompts) for part, prompts in parts.items()}
        row |= {title: tau.text() for title, tau in taus.items()}
        row["against none"] = found.times(name, "none")
        row["distinct 4-grams"] = f"{one.distinct_4grams or 0:.0%}"
        rows.append(row)
    return rows


def lines(found: "Compared") -> list[Line]:
    told = [
        line(f"tau, {one} / {other}, {part}", found.tau_ratio(one, other, prompts).text(unit="x"))
        for one, other in PAIRS
        for part, prompts in halves(found).items()
    ]
    better = found.best(["suffix chain", "small_model"], "none")
    told.append(
        line("speed, cascade against the better of its two", found.times("cascade", better))
    )
    return told


def host_time(bench: "Bench", batch: int) -> list[Line]:
    """Of drafting on the host, as a share of a round."""
    chosen = ("none", "suffix", "recycle")
    tried = {name: way for name, way in ways(bench, None).items() if name in chosen}
    found = bench.compare(f"host time, batch {batch}", tried, None, batch)
    plain = found.ours("none")
    told = []
    for name in chosen[1:]:
        one = found.ours(name)
        commit = one.seconds["commit"] / one.rounds - plain.seconds["commit"] / plain.rounds
        host = one.seconds["draft"] / one.rounds + max(0.0, commit)
        share = host / (one.decode_seconds / one.rounds)
        told.append(
            line(f"host time of {name}, batch {batch}", f"{share:.1%}", f"{1e3 * host:.2f} ms")
        )
    return told


def edits(wanted: TrainingFree) -> list[Line]:
    """Without a model: files that are written again with one name changed."""
    from experiments.records.lookups import edited, played
    from specdec.measuring.report import distinct_ngrams
    from specdec.models.load import load_tokenizer
    from specdec.plugins import build

    found = edited(str(wanted.edits), load_tokenizer(wanted.target))[: wanted.edited]
    vocabulary = 1 + max(token for one in found for token in (*one.given, *one.tokens))
    share = distinct_ngrams([one.tokens for one in found])
    told = []
    for name in ("ngram", "suffix"):
        given = {"length": wanted.nodes, "tree": True} if name == "ngram" else {}
        one = played(found, build("drafter", {"name": name, **given}), vocabulary, cold=False)
        tau = sum(one.tokens) / sum(one.rounds)
        how = f"{len(found)} files, distinct 4-grams {share or 0:.0%}"
        told.append(line(f"tau, edits of files, {name}", f"{tau:.2f}", how))
    return told


def main(wanted: TrainingFree) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    found = bench.compare("T", ways(bench, stored(wanted, bench)))
    told = lines(found) + (edits(wanted) if wanted.edits else [])
    for batch in wanted.batches:
        told += host_time(bench, batch)
    tables = [pd.DataFrame(table(found)), pd.DataFrame(told)]
    bench.publish("benchmark_training_free", tables, {f"T = {wanted.temperature:g}": found})


if __name__ == "__main__":
    start(main, TrainingFree)
