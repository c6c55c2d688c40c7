"""Files that are written whole or not at all."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to. It is renamed to `path` when the block ends well, and is
    deleted when it does not."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def drafts(path: Path) -> Iterator[Path]:
    """What killed processes have left of `path`."""
    return path.parent.glob(f".{path.name}.*")


def new_folder(parent: str | Path) -> Path:
    """A folder of the present second, made here; 2, 3 ... is added to a name that is taken."""
    first = Path(parent) / time.strftime("%Y-%m-%d_%H-%M-%S")
    names = chain([first], (first.with_name(f"{first.name}-{number}") for number in count(2)))
    folder = next(name for name in names if not name.exists())
    folder.mkdir(parents=True)
    return folder


def write_text(path: Path, text: str) -> None:
    with written(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False, default=_plain))


def read_json(path: Path) -> Any:
    """Raises ValueError, with the file's name, for what is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(
            f"{path} is no whole JSON file ({error}); delete it, and run what it belongs to again"
        ) from None


def _plain(number: Any) -> Any:
    """A NumPy number as Python's own."""
    return number.item()
