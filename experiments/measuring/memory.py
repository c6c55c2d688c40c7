"""Bytes: of weights, and what a call takes at its peak."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

# Linux's own files for the peak of a process, which psutil does not read: writing 5 starts the peak
# again from what is in use.
PEAK_RESET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Peak:
    """Bytes in use before a call and at the highest during it; None where the system does not
    tell."""

    before: int | None = None
    bytes: int | None = None


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """On an accelerator what torch has allocated, else the resident set of the process (its peak:
    on Linux)."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        found.before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device)
        return
    try:
        PEAK_RESET.write_text("5")
    except OSError:
        yield found
        return
    found.before = psutil.Process().memory_info().rss
    yield found
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    found.bytes = 1024 * int(line.split()[1])


def weights(*holders: Any) -> int:
    """Bytes of the distinct parameters and buffers of modules, and of those in attributes of other
    objects (a drafter's model, a language model's). What two share counts once."""
    found: dict[int, int] = {}
    for holder in holders:
        for module in _modules(holder):
            for tensor in (*module.parameters(), *module.buffers()):
                for part in _stored(tensor):
                    found[part.data_ptr()] = part.numel() * part.element_size()
    return sum(found.values())


def _stored(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor, or the tensors that a packed one consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        part = getattr(tensor, name)
        if isinstance(part, torch.Tensor):  # one that several processes hold names them, too
            yield from _stored(part)


def _modules(holder: Any, depth: int = 3) -> Iterator[torch.nn.Module]:
    if isinstance(holder, torch.nn.Module):
        yield holder
    elif depth and hasattr(holder, "__dict__"):
        for value in vars(holder).values():
            yield from _modules(value, depth - 1)
