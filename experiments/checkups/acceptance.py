"""How many drafts are accepted at each depth, beside what the weights promise on this text: the
accuracies that training measured for a head, the overlap of two laws for a draft model.

Letters: T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from experiments.checkups.finding import Finding, does_not_apply, good, note, numbered, wrong
from experiments.checkups.patient import Patient
from experiments.training.head import accuracies
from experiments.training.teacher import Lesson, Teacher
from specdec import SiblingLaw
from specdec.heads.head import Head
from specdec.models.language_model import TransformersLM
from specdec.sampling import COLDEST

SLACK = 0.1  # by which acceptance may miss what plain reading promises, beside three deviations
HALF, LESS = 0.5, 0.8  # of what training promised
FEW = 0.05


def acceptance(patient: Patient) -> Finding:
    if not patient.drafts:
        return does_not_apply("nothing is drafted")
    method = patient.outcome.method
    if not method.per_depth:
        return note("No node was drafted or reached, so nothing could be accepted.")
    rates = [group.accepted / group.reached for group in method.per_depth]
    said = f"Accepted at depths 1 to {len(rates)}, once reached: {numbered(rates)}"
    numbers: dict[str, Any] = {
        "per_depth": rates,
        "reached": [group.reached for group in method.per_depth],
    }
    if patient.head is not None:
        return _of_a_head(patient, patient.head, said, numbers)
    draft = getattr(patient.method, "model", None)  # not one that a cascade asks now and then
    if isinstance(draft, TransformersLM):
        return _of_a_model(patient, draft, said, numbers)
    if rates[0] < FEW:
        return note(f"{said}: next to nothing is accepted.", **numbers)
    return good(f"{said}. There is no promise to compare this with.", **numbers)


# --------------------------------------------------------------------------------- draft models


def _of_a_model(
    patient: Patient, draft: TransformersLM, said: str, numbers: dict[str, Any]
) -> Finding:
    first = patient.outcome.method.per_depth[0]
    found = torch.cat(list(_agreements(patient, draft)))
    promised = min(1.0, float(found.mean()))  # sums of rounded probabilities may pass 1
    measured = first.accepted / first.reached
    # Both are means over the same places: the coins of acceptance are the noise between them.
    deviation = math.sqrt(promised * (1 - promised) / first.reached)
    numbers |= {"promised": promised, "measured": measured}
    said += f". In plain passes over the text the two models agree by {promised:.2f} at depth 1"
    if measured < promised - SLACK - 3 * deviation:
        return wrong(
            f"{said}, and {measured:.2f} is accepted: the draft model is not fed the text that "
            "was committed (memory or positions are off), or the rule rejects too much.",
            **numbers,
        )
    if promised < FEW:
        return note(f"{said}: it knows next to nothing of what this target writes.", **numbers)
    return good(f"{said}, as acceptance shows.", **numbers)


@torch.inference_mode()
def _agreements(patient: Patient, draft: TransformersLM) -> Iterator[Tensor]:
    """Per output and round: the probability that a first drafted token is accepted, from plain
    passes over the text. That is sum of min(p, q) for a sampled one, p of q's best else."""
    sampling, drawn = patient.plain_sampling, patient.begun.law is not SiblingLaw.DET
    for prompt, sample in patient.samples:
        assert sample.report is not None
        kept = sample.report.rows.kept
        begins = torch.as_tensor(kept.cumsum() - kept) + len(prompt) - 1
        ids = torch.tensor([[*prompt, *sample.tokens[0]]], device=patient.target.device)
        p, q = (
            sampling.law(model.model(ids).logits[0, begins], list)
            for model in (patient.target, draft)
        )
        yield torch.minimum(p, q).sum(-1) if drawn else p.gather(1, q.argmax(-1, True))[:, 0]


# ---------------------------------------------------------------------------------------- heads


def _of_a_head(patient: Patient, head: Head, said: str, numbers: dict[str, Any]) -> Finding:
    promised = head.notes.get("accuracies")
    usual = float(head.notes.get("temperature", patient.sampling.temperature))
    teacher = Teacher(patient.target, head.taps_for(patient.target))
    lessons = list(lessons_of(patient, teacher))
    here = [row[0] for row in table_of(head, teacher, lessons, usual)]
    own = min(1.0, table_of(head, teacher, lessons, patient.sampling.temperature)[0][0])
    numbers |= {"text_top1": here, "text_top1_own_temperature": own}
    said += (
        f". In plain passes over the text the head's best guesses are right with {numbered(here)}"
    )
    first = next((cell for cell in patient.outcome.method.acceptance if cell.rank == 0), None)
    ranked = patient.begun.law is SiblingLaw.DET
    if first is not None and ranked and first.reached:
        measured = first.accepted / first.reached
        deviation = math.sqrt(own * (1 - own) / first.reached)
        numbers |= {"first_guess_accepted": measured}
        if measured < own - SLACK - 3 * deviation:
            return wrong(
                f"{said}, and {measured:.2f} is accepted when it drafts ({own:.2f} at this "
                "temperature was to be expected): it is not fed what it was trained on.",
                **numbers,
            )
    if promised is None:
        return note(f"{said}; its file does not say what training measured.", **numbers)
    top = [row[0] for row in promised]
    numbers |= {"promised_top1": top, "promised_at_temperature": usual}
    said += f"; training measured {numbered(top)}"
    if here[0] < HALF * top[0]:
        return wrong(
            f"{said}: less than half. The head was trained for another target, tokenizer or "
            "chat template, or reads the wrong states.",
            **numbers,
        )
    if here[0] < LESS * top[0]:
        return note(f"{said}: this text is unlike what it was trained on.", **numbers)
    return good(f"{said}.", **numbers)


def lessons_of(patient: Patient, teacher: Teacher) -> Iterator[Lesson]:
    """What was decoded, as a head reads it in training."""
    for prompt, sample in patient.samples:
        ids = torch.tensor([[*prompt, *sample.tokens[0]]], device=patient.target.device)
        if ids.shape[1] > 8:  # beyond a head's furthest guess
            yield teacher.lesson(ids, teacher.states(ids))


def table_of(
    head: Head, teacher: Teacher, lessons: list[Lesson], temperature: float
) -> list[list[float]]:
    """(depths, ranks): how often each guess is right at this temperature."""
    target = teacher.target
    ready = head.on(target.device, target.dtype)
    return accuracies(ready, teacher, lessons, max(temperature, COLDEST), target.device.type)
