"""What it costs to start and to record, each relative to the part that cannot be avoided.

python -m experiments.overhead
python -m experiments.overhead repeats=9 prompts=16

Starting: the commands run in turn, each in a fresh process. Both wall-clock and processor seconds
are measured (user + system, which a busy machine distorts less). Recording: one run is decoded,
measured and written in this process. Recording covers making the steps, what happens between calls
(memory is read), the numbers and intervals of the result, and writing both files.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.terminal.options import start
from experiments.terminal.progress import bar

TORCH = ("-c", "import torch")
COMMANDS = {
    "import torch": TORCH,
    "import specdec": ("-c", "import specdec"),
    "import models": ("-c", "import torch, transformers.modeling_utils"),
    "run --help": ("-m", "experiments.run", "--help"),
    "run --cfg job": ("-m", "experiments.run", "--cfg", "job"),
    "run debug=tiny": (
        "-m",
        "experiments.run",
        "debug=tiny",
        "progress=false",
        "hydra.run.dir={folder}",
    ),
}


@dataclass
class Overhead:
    """python -m experiments.overhead: seconds to start, and the share of a run's time that its
    records take."""

    repeats: int = 5
    prompts: int = 8
    max_new_tokens: int = 64
    drafter: str = "ngram"  # of the run that is recorded


def started(arguments: tuple[str, ...]) -> tuple[float, float]:
    """Seconds of a fresh process: wall clock, and processors."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, *(part.format(folder=Path(folder) / "run") for part in arguments)]
        began = time.perf_counter()
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with {process.returncode}")
    return wall, used.ru_utime + used.ru_stime


def starts(repeats: int) -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with bar("commands", repeats * len(COMMANDS)) as advance:
        for _ in range(repeats):
            for name, arguments in COMMANDS.items():
                found[name].append(started(arguments))
                advance()
    return found


@contextmanager
def timed(owner: type, name: str) -> Iterator[list[float]]:
    """A list that collects the seconds of every call of the method `name` inside the block."""
    method, seconds = getattr(owner, name), []

    def call(*arguments: Any) -> Any:
        began = time.perf_counter()
        found = method(*arguments)
        seconds.append(time.perf_counter() - began)
        return found

    setattr(owner, name, call)
    try:
        yield seconds
    finally:
        setattr(owner, name, method)


class Recording:
    """A run in this process, part by part."""

    def __init__(self, wanted: Overhead) -> None:
        from hydra import compose, initialize_config_dir

        from experiments import prompts
        from experiments.measuring import lineup
        from experiments.measuring.play import Play
        from experiments.study import schema
        from specdec.plugins import CONF

        schema.register()
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = compose(
                "run", [f"drafter={wanted.drafter}", f"prompts.limit={wanted.prompts}"]
            )
        self.settings = schema.settings_of(composed)
        self.ways = lineup.make(self.settings)
        target, batch = self.ways["method"].target, self.settings.batch_size
        self.play = Play(
            prompts.read(**self.settings.prompts.source),
            target,
            False,
            batch,
            wanted.max_new_tokens,
        )

    def shares(self) -> dict[str, float]:
        """Shares of the whole time, from the first prompt to the last file."""
        from experiments.measuring import measures
        from experiments.measuring.rounds import rounds, write_rounds
        from experiments.study.folder import RESULT, ROUNDS
        from experiments.system.files import write_json
        from specdec.measuring.recorder import Recorder

        began = time.perf_counter()
        with timed(Recorder, "step") as steps:
            played = list(self.play(self.ways, 0))
        decoded = time.perf_counter()
        frame = rounds("overhead", "0", "overhead", played)
        outcome = measures.outcome(played, self.ways, self.settings.sampling, frame)
        with tempfile.TemporaryDirectory() as folder:
            write_rounds(Path(folder) / ROUNDS, frame)
            write_json(Path(folder) / RESULT, {**asdict(outcome), "config": asdict(self.settings)})
        whole = time.perf_counter() - began
        samples = [sample for one in played for sample in one.samples.values()]
        around = decoded - began - sum(sample.wall_seconds for sample in samples)
        parts = {
            "recording: steps, inside generate": sum(steps),
            "recording: memory, between calls": around,
            "recording: numbers and files": began + whole - decoded,
        }
        return {
            name: seconds / whole
            for name, seconds in {**parts, "recording, in all": sum(parts.values())}.items()
        }


def main(wanted: Overhead) -> None:
    from experiments.system.libraries import quiet_transformers

    times = starts(wanted.repeats)
    torch = times["import torch"]
    table = Table("command", "s", "CPU s", "/ torch", "/ torch, CPU", title="Starting")
    for name, each in times.items():
        ratios = [
            median(one[clock] / base[clock] for one, base in zip(each, torch, strict=True))
            for clock in (0, 1)
        ]
        seconds = [median(one[clock] for one in each) for clock in (0, 1)]
        table.add_row(
            name, *(f"{number:.2f}" for number in seconds), *(f"{ratio:.2f}x" for ratio in ratios)
        )
    console = Console()
    console.print(table)
    quiet_transformers()
    recording = Recording(wanted)
    recording.shares()  # a warm-up: imports, and first calls
    shares = [recording.shares() for _ in range(wanted.repeats)]
    table = Table("what", "share of the run's time", title=f"Recording {wanted.prompts} prompts")
    for name in shares[0]:
        table.add_row(name, f"{median(one[name] for one in shares):.2%}")
    console.print(table)


if __name__ == "__main__":
    start(main, Overhead)
