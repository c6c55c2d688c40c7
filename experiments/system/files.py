"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Under a temporary name, then renamed: a killed run leaves no half file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1, allow_nan=False, default=_plain), encoding="utf-8")
    os.replace(draft, path)


def _plain(number: Any) -> Any:
    """A NumPy number as Python's own."""
    return number.item()
