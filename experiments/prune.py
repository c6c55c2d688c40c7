"""A drafter made out of a target: a copy with zeros among its weights, as save_pretrained writes it
(safetensors), with the target's tokenizer.

python -m experiments.prune target=demo sparsity=0.5 output=pruned/sparsity-0.5
python -m experiments.prune target=FOLDER method=magnitude pattern=2:4 output=FOLDER

Then: python -m experiments.run drafter=small_model drafter.model=pruned/sparsity-0.5
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from experiments.terminal.options import start


@dataclass
class Prune:
    """python -m experiments.prune: a draft model made from a target by setting weights to zero."""

    output: str = MISSING
    target: str = "demo"
    sparsity: float = 0.5  # the share of weights of each linear layer that become zero
    method: str = "wanda"  # or magnitude, which reads no text
    pattern: str = "unstructured"  # or 2:4, two of every four inputs
    dtype: str | None = None
    text: str = "stdlib"  # or a folder, a text file, JSON lines; held-out documents are not read
    text_field: str = "text"  # of JSON lines
    # files of a folder
    patterns: list[str] = field(default_factory=lambda: ["*.py", "*.md", "*.txt"])
    places: int = 64  # positions in the text, in groups of `batch`
    batch: int = 16  # rows of a pass
    context: int = 128  # tokens of each
    seed: int = 0


def main(wanted: Prune) -> None:
    from experiments.system.libraries import quiet_transformers
    from experiments.training import pruning
    from experiments.training.calibration import read_places
    from specdec.models.load import load

    quiet_transformers()
    pruning.check(wanted.method, wanted.pattern, wanted.sparsity)
    place = Path(wanted.output).expanduser()
    if place.exists():
        raise ValueError(f"{place} is there already; give another output, or delete it")
    target = load(wanted.target, dtype=wanted.dtype)
    texts = []
    if wanted.method == "wanda":
        what = (wanted.places, wanted.batch, wanted.seed, wanted.text_field)
        texts = read_places(target, wanted.text, wanted.patterns, wanted.context, *what)
    model = pruning.pruned(target.model, wanted.method, wanted.pattern, wanted.sparsity, texts)
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        model.save_pretrained(draft)
        if target.tokenizer is not None:
            target.tokenizer.save_pretrained(draft)
        os.replace(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    print(
        f"{place}: {pruning.zeros(model):.1%} of the weights of its linear layers are zero; "
        f"drafter=small_model drafter.model={place}"
    )


if __name__ == "__main__":
    start(main, Prune)
