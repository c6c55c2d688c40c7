"""Checks, one after the other; the doctor's, in their order."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.checkups import acceptance, costs, fit, law, positions, text
from experiments.checkups.finding import Finding, does_not_apply, wrong
from experiments.checkups.patient import Patient
from experiments.terminal.refusals import FULL


@dataclass(frozen=True)
class Check:
    name: str
    ask: Callable[[Any], Finding]  # of a Patient
    decodes: bool = True  # it needs a drafter that takes the target


CHECKS = (
    Check("vocabulary", fit.vocabulary, decodes=False),
    Check("chat template", fit.template, decodes=False),
    Check("law on tables", law.tables),
    Check("law of samples", law.samples),
    Check("greedy tokens", law.greedy),
    Check("loops", text.loops),
    Check("acceptance", acceptance.acceptance),
    Check("place of drafts", positions.drafts),
    Check("place of states", positions.states),
    Check("time", costs.where_the_time_goes),
    Check("does it pay", costs.pays),
)


def examine(patient: Patient, checks: Sequence[Check] | None = None) -> Iterator[Finding]:
    """Every check's finding, as soon as it is there. checks None: the doctor's."""
    for check in CHECKS if checks is None else checks:
        began = time.perf_counter()
        if check.decodes and patient.refusal is not None:
            found = does_not_apply("the drafter refuses this target")
        else:
            try:
                found = check.ask(patient)
            except Exception as error:  # whatever a plug-in raises is a finding
                if os.environ.get(FULL) == "1":
                    raise
                found = wrong(f"It failed with {type(error).__name__}: {error}")
        yield replace(found, check=check.name, seconds=time.perf_counter() - began)
