"""A run's folder: its files, and the lock that keeps it to one run."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.system.files import drafts, read_json, write_json

RESULT, ROUNDS, FAILED, STARTED = "result.json", "rounds.parquet", "failed.json", "started.json"
OUTPUTS = "outputs.jsonl"
LOCK = ".lock"  # held while the run lasts; the system lets go of it when the process dies


@contextmanager
def claimed(folder: Path, again: bool = False) -> Iterator[None]:
    """Hold a folder for one run. Raises ValueError where another run is at work, or has been:
    unless `again`, which clears what a run that failed or was killed has left."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder} belongs to a run that is still at work ({_who(folder)}); wait for it, or "
            "stop it"
        ) from None
    try:
        if again:
            _clear(folder)
        elif (folder / STARTED).exists():
            raise ValueError(
                f"{folder} already belongs to a run ({STARTED} is there); name another folder with "
                "hydra.run.dir=FOLDER (hydra.sweep.dir for a sweep), or delete this one if its "
                "results are not wanted"
            )
        write_json(
            folder / STARTED,
            {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()},
        )
        yield
    finally:
        lock.release()


def _who(folder: Path) -> str:
    try:
        mark = read_json(folder / STARTED)
        return f"process {mark['process']} on {mark['host']}"
    except (OSError, ValueError, KeyError):  # it is about to write its name
        return "which has just begun"


def _clear(folder: Path) -> None:
    for name in (STARTED, FAILED, ROUNDS, OUTPUTS):
        (folder / name).unlink(missing_ok=True)
    for name in (STARTED, RESULT, FAILED, ROUNDS, OUTPUTS):
        for draft in drafts(folder / name):
            draft.unlink()
