"""How fast decoding is beside other busy processes, with the settings of the programs and with
those that torch starts with. Each setting has a process of its own; they decode the same prompts in
turn: on the machine as it is, and beside processes that do nothing but compute, begun before them
or after them.

    python -m experiments.benchmark_busy
    python -m experiments.benchmark_busy limit=1 max_new_tokens=16 rivals=2        a trial

Run it on a machine on which nothing else runs.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmarks.options import line
from experiments.terminal.options import start
from specdec.threads import COUNTS, OPEN, settle

OURS, DEFAULT = "ours", "torch's default"
WAYS = {"none": {"name": "none"}, "chain of 5": {"name": "small_model", "depth": 5}}


@dataclass
class Busy:
    """python -m experiments.benchmark_busy: tokens per second beside busy processes, with our
    settings and with torch's."""

    target: str = "demo"
    draft: str = "demo-draft"
    prompts: str = "demo"
    limit: int = 4
    max_new_tokens: int = 48
    dtype: str = "bfloat16"
    temperature: float = 0.6
    seed: int = 0
    rivals: int = 4  # busy processes
    compile: bool = False  # compiled passes
    output: str = "outputs/benchmark_busy"


def decode() -> None:
    """A process with one setting: a prompt and a way come in, seconds and tokens go out."""
    wanted = json.loads(sys.argv[1])
    if wanted["ours"]:
        settle()
    import torch

    import specdec
    from experiments.system.libraries import quiet_transformers, set_threads
    from specdec import plugins
    from specdec.threads import measured

    quiet_transformers()
    target = specdec.load(wanted["target"], dtype=wanted["dtype"], compile=wanted["compile"])
    if wanted["ours"]:
        set_threads(None, target)
    model = specdec.load(wanted["draft"], dtype=wanted["dtype"])
    print(json.dumps({"threads": torch.get_num_threads(), "seconds": measured()}), flush=True)
    made: dict[str, Any] = {}
    for asked in map(json.loads, sys.stdin):
        name = asked["drafter"]["name"]
        if name not in made:
            more = {"model": model} if name == "small_model" else {}
            made[name] = plugins.build("drafter", {**asked["drafter"], **more})
        began = time.perf_counter()
        out = specdec.generate(
            target,
            asked["prompt"],
            drafter=made[name],
            temperature=wanted["temperature"],
            max_new_tokens=wanted["max_new_tokens"],
            request_ids=[asked["number"]],
            seed=wanted["seed"],
        )
        seconds = time.perf_counter() - began - out.report.compile_seconds
        found = {"seconds": seconds, "tokens": len(out.tokens[0])}
        print(json.dumps(found), flush=True)


class Decoder:
    """Such a process."""

    def __init__(self, wanted: Busy, ours: bool) -> None:
        tuned = (*COUNTS, OPEN)
        environment = {name: value for name, value in os.environ.items() if name not in tuned}
        code = "from experiments.benchmark_busy import decode; decode()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps({**vars(wanted), "ours": ours})],
            env=environment,
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        begun = self._answer()
        self.threads, self.seconds = begun["threads"], begun["seconds"]

    def __call__(self, prompt: str, number: int, drafter: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        asked = {"prompt": prompt, "number": number, "drafter": drafter}
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        said = self.process.stdout.readline()
        if not said:
            raise ValueError("a process that decodes has ended; what it said is above")
        return dict(json.loads(said))

    def close(self) -> None:
        self.process.communicate()


@contextmanager
def decoders(wanted: Busy) -> Iterator[dict[str, Decoder]]:
    """One of each setting, warm."""
    with ExitStack() as stack:
        made = {}
        for setting in (DEFAULT, OURS):
            made[setting] = Decoder(wanted, setting == OURS)
            stack.callback(made[setting].close)
        for decoder in made.values():  # this compiles too
            for drafter in WAYS.values():
                decoder("def read_csv(path):", 0, drafter)
        yield made


@contextmanager
def rivals(count: int) -> Iterator[None]:
    """Beside so many processes that compute."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(wanted: Busy, made: dict[str, Decoder], machine: str) -> list[dict[str, Any]]:
    """Every prompt, in every way, by every process in turn. Settings take the lead by turns."""
    from experiments import prompts
    from experiments.terminal.progress import bar

    texts = [
        each.text
        for each in prompts.read("jsonl", wanted.prompts, category="category", limit=wanted.limit)
    ]
    found = []
    with bar(machine, len(texts) * len(WAYS) * len(made)) as advance:
        for number, prompt in enumerate(texts):
            names = list(made) if number % 2 else list(reversed(made))
            for way, drafter in WAYS.items():
                for setting in names:
                    out = made[setting](prompt, number, drafter)
                    row = {"machine": machine, "way": way, "setting": setting, "prompt": number}
                    row |= {"threads": made[setting].threads, "measured": made[setting].seconds}
                    found.append({**row, **out, "rate": out["tokens"] / out["seconds"]})
                    advance()
    return found


def main(wanted: Busy) -> None:
    import pandas as pd

    from experiments.measuring.intervals import median_interval
    from experiments.system.files import new_folder, write_json, write_text
    from experiments.system.surroundings import surroundings
    from experiments.terminal.tables import markdown

    beside = f"beside {wanted.rivals} busy processes"
    with decoders(wanted) as made:
        rows = measure(wanted, made, "quiet")
        if wanted.rivals:
            with rivals(wanted.rivals):
                rows += measure(wanted, made, f"{beside}, begun before them")
    if wanted.rivals:
        with rivals(wanted.rivals), decoders(wanted) as made:
            rows += measure(wanted, made, beside)
    lines = []
    for (machine, way), part in pd.DataFrame(rows).groupby(["machine", "way"], sort=False):
        rates = part.pivot_table(index="prompt", columns="setting", values="rate")
        ratio = median_interval(list(rates[OURS] / rates[DEFAULT]))
        threads = dict(zip(part["setting"], part["threads"], strict=True))
        how = "; ".join(
            f"{name}: {rates[name].median():.0f} tokens/s, threads {threads[name]}"
            for name in (OURS, DEFAULT)
        )
        lines.append(line(f"{machine}: {way}", f"{ratio}", how))
    where, asked = surroundings(), " ".join(["python -m experiments.benchmark_busy", *sys.argv[1:]])
    text = "\n".join(
        [
            markdown(pd.DataFrame(lines)),
            f"Ours against torch's default, medians over {wanted.limit} prompts, T = "
            f"{wanted.temperature:g}, {wanted.dtype}, {wanted.max_new_tokens} new tokens; "
            f"{where.machine.cores} cores, {where.machine.processor}. `{asked}`",
        ]
    )
    print(text)
    folder = new_folder(wanted.output)
    write_text(folder / "table.md", text + "\n")
    write_json(folder / "benchmark_busy.json", {"config": vars(wanted), "rows": rows})


if __name__ == "__main__":
    start(main, Busy)
