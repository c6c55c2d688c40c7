"""A pair's certificate: what was run, what came out, the verdict. kept.py writes and finds them."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from experiments.certificates import exact, greedy, sampled, tiny
from experiments.certificates.code import code_of
from experiments.certificates.kept import CHECKS, SCHEMA_VERSION, arguments_of, resolved
from experiments.certificates.law import CERTIFIED, LOSSY, NOT_APPLICABLE, NOT_CERTIFIED
from experiments.certificates.statistics import SIZE, holm
from experiments.certificates.suite import Settings, make
from experiments.certificates.tables import Tables, standard
from experiments.prompts import read
from experiments.system.surroundings import Surroundings, surroundings
from specdec import Drafter, Refused, Verifier, load
from specdec.chance import Keyed
from specdec.models.language_model import TransformersLM
from specdec.pairing import name_of
from specdec.plugins import build, find

Bar = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Plan:
    """What to run. `size`: outcomes that a deeper round on a table may have; `outcomes`: where an
    enumeration gives up."""

    checks: Sequence[str] = CHECKS
    outcomes: int = exact.OUTCOMES
    size: int = 4000
    strength: float = 1.0
    seed: int = 0
    target: str = "demo"  # of the greedy check; a tiny random model where it cannot be loaded
    prompts: int = 12
    max_new_tokens: int = 48
    tables: Sequence[Tables] = field(default_factory=standard)

    def __post_init__(self) -> None:
        unknown = [check for check in self.checks if check not in CHECKS]
        if unknown or not self.checks:
            raise ValueError(f"checks must be some of {', '.join(CHECKS)}, got {list(self.checks)}")
        if (
            self.outcomes < 1
            or self.size < 1
            or not self.strength > 0
            or self.prompts < 1
            or self.max_new_tokens < 1
        ):
            raise ValueError(
                "outcomes, size, prompts and max_new_tokens must be >= 1 and strength > 0"
            )


@dataclass(frozen=True)
class Pair:
    """A drafter and a verifier by their settings (`_target_` or `name`, and arguments). Where a
    check brings its own target the drafter comes from its `tiny`."""

    drafter: Settings
    verifier: Settings

    def on_tables(self, tables: Tables) -> Drafter:
        return make(self.drafter, tables.target(), tables.draft())

    def rule(self, temperature: float) -> Verifier:
        """A fresh verifier."""
        found = build("verifier", resolved(self.drafter, self.verifier, temperature))
        assert isinstance(found, Verifier)
        return found


def certify(
    pair: Pair,
    plan: Plan,
    bar: Bar,
    say: Callable[[str], None] = lambda line: None,
    where: Surroundings | None = None,
) -> dict[str, Any]:
    """The certificate of a pair. `bar` shows progress; `say` is called with every result. where:
    the surroundings recorded in the certificate (None: determined now)."""
    began = time.perf_counter()
    head: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(where or surroundings())}
    pair = Pair(arguments_of("drafter", pair.drafter), resolved(pair.drafter, pair.verifier, 1.0))
    head |= {
        "drafter": dict(pair.drafter),
        "verifier": dict(pair.verifier),
        "code": code_of(pair.drafter, pair.verifier),
        "plan": _plain_plan(plan),
    }
    rule = pair.rule(1.0)
    zero = rule.zero_temperature_only
    name = find("drafter", pair.drafter).name
    head |= {"pair": [name, name_of(rule)], "zero_temperature_only": zero}
    reasons: list[str] = []
    found: dict[str, Any] = {}
    passed: dict[str, bool] = {}
    try:
        if "exact" in plan.checks or not rule.lossless:
            found["exact"], passed["exact"] = _exact(pair, plan, zero, reasons, bar, say)
        if rule.lossless and "sampled" in plan.checks:
            found["sampled"], passed["sampled"] = _sampled(pair, plan, zero, reasons, bar, say)
        if rule.lossless and "greedy" in plan.checks:
            found["greedy"], passed["greedy"] = _greedy(pair, plan, zero, reasons, say)
    except Refused as refusal:
        return {
            **head,
            "verdict": NOT_APPLICABLE,
            "reasons": [str(refusal)],
            "seconds": time.perf_counter() - began,
        }
    ran = [check for check, result in found.items() if result is not None]
    if not rule.lossless:
        verdict = LOSSY
    elif ran and all(passed[check] for check in ran) and {"exact", "sampled"} & set(ran):
        verdict = CERTIFIED
    else:
        verdict = NOT_CERTIFIED
        if not {"exact", "sampled"} & set(ran):
            reasons.append("neither the exact nor the sampled check could be run")
    return {
        **head,
        "verdict": verdict,
        "reasons": reasons,
        **found,
        "seconds": time.perf_counter() - began,
    }


def _exact(
    pair: Pair, plan: Plan, zero: bool, reasons: list[str], bar: Bar, say: Callable[[str], None]
) -> tuple[Any, bool]:
    """The exact check, at a temperature above 0 and at 0, each if the contract allows it."""
    results: list[exact.Exact] = []
    left_out: list[str] = []
    at_zero = [
        Tables(f"{one.name}, T = 0", one.p, one.q, one.prompt, {"temperature": 0.0})
        for one in plan.tables
    ]
    sets = at_zero if zero else list(plan.tables)
    rule = pair.rule(0.0 if zero else 1.0)
    with bar("exact", len(plan.tables) * (1 if zero else 2)) as advance:
        for tables in sets:
            some, without = exact.suite(pair.on_tables, rule, [tables], plan.size, plan.outcomes)
            results += some
            left_out += without
            advance()
        for tables in [] if zero else at_zero:
            try:
                some, without = exact.suite(
                    pair.on_tables, pair.rule(0.0), [tables], plan.size, plan.outcomes
                )
                results += some
                left_out += without
            except Refused:
                left_out.append(f"{tables.name}: the pair is refused at temperature 0")
            advance()
    if not results:
        reasons.append(f"exact: no table could be run: {left_out[0]}")
        return None, False
    reasons += [f"exact: {one}" for one in results if not one.lossless]
    bounds = [one.rounding for one in results]
    distances = [one.tv for one in results if one.tv is not None]
    total = sum(one.outcomes for one in results)
    say(
        f"exact: {len(results)} cases, {total} outcomes, largest TV "
        f"{max(distances, default=float('nan')):.2e}{exact.rounding(max(bounds))}"
    )
    return {
        "lossless": all(one.lossless for one in results),
        "worst_tv": max(distances, default=None),
        "threshold": exact.LOSSLESS,
        "worst_rounding": max(bounds),  # what laws in float32 may add to a total variation
        "outcomes": total,
        "cases": [asdict(one) for one in results],
        "left_out": left_out,
    }, all(one.lossless for one in results)


def _sampled(
    pair: Pair, plan: Plan, zero: bool, reasons: list[str], bar: Bar, say: Callable[[str], None]
) -> tuple[Any, bool]:
    """zero: at temperature 0, for rules that judge nothing else."""

    def drafter(target: TransformersLM, draft: TransformersLM) -> Drafter:
        return make(pair.drafter, target, draft)

    results = []
    rule, chance = pair.rule(0.0 if zero else 1.0), Keyed(plan.seed)
    for setting in map(sampled.at_zero, sampled.SETTINGS) if zero else sampled.SETTINGS:
        try:
            job = sampled.prepare(setting, drafter, rule, plan.strength, chance)
        except Refused:
            raise
        except ValueError as error:
            reasons.append(f"sampled, {setting.name}: not run: {error}")
            continue
        with bar(f"sampled: {setting.name}", job.batches) as advance:
            for result in job.run():
                if result is None:
                    advance()
                else:
                    results.append(result)
                    say(str(result))
    if not results:
        return None, False
    stands = holm([one.fit.p_value for one in results])
    reasons += [f"sampled: {one}" for one, good in zip(results, stands, strict=True) if not good]
    return {
        "size": SIZE,
        "strength": plan.strength,
        "tests": [one.as_dict() for one in results],
        "passes": all(stands),
    }, all(stands)


def _greedy(
    pair: Pair, plan: Plan, zero: bool, reasons: list[str], say: Callable[[str], None]
) -> tuple[Any, bool]:
    try:
        target, prompts, drafter = _tiny(pair, plan) if plan.target == "tiny" else _real(pair, plan)
    except ValueError as error:  # no such model here, or no such weights
        if plan.target == "tiny":
            raise
        say(f"greedy: {error}; a tiny random model takes its place")
        target, prompts, drafter = _tiny(pair, plan)
    try:
        result = greedy.compare(target, prompts, drafter, pair.rule(0.0), plan.max_new_tokens)
    except Refused:
        if zero:
            raise
        return None, False
    except ValueError as error:
        reasons.append(f"greedy: not run: {error}")
        return None, False
    say(str(result))
    if not result.passes:
        reasons.append(f"greedy: {result}")
    return result.as_dict(), result.passes


def _real(pair: Pair, plan: Plan) -> tuple[TransformersLM, list[list[int]], Drafter]:
    target, drafter = load(plan.target), build("drafter", pair.drafter)
    if target.tokenizer is None:
        raise ValueError(f"the target {plan.target} has no tokenizer, and prompts are texts")
    texts = [one.text for one in read("jsonl", "demo", limit=plan.prompts)]
    return target, [list(target.tokenizer(text)["input_ids"]) for text in texts], drafter


def _tiny(pair: Pair, plan: Plan) -> tuple[TransformersLM, list[list[int]], Drafter]:
    random = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(97, (3 + row % 5,), generator=random).tolist() for row in range(plan.prompts)
    ]
    target = TransformersLM(tiny.llama(97, hidden=32), name="tiny")
    return (
        target,
        prompts,
        make(pair.drafter, target, TransformersLM(tiny.similar(97, 0.05, hidden=32))),
    )


def _plain_plan(plan: Plan) -> dict[str, Any]:
    return {key: value for key, value in vars(plan).items() if key != "tables"} | {
        "checks": list(plan.checks),
        "tables": [one.name for one in plan.tables],
    }
