"""One recipe for every head: guess the target's law some steps ahead, on real text, on the target's
own samples, or on both."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

import specdec
from experiments.training.losses import distance, mass_by_rank
from experiments.training.teacher import Lesson, Teacher
from specdec.heads.head import Head
from specdec.interfaces import Drafter
from specdec.models.language_model import TransformersLM

RANKS = 10  # of the table of accuracies that static trees are built from


def loss_of(
    head: Head,
    teacher: Teacher,
    lesson: Lesson,
    loss: str,
    depth_weight: float,
    states_weight: float = 0.0,
    confidence_weight: float = 0.0,
) -> Tensor:
    """Mean over positions and depths of the distance to the target's law, depth i weighted by
    depth_weight ** i, plus `states_weight` times the smooth L1 distance of guessed to real states
    (EAGLE 2401.15077, section 4.1) and `confidence_weight` times the cross-entropy of the guessed
    to the real share of drafts that is accepted, sum of min(p, q) (DSpark 2607.05147). Guesses
    about another document than their own do not count."""
    total, weights = lesson.last.new_zeros((), dtype=torch.float32), 0.0
    documents = teacher.documents(lesson.ids)
    for index, guess in enumerate(head.guesses(lesson.ids, lesson.taps, teacher.target)):
        weight = depth_weight**index
        counts, truth = guess.counts(documents), guess.truth(lesson.last)
        p = teacher.law(truth)
        if head.token_ids is not None:
            p = p[..., head.token_ids]
        part = distance(p.flatten(0, 1), guess.logits.flatten(0, 1), loss).view(counts.shape)
        if states_weight and guess.states is not None:
            distances = smooth_l1_loss(guess.states.float(), truth.float(), reduction="none")
            part = part + states_weight * distances.mean(-1)
        if confidence_weight and guess.confidence is not None:
            accepted = torch.minimum(p, guess.logits.detach().float().softmax(-1)).sum(-1)
            part = part + confidence_weight * binary_cross_entropy_with_logits(
                guess.confidence.float(), accepted, reduction="none"
            )
        mean = (part * counts).sum() / counts.sum().clamp(min=1)
        total, weights = total + weight * mean, weights + weight
    return total / weights


@torch.no_grad()
def accuracies(
    head: Head, teacher: Teacher, lessons: Sequence[Lesson], temperature: float, device: str
) -> list[list[float]]:
    """(depths, RANKS): the probability that the target, at `temperature`, says the token that the
    head ranks r-th at each depth, given that it said what the text says before."""
    table: list[Tensor] = []
    for lesson in lessons:
        with torch.autocast(device, torch.bfloat16):
            guesses = head.guesses(lesson.ids, lesson.taps, teacher.target)
        documents = teacher.documents(lesson.ids)
        for index, guess in enumerate(guesses):
            counts, p = guess.counts(documents), teacher.law(guess.truth(lesson.last), temperature)
            if head.token_ids is not None:
                p = p[..., head.token_ids]
            mass = mass_by_rank(p[counts], guess.logits[counts], RANKS) / len(lessons)
            if index == len(table):
                table.append(torch.zeros_like(mass))
            table[index] += mass
    return [[round(value, 5) for value in row.tolist()] for row in table]


@dataclass(frozen=True)
class Decoding:
    """What counts in the end: tokens per round when a drafter really decodes held-out openings,
    with its tree and the rule that `auto` picks."""

    target: TransformersLM
    prompts: list[list[int]]
    new_tokens: int
    temperature: float

    def tau(self, drafter: Drafter) -> float:
        options = {
            "temperature": self.temperature,
            "max_new_tokens": self.new_tokens,
            "ignore_eos": True,
        }
        return float(
            specdec.generate(self.target, self.prompts, drafter=drafter, **options).report.tau
        )


@dataclass(frozen=True)
class Validation:
    """What is printed while a head trains, on held-out text."""

    teacher: Teacher
    windows: Callable[[int], np.ndarray]  # held out
    batches: int
    decoding: Decoding
    make: Callable[[Head], Drafter]
    device: str

    def lessons(self, batches: int) -> list[Lesson]:
        return [self.teacher.on_the_fly(self.windows)(step) for step in range(batches)]

    def __call__(self, head: Head) -> dict[str, float]:
        temperature = self.decoding.temperature
        table = accuracies(head, self.teacher, self.lessons(self.batches), temperature, self.device)
        head.notes = {"accuracies": table, "temperature": temperature}
        copied = copy.deepcopy(head).to(self.teacher.target.dtype)
        found = {"tau": self.decoding.tau(self.make(copied))}
        for depth, row in enumerate(table):
            found[f"top1_depth{depth + 1}"] = row[0]
            found[f"top5_depth{depth + 1}"] = sum(row[:5])
        return found
