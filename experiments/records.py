"""What a run leaves behind: result.json and rounds.parquet, complete or not at all; and where it was run.

experiments/measures.py says what stands in them.
"""

import json
import os
import platform
import socket
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

SCHEMA_VERSION = 2
RESULT, ROUNDS, FAILED, STARTED = "result.json", "rounds.parquet", "failed.json", "started.json"


# --------------------------------------------------------------------------------------------------------- the folder


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Under a temporary name, then renamed: a killed run leaves no half file."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content, indent=1, allow_nan=False, default=_plain), encoding="utf-8")
    os.replace(draft, path)


def _plain(number: Any) -> Any:
    """A NumPy number as Python's own."""
    return number.item()


def write_rounds(path: Path, rounds: pd.DataFrame) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    rounds.to_parquet(draft, index=False)
    os.replace(draft, path)


# ---------------------------------------------------------------------------------------------------- where it was run


def surroundings() -> dict[str, Any]:
    """Versions, machine and git state: what a number depends on besides the configuration."""
    import torch

    packages = ("specdec", "torch", "transformers", "tokenizers", "numpy", "scipy", "hydra-core")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    tuning = ("OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_", "LD_PRELOAD", "CUDA_", "PYTORCH_")
    return {
        "git": git_state(Path(__file__).resolve().parent.parent),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpu": gpu,
            "system": platform.platform(),
        },
        "threads": torch.get_num_threads(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(tuning)},
    }


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a checkout."""
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
