"""A run's folder: what lies in it, and to whom it belongs."""

import json
import os
import socket
import time
from pathlib import Path

import pandas as pd

SCHEMA_VERSION = 2
RESULT, ROUNDS, FAILED, STARTED = "result.json", "rounds.parquet", "failed.json", "started.json"


def claim(folder: Path) -> None:
    """Take a folder for one run. Raises ValueError where another run has been there."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
    try:
        with open(folder / STARTED, "x", encoding="utf-8") as file:
            json.dump(mark, file)
    except FileExistsError:
        raise ValueError(
            f"{folder} already belongs to a run ({STARTED} is there); name another folder with hydra.run.dir=FOLDER "
            "(hydra.sweep.dir for a sweep), or delete this one if its results are not wanted"
        ) from None


def abandon(folder: Path) -> None:
    """Free a folder whose run failed or was killed, for another try. Raises ValueError while that run is alive on this machine;
    one on another machine cannot be asked, and is taken for dead."""
    mark = folder / STARTED
    if mark.exists():
        held = json.loads(mark.read_text(encoding="utf-8") or "{}")  # empty: killed between making it and filling it
        failed = (folder / FAILED).exists()
        if not failed and held.get("host") == socket.gethostname() and _alive(held["process"]):
            raise ValueError(
                f"{folder} belongs to process {held['process']}, which is still running; wait for it, or stop it"
            )
        taken = folder / f".{STARTED}.{os.getpid()}"
        try:
            os.replace(mark, taken)  # of several that resume, one wins; the others find nothing to rename
        except FileNotFoundError:
            raise ValueError(f"another process is resuming {folder}") from None
        taken.unlink()
    for name in (FAILED, ROUNDS):
        (folder / name).unlink(missing_ok=True)
    for name in (RESULT, FAILED, ROUNDS):
        for draft in folder.glob(f".{name}.*"):
            draft.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return process != os.getpid()


def write_rounds(path: Path, rounds: pd.DataFrame) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    rounds.to_parquet(draft, index=False)
    os.replace(draft, path)
