"""What was written: loops flatter every drafter."""

from experiments.checkups.finding import Finding, does_not_apply, good, note, wrong
from experiments.checkups.patient import Patient
from specdec.measuring.report import distinct_ngrams

FINE, LOOPING = 0.8, 0.3  # distinct 4-grams of all 4-grams


def loops(patient: Patient) -> Finding:
    texts = [(sample.tokens[0], sample) for _, sample in patient.samples]
    distinct = distinct_ngrams([tokens for tokens, _ in texts])
    if distinct is None:
        return does_not_apply("no output is four tokens long")
    fresh = [
        sample.report
        for tokens, sample in texts
        if sample.report and (distinct_ngrams([tokens]) or 1.0) >= FINE
    ]
    rounds = sum(len(report.rows.kept) for report in fresh)
    tau = sum(report.num_tokens for report in fresh) / rounds if rounds else None
    looping = len(texts) - len(fresh)
    numbers = {"distinct_4grams": distinct, "looping": looping, "tau_of_the_others": tau}
    said = f"{distinct:.0%} of the 4-grams in the output are distinct"
    if distinct >= FINE:
        return good(f"{said}: it does not repeat itself.", **numbers)
    others = f"; without those tau is {tau:.2f}" if tau is not None else ""
    flattered = (
        f"{said}, and {looping} of {len(texts)} outputs repeat themselves, which flatters every "
        f"drafter{others}"
    )
    if distinct >= LOOPING:
        return note(f"{flattered}. A higher temperature or other prompts repeat less.", **numbers)
    return wrong(
        f"{flattered}. Nothing that is measured on such text holds elsewhere: take a higher "
        "temperature or other prompts, and see whether the chat template is the right one.",
        **numbers,
    )
