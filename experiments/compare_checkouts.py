"""Is one version of the code slower than another? Both decode the same prompts in turn, each in a
process of its own.

    git worktree add ../before COMMIT
    python -m experiments.compare_checkouts before=../before

At each batch size it times plain decoding, a chain of 5 and a ranked tree of 16. It prints the
ratio of seconds per prompt, other checkout / this one (the median and its interval; below 1 this
one is slower), and the time of a round outside the models' forward passes. It uses only
`specdec.load` and `specdec.generate`, so that any two versions can be compared.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from experiments.terminal.options import start


@dataclass
class Checkouts:
    """python -m experiments.compare_checkouts before=FOLDER: this checkout's speed against another
    one's."""

    before: str = MISSING  # a folder with another version of the project
    now: str = "."  # the version that it is compared with
    target: str = "demo"
    draft: str = "demo-draft"
    dtype: str = "bfloat16"
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6])
    # prompts of one call
    batches: list[int] = field(default_factory=lambda: [1, 8])
    prompts: int = 8
    max_new_tokens: int = 96
    repeats: int = 3
    threads: int | None = None


WAYS = {
    "none": {"name": "none"},
    "chain of 5": {"name": "small_model", "depth": 5},
    "ranked, 16 nodes": {"name": "small_model", "depth": 4, "draw": "ranked", "nodes": 16},
}

WORKER = """
import json, sys, time
import torch
settings = json.loads(sys.argv[1])
if settings["threads"]:
    torch.set_num_threads(settings["threads"])
import specdec
from transformers.utils import logging
logging.set_verbosity_error(); logging.disable_progress_bar()
dtype = settings["dtype"]
models = {name: specdec.load(settings[name], dtype=dtype) for name in ("target", "draft")}
inside = [0.0, 0]
def timed(cls):
    forward = cls.forward
    def call(self, *arguments, **options):
        began = time.perf_counter()
        out = forward(self, *arguments, **options)
        inside[0] += time.perf_counter() - began
        return out
    cls.forward = call
for cls in {type(model.model) for model in models.values()}:
    timed(cls)
for line in sys.stdin:
    asked = json.loads(line)
    drafter = dict(asked["drafter"])
    if drafter["name"] == "small_model":
        drafter["model"] = models["draft"]
    inside[0] = 0.0
    began = time.perf_counter()
    out = specdec.generate(
        models["target"], asked["prompts"], drafter=drafter, temperature=asked["temperature"],
        max_new_tokens=asked["tokens"], request_ids=asked["ids"], ignore_eos=True,
    )
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "inside": inside[0], "rounds": len(out.steps),
                      "tokens": [row.tolist() for row in out.tokens]}), flush=True)
"""


class Worker:
    """A process that decodes with the code of one checkout."""

    def __init__(self, folder: Path, wanted: Checkouts) -> None:
        settings = {name: getattr(wanted, name) for name in ("target", "draft", "dtype", "threads")}
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        command = [sys.executable, "-c", WORKER, json.dumps(settings)]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, **asked: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise ValueError("a worker ended; what it said stands above")
        return dict(json.loads(line))

    def close(self) -> None:
        self.process.communicate()


def compare(wanted: Checkouts) -> list[dict[str, Any]]:
    """One row per way, temperature and batch."""
    from experiments import prompts
    from experiments.measuring import ways
    from experiments.measuring.intervals import median_interval
    from experiments.prompts.conversation import Conversation
    from experiments.system.libraries import check_threads, quiet_transformers
    from experiments.terminal.progress import bar

    check_threads(wanted.threads)
    quiet_transformers()
    target = ways.load(wanted.target, dtype=wanted.dtype)
    read = prompts.read(
        "jsonl", "demo", category="category", limit=max(wanted.prompts, *wanted.batches)
    )
    ids = [Conversation(prompt, target.tokenizer, False, ()).ids for prompt in read]
    workers = {
        name: Worker(Path(getattr(wanted, name)).resolve(), wanted) for name in ("before", "now")
    }
    rows = []
    with bar(
        "checkouts", len(WAYS) * len(wanted.batches) * len(wanted.temperatures) * wanted.repeats
    ) as advance:
        for (way, drafter), batch, temperature in (
            (way, batch, temperature)
            for temperature in wanted.temperatures
            for batch in wanted.batches
            for way in WAYS.items()
        ):
            found: dict[str, list[dict[str, Any]]] = defaultdict(list)
            chosen = [
                ids[first : first + batch]
                for first in range(0, max(wanted.prompts - batch + 1, 1), batch)
            ]
            for repeat in range(wanted.repeats + 1):  # the first is a warm-up
                for number, some in enumerate(chosen):
                    order = list(workers) if (repeat + number) % 2 else list(workers)[::-1]
                    for name in order:
                        first = number * batch
                        done = workers[name](
                            drafter=drafter,
                            prompts=some,
                            ids=list(range(first, first + len(some))),
                            temperature=temperature,
                            tokens=wanted.max_new_tokens,
                        )
                        if repeat:
                            found[name].append(done)
                advance() if repeat else None
            pairs = list(zip(found["before"], found["now"], strict=True))
            outside = {
                name: median_interval(
                    [1e3 * (one["seconds"] - one["inside"]) / one["rounds"] for one in each]
                ).median
                for name, each in found.items()
            }
            rows.append(
                {
                    "way": way,
                    "T": temperature,
                    "batch": batch,
                    "before / now": median_interval(
                        [a["seconds"] / b["seconds"] for a, b in pairs]
                    ),
                    "ms outside before": outside["before"],
                    "ms outside now": outside["now"],
                    "same tokens": sum(a["tokens"] == b["tokens"] for a, b in pairs) / len(pairs),
                }
            )
            row = rows[-1]
            print(
                f"{way:18} T {temperature:g} batch {batch}: {row['before / now']}  outside a round "
                f"{outside['before']:.2f} -> {outside['now']:.2f} ms, same tokens "
                f"{row['same tokens']:.0%}",
                flush=True,
            )
    for worker in workers.values():
        worker.close()
    return rows


if __name__ == "__main__":
    start(compare, Checkouts)
