"""Probes for drafts that are one place off: do drafted tokens match the text better one place
earlier or later, and does a head guess better from its neighbours' states?"""

import numpy as np

from experiments.checkups.acceptance import lessons_of, table_of
from experiments.checkups.finding import Finding, does_not_apply, good, wrong
from experiments.checkups.patient import Patient
from experiments.training.teacher import Lesson, Teacher
from specdec.output import Output
from specdec.trace.pieces import rounds_of

SHIFTS = (-2, -1, 1, 2)
ALPHA = 1e-4  # of a drafter that is in its place, per shift
GAIN = 1.1  # by which a neighbour's states must be better


def drafts(patient: Patient) -> Finding:
    """The first drafted token of every round against the text at its place and beside it."""
    from scipy.stats import binomtest

    if not patient.drafts:
        return does_not_apply("nothing is drafted")
    found = {shift: hits(patient.traced, shift) for shift in SHIFTS}
    places = max(each[2] for each in found.values())
    if not places:
        return does_not_apply("nothing was drafted in these texts")
    numbers = {
        "shifts": {str(shift): list(each) for shift, each in found.items()},
        "places": places,
    }
    for shift, (here, there, count) in found.items():
        if there and binomtest(there, here + there, 0.5, "greater").pvalue < ALPHA:
            side = "earlier" if shift < 0 else "later"
            return wrong(
                f"First drafted tokens match the text {abs(shift)} place(s) {side} in {there} of "
                f"{count} rounds, and their own place in {here}: the drafter is off by "
                f"{abs(shift)}.",
                **numbers,
            )
    here, there, count = max(found.values(), key=lambda each: each[1] / max(1, each[2]))
    return good(
        f"First drafted tokens are in their place: {here} of {count} match the text there, and no "
        f"more than {there} match a place beside it.",
        **numbers,
    )


def hits(output: Output, shift: int) -> tuple[int, int, int]:
    """Rounds whose first drafted token is the text's at its place; at `shift` places from it; and
    how many were compared: those where the two places differ."""
    here = there = count = 0
    for number, (prompt, tokens) in enumerate(zip(output.prompts, output.tokens, strict=True)):
        text = [*prompt, *tokens.tolist()]
        for kept in rounds_of(output, number):
            place = len(prompt) + kept.start
            children = np.flatnonzero(kept.step.parents[kept.row] == 0)
            if not len(children) or not 0 <= place + shift < len(text) or place >= len(text):
                continue
            if text[place] == text[place + shift]:
                continue
            assert kept.step.nodes is not None
            token = int(kept.step.nodes.tokens[kept.row, children[0]])
            here += token == text[place]
            there += token == text[place + shift]
            count += 1
    return here, there, count


def states(patient: Patient) -> Finding:
    """A head's guesses from the states that it reads, and from those one place before and after."""
    head = patient.head
    if head is None:
        return does_not_apply("the drafter has no head that reads the target's states")
    teacher = Teacher(patient.target, head.taps_for(patient.target))
    lessons = list(lessons_of(patient, teacher))
    if not lessons:
        return does_not_apply("no text is long enough")
    right = {
        shift: table_of(head, teacher, [moved(one, shift) for one in lessons], 0.0)[0][0]
        for shift in (-1, 0, 1)
    }
    numbers = {"top1": {str(shift): value for shift, value in right.items()}}
    best = max(right, key=lambda shift: right[shift])
    said = (
        f"the head's first guess is right with {right[0]:.2f}; from the states one place earlier "
        f"{right[-1]:.2f}, one place later {right[1]:.2f}"
    )
    if best != 0 and right[best] > GAIN * right[0]:
        return wrong(
            f"From the states that it is given, {said}: it was trained on states one place "
            f"{'earlier' if best < 0 else 'later'}.",
            **numbers,
        )
    return good(f"From the states that it is given, {said}.", **numbers)


def moved(lesson: Lesson, shift: int) -> Lesson:
    """The same text with the states of the places `shift` further on."""
    if shift == 0:
        return lesson
    ids, taps, last = lesson
    if shift < 0:
        return Lesson(ids[:, -shift:], taps[:, :shift], last[:, -shift:])
    return Lesson(ids[:, :-shift], taps[:, shift:], last[:, :-shift])
