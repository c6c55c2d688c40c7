"""Whether anybody's decoder samples from the target's own law.

python -m experiments.audit target=demo command="python -m experiments.audits.generate target=demo"
python -m experiments.audit target=demo callable=mine.samplers:Mine

One line of JSON on standard output: verdict (`consistent` or `another law`), p, samples,
tv_upper_bound and more (docs/audit.md). The exit status is 1 for `another law`, and for an error,
which prints no such line.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from omegaconf import MISSING

from experiments.terminal.options import start


@dataclass
class Audit:
    """python -m experiments.audit target=NAME command="COMMAND" | callable=package.module:Name:
    compare samples of a decoder with the target's own law."""

    target: str = MISSING  # its name, folder or hub id
    command: str | None = None  # reads requests, writes samples, a line of JSON each
    callable: str | None = None  # a Sampler of a package that SPECDEC_ALLOW lists
    prompt: Any = "def read_csv("  # a text or token ids
    max_new_tokens: int = 6
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    samples: int | None = None  # null: as many as find a law at total variation `tv`
    tv: float = 0.05  # found with probability 0.99
    alpha: float = 1e-4  # how often a faithful decoder may be called another law
    least: float = 0.01  # probability of a continuation that is counted by itself
    batch: int = 64  # samples of a request
    seed: int = 0
    # null computes the target's law in float64; a dtype loads it and computes in that one
    dtype: str | None = None
    timeout: float = 600.0  # seconds that a command may take for an answer
    progress: bool = True


def main(wanted: Audit) -> None:
    from experiments.audits.sampler import Command, sampler_named
    from experiments.audits.verdict import ANOTHER_LAW, Plan, audit, check_prompt
    from experiments.system.libraries import quiet_transformers
    from experiments.terminal.progress import bar
    from specdec.models.load import load
    from specdec.requests import encode
    from specdec.sampling import Sampling

    if (wanted.command is None) == (wanted.callable is None):
        raise ValueError('give one of command="..." and callable=package.module:Name')
    quiet_transformers()
    sampling = Sampling(wanted.temperature, wanted.top_k, wanted.top_p)
    target = load(wanted.target, dtype=wanted.dtype)
    (prompt,) = encode(target, wanted.prompt)
    plan = Plan(
        prompt,
        wanted.max_new_tokens,
        sampling,
        wanted.samples,
        wanted.batch,
        wanted.seed,
        wanted.alpha,
        wanted.tv,
        wanted.least,
        wanted.dtype is None,
    )
    check_prompt(plan, target)  # before anything is started
    sampler = (
        Command(wanted.command, wanted.timeout)
        if wanted.command is not None
        else sampler_named(str(wanted.callable))
    )
    try:
        found = audit(target, sampler, plan, partial(bar, shown=wanted.progress))
    finally:
        sampler.close()
    said = {"target": wanted.target, "sampler": wanted.command or wanted.callable}
    print(json.dumps({**found, **said}), flush=True)
    if found["verdict"] == ANOTHER_LAW:
        sys.exit(1)


if __name__ == "__main__":
    start(main, Audit)
