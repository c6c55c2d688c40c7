"""What was learnt of survivals, as a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

LAYOUT = "survival 1"


def save(path: str | Path, state: Mapping[str, np.ndarray]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: np.ascontiguousarray(value, dtype=np.float64) for name, value in state.items()}
    save_file(values, path, {"layout": LAYOUT})


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Raises ValueError for what `save` has not written."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"learnt names no file: {path}; the drafter's save(path) writes one")
    try:
        with safe_open(path, "numpy") as file:
            layout = (file.metadata() or {}).get("layout")
            found = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ValueError(f"learnt: {path} is no safetensors file: {error}") from error
    if layout != LAYOUT:
        raise ValueError(f"learnt: {path} has the layout {layout!r}, expected {LAYOUT!r}")
    return found
