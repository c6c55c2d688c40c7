"""tau of a head as its files say, and under each other reading that they allow."""

from collections.abc import Sequence

from experiments.checkups.finding import Finding, does_not_apply, good, note, wrong
from experiments.checkups.head_patient import (
    ANCHOR,
    AS_IT_IS,
    HIGHER,
    LOWER,
    OTHER_PROMPTS,
    HeadPatient,
    Tau,
)
from experiments.measuring.intervals import difference_interval

GAIN = 1.1  # by which another reading must accept more
LEAST = 0.1  # tokens per round, likewise
FEW = 0.05  # of first guesses, likewise
SILENT = 1.05  # a tau of drafts that are not worth calling so


def as_it_is(patient: HeadPatient) -> Finding:
    found = patient.taus[AS_IT_IS]
    if found.tau is None:
        return wrong(f"As the files say, it cannot be used here: {found.refused}.")
    said = (
        f"As the files say, tau is {found.tau:.2f} over {len(found.per_prompt)} prompts of "
        f"{patient.max_new_tokens} tokens at temperature {patient.sampling.temperature:g}"
    )
    numbers = {
        "tau": found.tau,
        "per_prompt": list(found.per_prompt),
        "first_guess_right": found.right,
    }
    if found.tau < SILENT:
        return note(f"{said}: next to nothing is accepted.", **numbers)
    return good(f"{said}.", **numbers)


def layer_ids(patient: HeadPatient) -> Finding:
    if "taps" not in patient.loaded.settings:
        return does_not_apply("the head reads no numbered layers that its files choose")
    found = _compared(patient, (LOWER, HIGHER))
    if found.applies and found.numbers["best"] in (LOWER, HIGHER):
        taps = patient.readings[found.numbers["best"]].settings["taps"]
        return wrong(
            f"{found.sentence} The layers whose entering states it was trained on are {taps}, and "
            f"its files say {patient.taps}: they count layers from another end, or by what leaves "
            "them.",
            **found.numbers,
        )
    return found


def anchor(patient: HeadPatient) -> Finding:
    if ANCHOR not in patient.readings:
        return does_not_apply("the head guesses no block whose root could guess too")
    found = _compared(patient, (ANCHOR,))
    if found.applies and found.numbers["best"] == ANCHOR:
        value = patient.readings[ANCHOR].settings["from_anchor"]
        return wrong(
            f"{found.sentence} It was trained with sample_from_anchor {str(value).lower()}, so its "
            "guesses are one place off.",
            **found.numbers,
        )
    return found


def prompts(patient: HeadPatient) -> Finding:
    if OTHER_PROMPTS not in patient.readings:
        return does_not_apply("the target's tokenizer has no chat template")
    found = _compared(patient, (OTHER_PROMPTS,))
    if found.applies and found.numbers["best"] == OTHER_PROMPTS:
        form = "plain text" if patient.through_template else "conversations"
        return note(
            f"{found.sentence} It was trained on {form}: give it such prompts, or another head.",
            **found.numbers,
        )
    return found


def best(patient: HeadPatient) -> Finding:
    """Which reading of all gives the highest tau."""
    measured = {name: found.tau for name, found in patient.taus.items() if found.tau is not None}
    if not measured:
        return wrong("No reading of the files can be used with this target.")
    numbers = {"tau": measured}
    first = max(measured, key=lambda name: measured[name])
    said = f"The best tau of {len(measured)} readings is {measured[first]:.2f}, "
    own = patient.taus[AS_IT_IS]
    if first == AS_IT_IS:
        return good(f"{said}as the files say.", **numbers, best=AS_IT_IS)
    said += patient.readings[first].said
    if own.tau is None:
        return note(f"{said}; as the files say it cannot be used here.", **numbers, best=first)
    if better(patient.taus[first], own):
        return note(f"{said} (as the files say: {own.tau:.2f}).", **numbers, best=first)
    return good(
        f"{said}, and {own.tau:.2f} as the files say: no more than chance.",
        **numbers,
        best=AS_IT_IS,
    )


def _compared(patient: HeadPatient, names: Sequence[str]) -> Finding:
    """The file's own reading beside others. `numbers["best"]` is the one that is clearly better, or
    the file's own."""
    own = patient.taus[AS_IT_IS]
    others = {name: patient.taus[name] for name in names if name in patient.taus}
    usable = {name: found for name, found in others.items() if found.tau is not None}
    if own.tau is None and not usable:
        return does_not_apply("no reading of the files can be used with this target")
    parts = [f"{patient.readings[name].said} {_measured(found)}" for name, found in usable.items()]
    mine = f"is {_measured(own)}" if own.tau is not None else "cannot be measured"
    said = "; ".join([f"As the files say, tau {mine}", *parts])
    left_out = [name for name in names if name not in usable]
    if left_out:
        said += f" ({' and '.join(left_out)} cannot be tried with this target)"
    numbers = {
        "tau": {name: found.tau for name, found in usable.items()},
        "first_guess_right": {name: found.right for name, found in usable.items()},
        "tau_as_it_is": own.tau,
        "first_guess_right_as_it_is": own.right,
    }
    clearly = [name for name, found in usable.items() if better(found, own)]
    if clearly:
        first = max(clearly, key=lambda name: usable[name].tau or 0.0)
        return wrong(
            f"{said}: it drafts best {patient.readings[first].said}.", **numbers, best=first
        )
    return good(f"{said}: the files are right.", **numbers, best=AS_IT_IS)


def _measured(found: Tau) -> str:
    right = "" if found.right is None else f" (first guess right with {found.right:.2f})"
    return f"{found.tau:.2f}{right}"


def better(other: Tau, own: Tau) -> bool:
    """Whether another reading's first guess is right more often by a tenth, or it accepts more by a
    tenth and by more than chance over prompts."""
    if other.tau is None or own.tau is None:
        return other.tau is not None
    known = other.right is not None and own.right is not None and other.tau >= own.tau
    if known and other.right > GAIN * own.right and other.right - own.right > FEW:
        return True
    if other.tau - own.tau < LEAST or other.tau - 1 < GAIN * (own.tau - 1):
        return False
    if len(other.per_prompt) != len(own.per_prompt):  # a template made some prompts too long
        return True
    low = difference_interval(other.per_prompt, own.per_prompt).low
    return low is None or low > 0
