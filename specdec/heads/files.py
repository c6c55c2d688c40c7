"""Trained heads on disk: a folder with config.json and model.safetensors, written as a whole or not
at all, and read key by key. Pickles are refused."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdec.models.load import DEMO, weight_files

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CONVERT = "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"


def folder_of(name: str | Path) -> Path:
    """The folder of a head: one that is bundled ("demo-medusa" and so on), or a path."""
    bundled = DEMO / "heads" / str(name).removeprefix("demo-")
    is_bundled = str(name).startswith("demo-") and bundled.is_dir()
    return bundled if is_bundled else Path(name).expanduser()


class Published(NamedTuple):
    """What a folder holds, for a class of heads to be made of."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]  # as the file calls them
    names: Mapping[str, str] = MappingProxyType({})  # beginnings of our names -> the file's
    shared: tuple[str, ...] = ()  # weights that are the target's own: EMBEDDING, LM_HEAD
    target_layers: int | None = None  # how many layers its target has, where the file says it


def write_folder(
    folder: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Both files, beside `folder` first and then in its place."""
    final = Path(folder)
    new, old = final.with_name(final.name + ".new"), final.with_name(final.name + ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    whole = {name: weight.detach().contiguous() for name, weight in weights.items()}
    save_file(whole, new / WEIGHTS)
    (new / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and every safetensors file of a folder. Pickles are refused."""
    if not (folder / CONFIG).is_file():
        bundled = sorted(f"demo-{path.name}" for path in (DEMO / "heads").glob("*"))
        raise ValueError(
            f"no head at {folder}: a folder with {CONFIG} is expected, or one of "
            f"{', '.join(bundled)}"
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} must hold a JSON object, got {type(config).__name__}")
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder, CONVERT):
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is no whole safetensors file ({error}); copy it again"
            ) from None
    return config, weights


def fill(
    own_weights: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    what: str,
    where: str,
    names: Mapping[str, str],
) -> None:
    """Copy every weight of a module from `weights`. Raises ValueError, naming all of them, for keys
    that are left over or missing, and for weights that are not finite. what: "a dflash head";
    names: prefixes of the module's names -> prefixes in `weights`.

    The weights start as NaN, so that a forgotten one is noticed.
    """
    own = {renamed(name, names): value for name, value in own_weights.items()}
    with torch.no_grad():
        for value in own.values():
            if value.is_floating_point():
                value.fill_(torch.nan)
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if missing or extra or wrong:
        told = [
            f"missing: {', '.join(missing)}" if missing else "",
            f"not expected: {', '.join(extra)}" if extra else "",
            f"wrong shape: {', '.join(wrong)}" if wrong else "",
        ]
        raise ValueError(
            f"the weights in {where} do not fit {what}; {'; '.join(filter(None, told))}"
        )
    broken = sorted(name for name in own if not weights[name].isfinite().all())
    if broken:
        raise ValueError(
            f"the weights in {where} are NaN or infinite: {', '.join(broken)}; the file is "
            f"damaged, or training diverged. Copy it again, or take an earlier checkpoint of {what}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def renamed(name: str, names: Mapping[str, str]) -> str:
    """`name` with the first matching prefix replaced."""
    for ours, theirs in names.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
