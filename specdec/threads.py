"""How the programs (the `specdec` command, experiments.*) share a machine with others: few threads,
which do not spin for long. The library never calls this: its host process decides for itself.

Threads that wait for work spin, and on a busy machine they spin on processors that others need, at
every one of some hundred products of a pass. A small model gains nothing from a second thread.
"""

import os
import sys
from pathlib import Path

SPIN = "20000"  # turns that a waiting thread of libgomp spins; by default it is 100,000 and more
SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SMALL = 100 * 2**20  # bytes of weights up to which one thread is as fast as several
BUNDLED = Path(__file__).resolve().parent / "demo" / "target"


def settle() -> None:
    """Shorten the spin, unless the user has chosen how threads wait. Nothing where torch is loaded:
    it has read the environment by then."""
    if "torch" not in sys.modules and not any(name in os.environ for name in SPINNING):
        os.environ["GOMP_SPINCOUNT"] = SPIN


def threads_for(target: str) -> int | None:
    """Threads for a target by name: 1 for a small one on disk; None leaves torch's default, as
    where the user has set a number."""
    if any(name in os.environ for name in COUNTS):
        return None
    folder = BUNDLED if target == "demo" else Path(target).expanduser()
    try:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    except (OSError, ValueError):
        return None
    return 1 if 0 < size <= SMALL else None
