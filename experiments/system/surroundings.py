"""Where something was run: versions, machine, git state."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def surroundings() -> dict[str, Any]:
    """Versions, machine and git state: what a number depends on besides the configuration."""
    import torch

    packages = ("specdec", "torch", "transformers", "tokenizers", "numpy", "scipy", "hydra-core")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    tuning = ("OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_", "LD_PRELOAD", "CUDA_", "PYTORCH_")
    return {
        "git": git_state(Path(__file__).resolve().parents[2]),
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
