"""What verification costs at a large vocabulary: everything between logits and commit, per rule, beside building all laws once.

python -m experiments.verification_cost                        vocabulary 128,256, batch 1, a tree of 64 nodes, chains of 8
python -m experiments.verification_cost vocabulary=32000 repeats=9
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.terminal import options


@dataclass
class Cost:
    """python -m experiments.verification_cost: milliseconds per round of each rule at a large vocabulary."""

    vocabulary: int = 128_256
    repeats: int = 7
    seed: int = 0
    agreement: float = 0.7  # how much of the target's logits the draft's share
    output: str = "outputs/verification_cost"


def main() -> None:
    cost = options.parse(Cost)
    from experiments.measuring.rule_times import measure
    from experiments.system.surroundings import surroundings

    table = measure(cost.vocabulary, cost.agreement, cost.repeats, cost.seed)
    folder = Path(cost.output)
    folder.mkdir(parents=True, exist_ok=True)
    here = surroundings()
    where = f"{here['machine']['cpu']}, {here['threads']} threads"
    head = f"Vocabulary {cost.vocabulary:,}, batch 1, float32, medians of {cost.repeats}; {where}"
    text = f"{head}\n\n{table.to_string(index=False, float_format=lambda number: f'{number:.2f}')}\n"
    (folder / "table.txt").write_text(text)
    table.to_csv(folder / "table.csv", index=False)
    print(text)


if __name__ == "__main__":
    main()
