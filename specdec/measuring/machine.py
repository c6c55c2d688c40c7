"""The machine that something runs on."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True)
class Machine:
    cpu: str
    cores: int  # that this process may use
    gpu: str | None
    system: str

    @classmethod
    def this(cls) -> "Machine":
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return cls(cpu=_cpu(), cores=cores(), gpu=gpu, system=platform.platform())

    @property
    def processor(self) -> str:
        """What the models ran on."""
        return self.gpu or self.cpu


def cores() -> int:
    """That this process may use."""
    process = psutil.Process()
    allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None  # macOS has none
    return len(allowed) if allowed else psutil.cpu_count() or 1


@cache
def _cpu() -> str:
    """The processor's name: on Linux from /proc/cpuinfo, for which neither Python nor psutil has a
    function."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
