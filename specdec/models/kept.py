"""What drafters loaded by name, kept for the next one that asks for the same: each call of
`generate` makes its drafter anew, and would read the same files and compile the same passes again.

Only the last few are kept, and a folder whose files have changed is read again. Whoever wants to
change weights loads them with `specdec.load` instead, which shares nothing.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MOST = 4  # models and heads
Files = tuple[tuple[str, int, int], ...]  # name, time of the last change, size

_kept: OrderedDict[Hashable, tuple[Files, object]] = OrderedDict()
_lock = threading.RLock()


def kept(key: Hashable, folder: Path | None, make: Callable[[], T]) -> T:
    """What `make` gave for this key, if the files of `folder` are as they were; else it makes it
    now. None as folder: it cannot change."""
    with _lock:
        files = _files(folder)
        before = _kept.get(key)
        if before is None or before[0] != files:
            before = (files, make())
        _kept[key] = before
        _kept.move_to_end(key)
        while len(_kept) > MOST:
            _kept.popitem(last=False)
        return before[1]  # type: ignore[return-value]


def forget() -> None:
    """Keep nothing of what has been loaded so far."""
    with _lock:
        _kept.clear()


def _files(folder: Path | None) -> Files:
    if folder is None or not folder.is_dir():
        return ()
    found = [(file.name, file.stat()) for file in folder.iterdir() if file.is_file()]
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in found))
