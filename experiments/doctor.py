"""What is right and wrong with a target, a drafter and a rule on this machine, in plain sentences.

python -m experiments.doctor target=demo drafter=small_model
python -m experiments.doctor target=MODEL drafter=eagle,heads=FOLDER,depth=4 temperature=0 --json

A check is `good`, a `note` (worth knowing, nothing is broken) or `wrong`. The exit status is 1 if
something is wrong, and for an error. --json prints one JSON object on standard output and nothing
else there (docs/doctor.md).
"""

import sys
from dataclasses import dataclass
from functools import partial

from experiments.checkups.options import CheckOptions
from experiments.terminal.options import start


@dataclass
class Doctor(CheckOptions):
    """python -m experiments.doctor target=NAME drafter=NAME,argument=value,...: check a pair and
    say in plain sentences what is right and what is wrong."""

    target: str = "demo"  # its name, folder or hub id
    drafter: str = "small_model"  # NAME,argument=value,... as in `specdec --drafter`
    verifier: str = "auto"
    extra_layers: int = 0  # of the target; they change its cost alone
    allow_lossy: bool = False


def main(wanted: Doctor) -> None:
    from experiments.checkups.examine import examine
    from experiments.checkups.finding import tell
    from experiments.checkups.patient import Patient
    from experiments.prompts import read
    from experiments.study.schema import Sampling, Target
    from experiments.system.libraries import quiet_transformers, set_threads
    from experiments.terminal.progress import bar
    from specdec.__main__ import drafter_choice
    from specdec.errors import integer

    quiet_transformers()
    set_threads(wanted.threads)
    integer("max_new_tokens", wanted.max_new_tokens, 1)
    patient = Patient(
        Target(
            wanted.target,
            device=wanted.device,
            dtype=wanted.dtype,
            extra_layers=wanted.extra_layers,
        ),
        drafter_choice(wanted.drafter),
        {"name": wanted.verifier},
        Sampling(wanted.temperature, wanted.top_k, wanted.top_p),
        read("jsonl", wanted.prompts, limit=wanted.limit),
        wanted.max_new_tokens,
        partial(bar, shown=wanted.progress),
        wanted.chat,
        wanted.seed,
        wanted.allow_lossy,
    )
    set_threads(wanted.threads, patient.target)
    patient.check()
    about = {
        "target": wanted.target,
        "drafter": wanted.drafter,
        "verifier": wanted.verifier,
        "temperature": wanted.temperature,
    }
    if tell(examine(patient), about, wanted.json):
        sys.exit(1)


if __name__ == "__main__":
    start(main, Doctor)
