"""The target as a teacher: its hidden states at the taps that a head reads, computed on the fly or
kept on disk.

Letters: B windows, T tokens, K taps, d hidden size, V vocabulary.
"""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from experiments.terminal.progress import bar
from specdec.heads.packing import Documents, documents_of
from specdec.interfaces import Tap
from specdec.models.language_model import TransformersLM

console = Console(stderr=True)
Windows = Callable[[int], np.ndarray]  # a step's ids (B, T)


class Lesson(NamedTuple):
    """One batch: ids (B, T), the states that the head reads (B, T, K, d) and the LM head's inputs
    (B, T, d)."""

    ids: Tensor
    taps: Tensor
    last: Tensor


class Teacher:
    """Reads ids with the target. Frozen: nothing here is trained.

    apart: documents that share a window do not see one another.
    """

    def __init__(self, target: TransformersLM, taps: tuple[Tap, ...], apart: bool = False) -> None:
        self.target, self.taps, self.apart = target, taps, apart
        target.model.requires_grad_(False)
        target.check_head()
        self.stored: tuple[Tap, ...] = taps if "head" in taps else (*taps, "head")

    @torch.no_grad()
    def states(self, ids: Tensor) -> Tensor:
        """(B, T, stored taps, d) in the target's own precision, also where training autocasts: as
        decoding will see them, and the same whether they are cached or not."""
        decoder = self.target.model.get_decoder()
        # transformers masks packed documents where positions begin anew.
        positions = {"position_ids": self.documents(ids).position} if self.apart else {}
        with torch.autocast(ids.device.type, enabled=False):
            hidden = decoder(
                input_ids=ids, use_cache=False, output_hidden_states=True, **positions
            ).hidden_states
        return self.target.tapped(hidden, self.stored)

    def documents(self, ids: Tensor) -> Documents:
        """Of ids (B, T); one a window unless they are apart."""
        return documents_of(ids, self.target.eos_ids if self.apart else ())

    def lesson(self, ids: Tensor, states: Tensor) -> Lesson:
        return Lesson(ids, states[:, :, : len(self.taps)], states[:, :, self.stored.index("head")])

    @torch.no_grad()
    def law(self, last: Tensor, temperature: float = 1.0) -> Tensor:
        """(..., V) in float32 of LM-head inputs (..., d)."""
        return (self.target.head(last).float() / temperature).softmax(-1)

    def on_the_fly(self, windows: Windows) -> Callable[[int], Lesson]:
        def batch(step: int) -> Lesson:
            ids = torch.from_numpy(windows(step)).to(self.target.device)
            return self.lesson(ids, self.states(ids))

        return batch


class Cached:
    """The teacher's states of a fixed set of windows, memory-mapped on disk; a fill that was
    interrupted goes on.

    `steps` batches are read once and then used again and again, in their order.
    """

    def __init__(self, teacher: Teacher, windows: Windows, steps: int, folder: Path) -> None:
        self.teacher, self.steps, self.folder = teacher, steps, folder
        first = windows(0)
        hidden = teacher.target.config.hidden_size
        shape = (steps, *first.shape, len(teacher.stored), hidden)
        size = int(np.prod(shape)) * 2 + steps * first.size * 4
        folder.mkdir(parents=True, exist_ok=True)
        console.print(
            f"states of {steps} batches of {first.shape} tokens: {size / 1e9:.2f} GB in {folder}"
        )
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        self.filled = folder / "filled.json"
        described: dict[str, Any] = {
            "shape": list(shape),
            "taps": list(teacher.stored),
            "target": teacher.target.name,
            "apart": teacher.apart,
            # of the first batch: another seed or text is seen by it
            "text": zlib.crc32(first.tobytes()),
        }
        done = 0
        if self.filled.exists():
            found = json.loads(self.filled.read_text())
            done = found.pop("batches")
            if found != described:
                raise ValueError(
                    f"{folder} holds states of {found}, this run wants {described}; give another "
                    "folder"
                )
        elif size > free:
            raise ValueError(
                f"the states need {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; "
                "cache fewer"
            )
        mode = "r+" if (folder / "states.npy").exists() else "w+"
        # numpy knows no bfloat16: the bits are kept as integers.
        self.states = np.lib.format.open_memmap(folder / "states.npy", mode, np.int16, shape)
        self.ids = np.lib.format.open_memmap(
            folder / "ids.npy", mode, np.int32, (steps, *first.shape)
        )
        with bar("states", steps, done=done) as advance:
            for step in range(done, steps):
                ids = windows(step)
                states = teacher.states(torch.from_numpy(ids).to(teacher.target.device))
                self.ids[step] = ids
                self.states[step] = states.to(torch.bfloat16).view(torch.int16).cpu().numpy()
                if step + 1 == steps or (step + 1) % 50 == 0:
                    self.states.flush()
                    self.ids.flush()
                    fresh = self.filled.with_suffix(".new")
                    fresh.write_text(json.dumps({**described, "batches": step + 1}))
                    os.replace(fresh, self.filled)
                advance()

    def __call__(self, step: int) -> Lesson:
        device = self.teacher.target.device
        ids = torch.from_numpy(self.ids[step % self.steps].astype(np.int64)).to(device)
        states = (
            torch.from_numpy(np.array(self.states[step % self.steps]))
            .view(torch.bfloat16)
            .to(device)
        )
        return self.teacher.lesson(ids, states)
