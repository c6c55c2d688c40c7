"""Where something was run: versions, machine, git state."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

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
class Machine:
    cpu: str
    cores: int  # that this process may use
    gpu: str | None
    system: str

    @property
    def processor(self) -> str:
        """What the models ran on."""
        return self.gpu or self.cpu


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a number depends on besides the configuration."""

    git: Git | None  # None outside a checkout
    versions: dict[str, str | None]
    machine: Machine
    threads: int  # of torch
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
        machine=Machine(
            cpu=_cpu(),
            cores=cores(),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            system=platform.platform(),
        ),
        threads=torch.get_num_threads(),
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


def cores() -> int:
    """That this process may use."""
    process = psutil.Process()
    allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None  # macOS has none
    return len(allowed) if allowed else psutil.cpu_count() or 1


def _cpu() -> str:
    """The processor's name: on Linux from /proc/cpuinfo, for which neither Python nor psutil has a
    function."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
