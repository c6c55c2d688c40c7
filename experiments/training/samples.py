"""Self-distillation: text that the target wrote itself, so that its heads learn to guess what it
will say rather than what people wrote (Medusa 2401.10774, section 2.3.2). Each row opens with a
piece of real text and goes on with the target's own.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import specdec
from experiments.terminal.progress import bar
from experiments.training.checkpoints import differences
from experiments.training.text import Stream
from specdec.models.language_model import TransformersLM

console = Console(stderr=True)


def _agree(place: Path, settings: dict[str, Any]) -> None:
    """Write the settings that a folder of samples is made with, or compare them with those that it
    was begun with."""
    if not place.exists():
        place.write_text(json.dumps(settings, indent=1) + "\n")
    elif differ := differences(json.loads(place.read_text()), settings):
        raise ValueError(
            f"{place.parent} has samples of other settings ({'; '.join(differ)}); give another "
            "samples.folder"
        )


@dataclass(frozen=True)
class Rows:
    """Texts of one length (rows, length), handed out like the windows of a stream."""

    ids: np.ndarray

    def windows(self, length: int, count: int, seed: int, step: int) -> np.ndarray:
        """`count` rows (count, length) for a step: a pure function of its arguments; each pass in
        another order."""
        if length > self.ids.shape[1] or count > len(self.ids):
            raise ValueError(
                f"{count} windows of {length} were asked of {self.ids.shape[0]} samples of "
                f"{self.ids.shape[1]}"
            )
        per_pass = len(self.ids) // count
        epoch, index = divmod(step, per_pass)
        order = np.random.default_rng((seed, epoch)).permutation(len(self.ids))
        return self.ids[order[index * count : (index + 1) * count], :length].astype(np.int64)


def sample(
    target: TransformersLM,
    stream: Stream,
    folder: Path,
    rows: int,
    length: int,
    prompt: int,
    temperatures: Sequence[float],
    batch: int,
    seed: int,
) -> Rows:
    """`rows` texts of `length` tokens, the first `prompt` of which are real. Each batch is a file;
    those there are kept.

    Raises ValueError for a folder whose files were made with other settings.
    """
    if not 0 < prompt < length:
        raise ValueError(
            f"samples of {length} tokens cannot open with {prompt} of the text; give a prompt in "
            "between"
        )
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-rows // batch)
    console.print(
        f"samples: {count * batch} of {length} tokens, temperatures {list(temperatures)}, in "
        f"{folder}"
    )
    settings = {
        "target": target.name,
        "batch": batch,
        "length": length,
        "prompt": prompt,
        "seed": seed,
    }
    settings |= {"temperatures": [float(each) for each in temperatures], "text": stream.digest}
    _agree(folder / "samples.json", settings)
    files = [folder / f"{number:05d}.npy" for number in range(count)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    with bar("samples", count, done=count - len(missing)) as advance:
        for number in missing:
            opened = stream.windows(prompt, batch, seed, number)
            out = specdec.generate(
                target,
                opened.tolist(),
                drafter="none",
                max_new_tokens=length - prompt,
                temperature=float(temperatures[number % len(temperatures)]),
                ignore_eos=True,
                seed=seed * 1_000_003 + number,
            )
            written = np.stack(
                [
                    np.concatenate([row, new.numpy()])
                    for row, new in zip(opened, out.tokens, strict=True)
                ]
            )
            fresh = files[number].with_suffix(".new.npy")
            np.save(fresh, written.astype(np.int32))
            os.replace(fresh, files[number])
            advance()
    return Rows(np.concatenate([np.load(file) for file in files]))
