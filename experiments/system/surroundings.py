"""Where something was run: versions, machine, git state."""

import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from specdec.measuring.machine import Machine as Machine
from specdec.measuring.machine import cores as cores
from specdec.threads import measured

PACKAGES = ("specdec", "torch", "transformers", "tokenizers", "numpy", "scipy", "hydra-core")
# of the environment
TUNING = ("OMP_", "GOMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_", "LD_PRELOAD", "CUDA_", "PYTORCH_")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Git:
    commit: str
    dirty: bool  # files differ from the commit

    def __str__(self) -> str:
        return f"commit {self.commit[:12]}" + (" with local changes" if self.dirty else "")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a number depends on besides the configuration."""

    git: Git | None  # None outside a checkout
    versions: dict[str, str | None]
    machine: Machine
    threads: int  # of torch
    # seconds of the target's passes by which the number was chosen; empty where it was given
    thread_seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str]  # variables that tune libraries


def surroundings(apart_from: Path | None = None) -> Surroundings:
    """apart_from: a folder whose files make no checkout dirty."""
    import torch

    return Surroundings(
        git=git_state(ROOT, apart_from),
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        machine=Machine.this(),
        threads=torch.get_num_threads(),
        thread_seconds={str(count): seconds for count, seconds in measured().items()},
        environment={
            name: value for name, value in sorted(os.environ.items()) if name.startswith(TUNING)
        },
    )


def git_state(root: Path, apart_from: Path | None = None) -> Git | None:
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    where = ["."]
    if apart_from is not None and apart_from.resolve().is_relative_to(root):
        where.append(f":(exclude){apart_from.resolve().relative_to(root).as_posix()}")
    try:
        dirty = bool(git("status", "--porcelain", "--", *where))
        return Git(commit=git("rev-parse", "HEAD"), dirty=dirty)
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
