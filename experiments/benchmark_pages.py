"""What memory in pages and memory in 8 bits cost and save: the same texts decoded over each kind of
memory in turn, in one process; medians over turns of ratios within a turn.

    python -m experiments.benchmark_pages
    python -m experiments.benchmark_pages turns=1 batches=[1] new_tokens=8        a trial

Rows begin with `context` - `new_tokens` tokens of the prompts, so that they end at the context.
The last lines are about rows of unlike length, the longest at the context.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Line, line
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    import specdec


@dataclass
class Benchmark:
    """python -m experiments.benchmark_pages: decode over contiguous memory, pages and 8 bits in
    turn, and print a table."""

    target: str = "demo"
    draft: str = "demo-draft"
    prompts: str = "demo"
    dtype: str = "bfloat16"
    # tokens of each prompt
    context: int = 512
    # that each prompt adds
    new_tokens: int = 64
    # rows of a batch
    batches: list[int] = field(default_factory=lambda: [1, 8])
    depth: int = 4  # of the draft model's chain
    temperature: float = 0.6
    # how often each way decodes
    turns: int = 5
    # tokens of a page
    page: int = 16
    seed: int = 0
    threads: int | None = None


def kinds(page: int) -> "dict[str, specdec.KV]":
    """Of memory."""
    from specdec.interfaces import KV

    return {
        "contiguous": KV(),
        "pages": KV("paged", page=page),
        "8 bits": KV(dtype="int8"),
        "pages of 8 bits": KV("paged", page=page, dtype="int8"),
    }


class Rows:
    """Long texts, made of prompts one after the other."""

    def __init__(self, wanted: Benchmark) -> None:
        import specdec
        from experiments import prompts
        from experiments.system.libraries import quiet_transformers, set_threads

        quiet_transformers()
        set_threads(wanted.threads)
        self.wanted = wanted
        plain = specdec.load(wanted.target, dtype=wanted.dtype)
        set_threads(wanted.threads, plain)
        self.targets = {name: plain.with_kv(kv) for name, kv in kinds(wanted.page).items()}
        self.draft = specdec.load(wanted.draft, dtype=wanted.dtype)
        read = prompts.read("jsonl", wanted.prompts, category="category", limit=None)
        tokenizer: Any = plain.tokenizer
        self.tokens = [token for one in read for token in tokenizer(one.text)["input_ids"]]

    def of(self, lengths: Sequence[int]) -> list[list[int]]:
        """Texts of these lengths; the prompts are as many times repeated as needed."""
        tokens = self.tokens * (1 + sum(lengths) // len(self.tokens))
        texts, first = [], 0
        for length in lengths:
            texts.append(tokens[first : first + length])
            first += length
        return texts

    def decoded(self, kind: str, drafter: Any, lengths: Sequence[int]) -> Any:
        """The report of a run."""
        import specdec

        wanted = self.wanted
        return specdec.generate(
            self.targets[kind],
            self.of(lengths),
            drafter=drafter,
            max_new_tokens=wanted.new_tokens,
            temperature=wanted.temperature,
            ignore_eos=True,
            seed=wanted.seed,
        ).report


def speeds(rows: Rows, drafter: Any, lengths: Sequence[int]) -> dict[str, list[float]]:
    """Rounds per second of each kind of memory, by turn; the first turn is a warm-up. (Tokens per
    round differ where 8 bits change the law.)"""
    found = defaultdict(list)
    for turn in range(rows.wanted.turns + 1):
        for kind in rows.targets:
            report = rows.decoded(kind, drafter, lengths)
            if turn:
                found[kind].append(report.target_calls / report.decode_seconds)
    return found


def peak(rows: Rows, lengths: Sequence[int]) -> float:
    """Bytes of the pages that these rows hold at the end, over those of contiguous memory."""
    target, contiguous = rows.targets["pages"], max(lengths) * len(lengths)
    with target.open(len(lengths), 0) as session:
        return sum(map(session.pages_for, lengths)) * session.page / contiguous


def lines(rows: Rows) -> list[Line]:
    from drafters.small_model import SmallModel

    wanted, told = rows.wanted, []
    chain = SmallModel(rows.draft, depth=wanted.depth)
    for batch in wanted.batches:
        lengths = [wanted.context - wanted.new_tokens] * batch
        for name, drafter in (("none", "none"), ("small_model", chain)):
            found = speeds(rows, drafter, lengths)
            plain = found.pop("contiguous")
            title = f"batch {batch}, `{name}`"
            told.append(line(f"{title}: contiguous", f"{median(plain):.0f} rounds/s"))
            for kind, each in found.items():
                ratios = [one / other for one, other in zip(each, plain, strict=True)]
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                told.append(line(f"{title}: {kind}", f"{median(ratios):.2f}x", spread))
    whole = rows.targets["contiguous"].bytes_per_token()
    for kind, target in rows.targets.items():
        share = target.bytes_per_token() / whole
        told.append(line(f"bytes per token: {kind}", f"{target.bytes_per_token()}", f"{share:.0%}"))
    unlike = [wanted.context * number // 8 for number in range(1, 9)]
    told.append(
        line(
            "pages / contiguous memory, 8 rows of unlike length",
            f"{peak(rows, unlike):.2f}",
            f"{unlike[0]} to {unlike[-1]} tokens",
        )
    )
    return told


def main(wanted: Benchmark) -> None:
    import pandas as pd

    from experiments.terminal.tables import markdown

    rows = Rows(wanted)
    print(markdown(pd.DataFrame(lines(rows))))
    print(
        f"Medians of {wanted.turns} turns, the range behind them; {wanted.dtype}, contexts of "
        f"{wanted.context - wanted.new_tokens} to {wanted.context} tokens, pages of {wanted.page}."
    )


if __name__ == "__main__":
    start(main, Benchmark)
