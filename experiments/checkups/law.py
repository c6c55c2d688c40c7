"""Whether the output follows the target's law: the rule on tables, outcome by outcome; samples of
this very pair; and its greedy tokens, with near-ties."""

from dataclasses import replace

import torch

import specdec
from experiments.audits.cells import cells_of
from experiments.audits.sampler import Request, Sampler
from experiments.audits.verdict import ANOTHER_LAW, Plan, audit, wanted_samples
from experiments.certificates import exact
from experiments.certificates.greedy import compare
from experiments.certificates.kept import find_law
from experiments.certificates.tables import standard
from experiments.checkups.finding import Finding, does_not_apply, good, note, wrong
from experiments.checkups.patient import Patient
from specdec import Refused

SIZE = 300  # outcomes that a deeper round on a table may have: a second or two in all
TV, ALPHA, LEAST = 0.12, 1e-4, 0.02  # of the samples' test (experiments/audit.py)
BATCH = 256  # samples of a call
OPENING = 16  # tokens of a prompt that is continued so often
LONGEST = 6  # tokens of a sample
PROMPTS, TOKENS = 4, 40  # of the greedy comparison
LARGE = 2e9  # parameters; the float32 copy that judges ties is then too large
CLOSE = 0.02  # share of near-ties that is worth a note


def tables(patient: Patient) -> Finding:
    """The drafter with random weights and the rule, on tables: exact."""
    rule = patient.rule
    if not rule.lossless:
        return note(f"{_names(patient)} is lossy by its own contract: the output has another law.")
    found: list[exact.Exact] = []
    left_out: list[str] = []
    zero = {"temperature": 0.0}
    sets = [
        replace(each, sampling=zero) if patient.sampling.temperature == 0 else each
        for each in standard()
    ]
    with patient.bar("law on tables", len(sets)) as advance:
        for each in sets:
            try:
                some, without = exact.suite(patient.pair.on_tables, rule, [each], SIZE)
            except Refused as refusal:
                some, without = [], [str(refusal)]
            found += some
            left_out += without
            advance()
    if not found:
        return does_not_apply(f"no table could be run ({left_out[0]})")
    bad = [one for one in found if not one.lossless]
    law = find_law(patient.drafter, patient.verifier, temperature=patient.sampling.temperature)
    numbers = {
        "cases": len(found),
        "outcomes": sum(one.outcomes for one in found),
        "tv": max((one.tv for one in found if one.tv is not None), default=None),
        "certificate": None if law is None else str(law),
    }
    if bad:
        worst = max(bad, key=lambda one: one.tv or 0.0)
        return wrong(
            f"{_names(patient)} does not keep the target's law: on {len(bad)} of {len(found)} "
            f"cases its output is off, by a total variation of {worst.tv or 1:.2g} on "
            f"{worst.tables!r}.",
            **numbers,
        )
    return good(
        f"{_names(patient)} keeps the target's law on {len(found)} cases, {numbers['outcomes']} "
        f"outcomes computed one by one (total variation {numbers['tv']:.0e}). Certificate: "
        f"{numbers['certificate'] or 'none'}.",
        **numbers,
    )


def _names(patient: Patient) -> str:
    return f"{patient.begun.yaml_name or 'the drafter'} + {patient.rule.yaml_name or 'the rule'}"


class Decoder(Sampler):
    """The patient, as the audit of any decoder asks it."""

    def __init__(self, patient: Patient) -> None:
        self.patient = patient

    def sample(self, request: Request) -> list[list[int]]:
        options = {**self.patient.options, "seed": request.seed}
        out = specdec.generate(
            self.patient.target,
            [request.prompt] * request.samples,
            drafter=self.patient.method,
            max_new_tokens=request.max_new_tokens,
            **options,
        )
        return [row.tolist() for row in out.tokens]


def samples(patient: Patient) -> Finding:
    """This pair with its weights, against plain forward passes of the target."""
    if not patient.rule.lossless:
        return does_not_apply("the rule is lossy by its own contract")
    if patient.sampling.temperature == 0:
        return does_not_apply("at temperature 0 nothing is sampled; see the greedy tokens")
    plan, reason = _testable(patient)
    if plan is None:
        return does_not_apply(f"no prompt gives a law to test ({reason})")
    found = audit(patient.target, Decoder(patient), plan, patient.bar)
    if found["verdict"] == ANOTHER_LAW:
        return wrong(
            f"{found['samples']} samples of this pair do not have the target's law: p = "
            f"{found['p']:.1g}, a total variation of about {found['tv']:.2f}.",
            **found,
        )
    return good(
        f"{found['samples']} samples of this pair agree with the target's law (p = "
        f"{found['p']:.2f}). A total variation of {found['tv_found']:.2f} would have been found.",
        **found,
    )


def _testable(patient: Patient) -> tuple[Plan | None, str]:
    """How the first prompt is sampled that has more than one likely continuation; else why none
    is. Continuations are longer than a round, so that what a round leaves in memory counts."""
    sampling = patient.plain_sampling
    tokens = min(LONGEST, patient.begun.max_nodes + 2)
    reason = ""
    target = patient.target
    for whole in patient.given:
        prompt = whole[:OPENING]
        plan = Plan(
            prompt, tokens, sampling, batch=BATCH, tv=TV, alpha=ALPHA, least=LEAST, double=False
        )
        ends = frozenset(target.eos_ids)
        cells = cells_of(target.model, prompt, tokens, sampling, ends, LEAST)
        try:
            wanted_samples(cells, plan)
        except ValueError as error:
            reason = str(error)
            continue
        return plan, ""
    return None, reason


def greedy(patient: Patient) -> Finding:
    """Tokens at temperature 0 against transformers' greedy decoding, and how close ties are."""
    if not patient.rule.lossless:
        return does_not_apply("the rule is lossy by its own contract")
    size = sum(weight.numel() for weight in patient.target.model.parameters())
    if size > LARGE:
        return does_not_apply(
            f"ties are judged by a copy in float32, too large for {size / 1e9:.1f} billion "
            "parameters"
        )
    prompts = patient.given[:PROMPTS]
    try:
        rule = patient.pair.rule(0.0)
        found = compare(patient.target, prompts, patient.method, rule, TOKENS)
    except Refused as refusal:
        return does_not_apply(f"the pair is refused at temperature 0 ({refusal})")
    close, positions = near_ties(patient, found.rounding)
    share = close / max(1, positions)
    faults = [one for one in found.divergences if one.kind == "fault"]
    numbers = {
        "prompts": found.prompts,
        "tokens": found.tokens,
        "faults": len(faults),
        "ties": len(found.divergences) - len(faults),
        "near_ties": close,
        "positions": positions,
        "rounding": found.rounding,
        "dtype": found.dtype,
    }
    if faults:
        one = faults[0]
        return wrong(
            f"Greedy tokens are wrong on {len(faults)} of {found.prompts} prompts: the first "
            f"differs from plain decoding at token {one.index}, where no tie explains it.",
            **numbers,
        )
    tied = (
        f"{close} of {positions} positions are near-ties: the two best logits are closer than "
        f"{2 * found.rounding:.2g}, as much as rounding in {found.dtype} may move them"
    )
    if not found.passes:
        return wrong(
            f"{numbers['ties']} of {found.prompts} greedy outputs differ from plain decoding at "
            f"ties, which are too many to judge by; {tied}. Try dtype=float32.",
            **numbers,
        )
    if numbers["ties"]:
        return note(
            f"{numbers['ties']} of {found.prompts} greedy outputs differ from plain decoding, all "
            f"at ties; {tied}. dtype=float32 has fewer.",
            **numbers,
        )
    same = f"{found.tokens} greedy tokens of {found.prompts} prompts are those of plain decoding"
    if share > CLOSE:
        return note(
            f"{same}. But {tied}. Longer outputs may differ there; dtype=float32 has fewer.",
            **numbers,
        )
    return good(f"{same}. {tied}.", **numbers)


@torch.inference_mode()
def near_ties(patient: Patient, rounding: float) -> tuple[int, int]:
    """How many output positions have their two best logits within twice the rounding, of how
    many."""
    close = positions = 0
    for prompt, sample in list(patient.samples)[:PROMPTS]:
        ids = torch.tensor([[*prompt, *sample.tokens[0]]], device=patient.target.device)
        logits = patient.target.model(ids).logits[0, len(prompt) - 1 : -1].float()
        best = logits.topk(2).values
        close += int((best[:, 0] - best[:, 1] <= 2 * rounding).sum())
        positions += len(best)
    return close, positions
