"""Where the time goes, and whether drafting pays on this machine."""

import time
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experiments.checkups.break_even import Times
from experiments.checkups.finding import Finding, does_not_apply, good, note, wrong
from experiments.checkups.patient import NONE, Patient
from experiments.measuring.forward_times import forward_times
from experiments.measuring.intervals import ratio_interval
from experiments.system.libraries import synchronize
from specdec.measuring.clock import PHASES
from specdec.models.language_model import TransformersLM
from specdec.models.table import TableModel

NODES = (1, 2, 4, 8, 16, 32)  # of the cost curve
REPEATS = 10
HOST, DISPATCH, STEEP = 0.3, 0.5, 1.5  # beyond these a note


def where_the_time_goes(patient: Patient) -> Finding:
    method, plain = patient.outcome.method, patient.outcome.plain
    assert plain is not None
    whole = sum(method.seconds[phase] for phase in PHASES)
    shares = {phase: method.seconds[phase] / whole for phase in PHASES}
    outside = float(np.median([entry.outside_models for entry in method.per_prompt]))
    curve = cost_curve(patient)
    nodes = 1 + round(method.nodes_per_round)
    steep = float(np.interp(nodes, list(curve), list(curve.values()))) / curve[1]
    dispatch = max(0.0, 1 - products(patient.target) / curve[1])
    numbers = {
        "shares": shares,
        "round_seconds": whole / method.rounds,
        "plain_round_seconds": plain.decode_seconds / plain.rounds,
        "outside_models": outside,
        "pass_seconds": curve,
        "pass_of_a_tree": steep,
        "dispatch": dispatch,
    }
    if patient.draft_model is not None and not isinstance(patient.draft_model, TableModel):
        context = _context(patient)
        numbers["draft_pass_seconds"] = forward_times(
            patient.draft_model, context, [1], repeats=REPEATS
        )[1]
    said = (
        f"A round takes {1e3 * whole / method.rounds:.1f} ms: {shares['draft']:.0%} drafting, "
        f"{shares['score']:.0%} the target's pass, {shares['verify']:.0%} the rule, "
        f"{shares['commit'] + shares['other']:.0%} the rest; {outside:.0%} of the time is outside "
        f"the models. A pass over 1 node takes {1e3 * curve[1]:.1f} ms ({dispatch:.0%} of it "
        "dispatch and small operations, not matrix products)"
    )
    if nodes > 1:
        said += f", over {nodes} nodes {steep:.2f} times as long"
    slow = []
    if outside > HOST:
        slow.append(
            "the host takes much of it, and a larger batch or larger models share it among more"
        )
    if dispatch > DISPATCH:
        slow.append(
            "dispatch takes most of a pass, so what is measured here says little about larger "
            "models"
        )
    if steep > STEEP:
        slow.append("the tree costs more than its root: fewer nodes may pay more")
    if emulates(patient.target):
        slow.append(
            "this processor has no instructions for bfloat16, so passes over several tokens are "
            "slow: dtype=float32 may be much faster"
        )
    if slow:
        return note(f"{said}; {'; '.join(slow)}.", **numbers)
    return good(f"{said}.", **numbers)


def cost_curve(patient: Patient) -> dict[int, float]:
    """Seconds of the target's pass by nodes, the root included."""
    most = max(2, 1 + round(patient.outcome.method.nodes_per_round))
    nodes = sorted({*NODES, most})
    context = _context(patient)
    nodes = [each for each in nodes if context + each <= patient.target.context]
    return forward_times(patient.target, context, nodes, repeats=REPEATS)


def emulates(model: TransformersLM) -> bool:
    """Whether a model is in bfloat16 on an x86 processor that computes in float32 only."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return False
    has = torch.cpu.get_capabilities()
    x86 = has.get("architecture") == "x86_64"
    return x86 and not any(has.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _context(patient: Patient) -> int:
    """Tokens before a round in the middle of an output."""
    entries = patient.outcome.method.per_prompt
    usual = round(float(np.mean([entry.prompt_tokens + entry.tokens / 2 for entry in entries])))
    models = [patient.target, patient.draft_model or patient.target]
    return max(1, min([usual, *(model.context - max(NODES) for model in models)]))


@torch.inference_mode()
def products(model: TransformersLM) -> float:
    """Seconds of all of a model's matrix products over one token, one after the other."""
    kinds = (nn.Linear, Conv1D)
    layers = [module for module in model.model.modules() if isinstance(module, kinds)]
    entries = [_input(layer) for layer in layers]
    seconds = []
    for _ in range(REPEATS + 3):
        synchronize(model.device)
        began = time.perf_counter()
        for layer, entry in zip(layers, entries, strict=True):
            layer(entry)
        synchronize(model.device)
        seconds.append(time.perf_counter() - began)
    return median(seconds[3:])


def _input(layer: nn.Module) -> Tensor:
    weight = layer.get_parameter("weight")
    size = weight.shape[1] if isinstance(layer, nn.Linear) else weight.shape[0]
    return weight.new_zeros(1, size)


# ---------------------------------------------------------------------------------- does it pay


def pays(patient: Patient) -> Finding:
    if not patient.drafts:
        return does_not_apply("nothing is drafted")
    outcome = patient.outcome
    method, plain = outcome.method, outcome.plain
    assert plain is not None
    speedup = ratio_interval(
        [entry.decoding for entry in plain.per_prompt],
        [entry.decoding for entry in method.per_prompt],
    )
    depth = sum(part.depth * part.rounds for part in outcome.offered_depths) / method.row_rounds
    times = Times(
        plain=plain.decode_seconds / max(1, plain.tokens),
        round=method.decode_seconds / method.rounds,
        drafting=method.seconds["draft"] / method.rounds,
        score=method.seconds["score"] / method.rounds,
        tau=method.tau,
        depth=depth,
    )
    rates = [group.accepted / group.reached for group in method.per_depth]
    best, predicted = times.best_depth(rates)
    numbers = {
        "speedup": vars(speedup),
        "whole_calls": vars(method.speedup[NONE])["median"],
        "tau": method.tau,
        "acceptance_rate": method.acceptance_rate,
        "depth": depth,
        "plain_token_seconds": times.plain,
        "round_seconds": times.round,
        "drafting_seconds": times.drafting,
        "cost_ratio": outcome.draft_cost,
        "tau_needed": times.tau_needed,
        "rate_needed": times.rate_needed,
        "drafting_needed_seconds": times.drafting_needed,
        "slower_target_needed": times.slower_target_needed,
        "best_depth": best,
        "best_depth_speedup": predicted,
    }
    said = f"{speedup.text(unit='x')} the speed of plain decoding (tau {method.tau:.2f}"
    said += f", break-even at {times.tau_needed:.2f})"
    if speedup.median > 1 and (speedup.low or 0.0) > 1:
        return good(f"It pays: {said}.{_better(times, best, predicted)}", **numbers)
    remedy = remedies(times, best, predicted) if times.speedup < 1 else ""
    if speedup.high is None or speedup.high >= 1:
        more = "More prompts (limit=...) or tokens (max_new_tokens=...) tell."
        sentence = f"It is not clear whether it pays: {said}. {more} {remedy}"
        return note(sentence.strip(), **numbers)
    return wrong(f"It does not pay: {said}. {remedy}", **numbers)


def _better(times: Times, best: int, predicted: float) -> str:
    if best and best < round(times.depth) and predicted > 1.05 * times.speedup:
        return f" A depth of {best} would give about {predicted:.2f}x."
    return ""


def remedies(times: Times, best: int, predicted: float) -> str:
    """What would make it pay, one thing at a time."""
    rate, drafting = times.rate_needed, times.drafting_needed
    slower, depth = times.slower_target_needed, max(1, round(times.depth))
    found, beyond = [], []
    if rate is None:
        beyond.append(f"No acceptance rate is high enough at a depth of {depth}.")
    else:
        found.append(f"an acceptance rate of {rate:.2f} at a depth of {depth}")
    if drafting > 0:
        ratio, now = drafting / times.plain, times.drafting / times.plain
        found.append(
            f"drafting that takes {ratio:.2f} of a plain token's time in a round (now {now:.2f})"
        )
    else:
        beyond.append("Even drafts that cost nothing would not pay.")
    if slower is not None and slower > 1:
        found.append(f"a target {slower:.1f} times as slow")
    if best and predicted > 1:
        found.append(f"a depth of {best} (about {predicted:.2f}x)")
    would = [f"It would pay with {'; or with '.join(found)}."] if found else []
    return " ".join([*would, *beyond])
