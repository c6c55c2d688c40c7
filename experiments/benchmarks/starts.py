"""How long compiling takes in a process that finds nothing compiled, and in the next one, which
finds in PyTorch's cache on disk what the first has left."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.benchmarks.options import Line, line


def decode_once() -> None:
    """In a process of its own: one prompt with a chain of 5, compiled."""
    import specdec
    from experiments.system.libraries import quiet_transformers, set_threads

    asked = json.loads(sys.argv[1])
    quiet_transformers()
    target = specdec.load(asked["target"], dtype=asked["dtype"], compile=True)
    set_threads(asked["threads"], target)
    model = specdec.load(asked["draft"], dtype=asked["dtype"])
    out = specdec.generate(
        target,
        "def read_csv(path):",
        drafter={"name": "small_model", "model": model, "depth": 5},
        max_new_tokens=asked["max_new_tokens"],
        ignore_eos=True,
    )
    print(json.dumps(out.report.compile_seconds))


def first_and_second(**asked: Any) -> Line:
    """target, draft, dtype, max_new_tokens, threads: of the two processes."""
    code = "from experiments.benchmarks.starts import decode_once; decode_once()"
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            done = subprocess.run(
                [sys.executable, "-c", code, json.dumps(asked)],
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
                cwd=Path(__file__).resolve().parents[2],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            seconds.append(float(done.stdout.splitlines()[-1]))
    return line(
        "compiling the pair (chain of 5, T = 0), nothing in the cache / second process",
        f"{seconds[0]:.0f} s / {seconds[1]:.0f} s",
    )
