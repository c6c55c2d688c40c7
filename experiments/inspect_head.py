"""What a folder of a trained head holds, which target it needs, and how it is to be read.

python -m experiments.inspect_head trained/eagle3/head target=demo
python -m experiments.inspect_head demo-eagle3 target=demo temperature=0 --json

With a target, the head decodes some prompts as its files say, and under every other reading that
they allow: layer ids one lower and one higher, the other anchor convention (block heads), prompts
with the chat template and without. A convention that is off by one shows as a lower tau. The exit
status is 1 if something is wrong, and for an error. --json prints one JSON object on standard
output and nothing else there (docs/heads.md).
"""

import sys
from dataclasses import dataclass, field
from functools import partial

from experiments.checkups.options import CheckOptions
from experiments.terminal.options import start


@dataclass
class InspectHead(CheckOptions):
    """python -m experiments.inspect_head FOLDER target=NAME: what a trained head is, what it needs,
    and tau under every reading of its files."""

    names: list[str] = field(default_factory=list)  # the head's folder, or a bundled head
    target: str | None = None  # its name, folder or hub id; null: nothing is decoded


def main(wanted: InspectHead) -> None:
    if len(wanted.names) != 1:
        raise ValueError(
            "one folder of a head is inspected: python -m experiments.inspect_head FOLDER "
            f"target=NAME; got {len(wanted.names)}"
        )
    from experiments.checkups import fit, head_files, head_readings, positions
    from experiments.checkups.examine import Check, examine
    from experiments.checkups.finding import tell
    from experiments.checkups.head_patient import HeadPatient, drafter_of
    from experiments.prompts import read
    from experiments.study.schema import Sampling, Target
    from experiments.system.libraries import quiet_transformers, set_threads
    from experiments.terminal.progress import bar
    from specdec.errors import integer
    from specdec.heads.recognised import recognise

    quiet_transformers()
    set_threads(wanted.threads)
    integer("max_new_tokens", wanted.max_new_tokens, 1)
    found = recognise(wanted.names[0])
    patient = HeadPatient(
        Target(wanted.target or "demo", device=wanted.device, dtype=wanted.dtype),
        drafter_of(found),
        {"name": "auto"},
        Sampling(wanted.temperature, wanted.top_k, wanted.top_p),
        read("jsonl", wanted.prompts, limit=wanted.limit),
        wanted.max_new_tokens,
        partial(bar, shown=wanted.progress),
        wanted.chat,
        wanted.seed,
        found=found,
    )
    checks = [
        Check("layout", head_files.layout, decodes=False),
        Check("architecture", head_files.architecture, decodes=False),
        Check("reads", head_files.reads, decodes=False),
        Check("guesses", head_files.guesses, decodes=False),
        Check("needs", head_files.needs, decodes=False),
    ]
    if wanted.target is not None:
        set_threads(wanted.threads, patient.target)
        patient.check()
        checks += [
            Check("target", fit.vocabulary, decodes=False),
            Check("chat template", fit.template, decodes=False),
            Check("tau", head_readings.as_it_is, decodes=False),
            Check("layer ids", head_readings.layer_ids, decodes=False),
            Check("place of states", positions.states),
            Check("anchor", head_readings.anchor, decodes=False),
            Check("prompts", head_readings.prompts, decodes=False),
            Check("best reading", head_readings.best, decodes=False),
        ]
    about = {
        "head": wanted.names[0],
        "kind": found.kind,
        "target": wanted.target,
        "temperature": wanted.temperature,
    }
    if tell(examine(patient, checks), about, wanted.json):
        sys.exit(1)


if __name__ == "__main__":
    start(main, InspectHead)
