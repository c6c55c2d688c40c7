"""What verification costs at a large vocabulary: everything between logits and commit, per rule,
compared with building all laws once.

python -m experiments.verification_cost
python -m experiments.verification_cost vocabulary=32000 repeats=9

By default a vocabulary of 128,256, batch 1, a tree of 64 nodes and chains of 8.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.terminal.options import start
from experiments.terminal.tables import markdown


@dataclass
class Cost:
    """python -m experiments.verification_cost: milliseconds per round of each rule at a large
    vocabulary."""

    vocabulary: int = 128_256  # tokens
    repeats: int = 7
    seed: int = 0
    agreement: float = 0.7  # how much of the target's logits the draft's share
    output: str = "outputs/verification_cost"


def main(cost: Cost) -> None:
    from experiments.measuring.rule_times import measure
    from experiments.system.files import write_text
    from experiments.system.surroundings import surroundings

    table = measure(cost.vocabulary, cost.agreement, cost.repeats, cost.seed)
    folder = Path(cost.output)
    folder.mkdir(parents=True, exist_ok=True)
    where = surroundings()
    head = (
        f"Vocabulary {cost.vocabulary:,}, batch 1, float32, medians of {cost.repeats}; "
        f"{where.machine.processor}, {where.threads} threads"
    )
    text = f"{head}\n\n{markdown(table.map(_text))}"
    write_text(folder / "table.md", text)
    write_text(folder / "table.csv", table.to_csv(index=False))
    print(text)


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    start(main, Cost)
