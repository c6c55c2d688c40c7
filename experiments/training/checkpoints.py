"""Checkpoints of a training run: everything it needs to continue as if nothing had happened, and
the settings it was begun with. A checkpoint is a folder that is written next to the last one and
then replaces it, so that a kill always leaves a complete one.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS, OPTIMIZERS, PROGRESS = "weights.safetensors", "optimizers.safetensors", "progress.json"
LOG, SETTINGS, BEST = "log.json", "settings.json", "best.safetensors"
Settings = Mapping[str, Any]


@dataclass
class Progress:
    """How far a training has come."""

    step: int = 0  # steps done
    loss: float | None = None  # its running mean
    seconds: float = 0.0  # spent, by all the runs that went on from one another
    training: float = 0.0  # of these, in steps: without evaluations and checkpoints
    log: list[dict[str, float]] = field(default_factory=list)  # an entry per evaluation
    best: dict[str, Tensor] | None = None  # weights of the evaluation that was best so far


def save(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    folder: Path,
    progress: Progress,
    settings: Settings | None = None,
) -> None:
    """Write `folder`/checkpoint as a whole or not at all."""
    fresh, place = folder / "checkpoint.new", folder / "checkpoint"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, fresh / WEIGHTS)
    state = {
        f"{number}/{index}/{key}": torch.as_tensor(value).contiguous()
        for number, optimizer in enumerate(optimizers)
        for index, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
    }
    save_file(state, fresh / OPTIMIZERS)
    if progress.best is not None:
        save_file(progress.best, fresh / BEST)
    reached = asdict(replace(progress, best=None))
    del reached["best"]
    (fresh / LOG).write_text(json.dumps(reached.pop("log"), indent=1))
    (fresh / PROGRESS).write_text(json.dumps(reached))
    if settings is not None:
        (fresh / SETTINGS).write_text(json.dumps(settings, indent=1))
    old = folder / "checkpoint.old"
    if place.exists():  # if not, a kill came between the two renames below, and the old one is left
        shutil.rmtree(old, ignore_errors=True)
        os.replace(place, old)
    os.replace(fresh, place)
    shutil.rmtree(old, ignore_errors=True)


def load(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], folder: Path) -> Progress:
    """Fill model and optimisers from the last whole checkpoint, if there is one."""
    place = last(folder)
    if place is None:
        return Progress()
    weights = load_file(place / WEIGHTS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    flat = load_file(place / OPTIMIZERS)
    for number, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        whole["state"] = {}
        for name, value in flat.items():
            which, index, key = name.split("/")
            if int(which) == number:
                whole["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(whole)
    reached = json.loads((place / PROGRESS).read_text())
    log = json.loads((place / LOG).read_text())
    best = load_file(place / BEST) if (place / BEST).exists() else None
    return Progress(**reached, log=log, best=best)


def last(folder: Path) -> Path | None:
    """The last whole checkpoint below `folder`."""
    places = (folder / "checkpoint", folder / "checkpoint.old")
    return next((place for place in places if (place / PROGRESS).exists()), None)


def written(place: Path) -> str:
    """When a checkpoint was written."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime((place / PROGRESS).stat().st_mtime))


def agree(folder: Path, settings: Settings) -> None:
    """Raise ValueError, listing what differs, where a checkpoint has other settings than these.

    Only what `settings` says is compared. Where a text is known to be the same, its name is not.
    """
    place = last(folder)
    if place is None:
        unread = folder / "checkpoint" / LOG
        if unread.exists():
            raise ValueError(
                f"{unread.parent} is a checkpoint of an earlier version, which does not say with "
                "which settings it was made; give another output=FOLDER, or delete it"
            )
        return
    theirs, ours = _flat(_read(place)), _flat(settings)
    if "text.digest" in ours and theirs.get("text.digest") == ours["text.digest"]:
        ours = {key: value for key, value in ours.items() if not key.startswith("text.")}
    if differ := differences(theirs, ours):
        raise ValueError(
            f"{place} is of a training with other settings: {'; '.join(differ)}. Give another "
            f"output=FOLDER, or delete {place} to begin anew"
        )


def differences(theirs: Settings, ours: Settings) -> list[str]:
    """What of our settings another run had otherwise."""
    return [
        f"{key} {theirs.get(key)!r}, now {value!r}"
        for key, value in ours.items()
        if theirs.get(key) != value
    ]


def _read(place: Path) -> Settings:
    path = place / SETTINGS
    return json.loads(path.read_text()) if path.exists() else {}


def _flat(settings: Settings, before: str = "") -> dict[str, Any]:
    """{"text": {"source": x}} as {"text.source": x}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value
    return found
