"""A pair's certificate: what was run, what came out, the verdict. A small JSON per pair, found again by the pair's settings."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments import records
from experiments.certificates import exact, greedy, sampled, tiny
from experiments.certificates.statistics import SIZE, holm
from experiments.certificates.suite import begun, make
from experiments.certificates.tables import Tables, standard
from experiments.prompts import read
from specdec import Drafter, Refused, Verifier, load
from specdec.chance import Keyed
from specdec.language_model import TransformersLM
from specdec.metrics import Report
from specdec.pairing import choose, name_of
from specdec.plugins import CONF, build, find
from specdec.sampling import Sampling

CERTIFIED, NOT_CERTIFIED, LOSSY, NOT_APPLICABLE = "certified", "not certified", "lossy", "not applicable"
CHECKS = ("exact", "sampled", "greedy")
FOLDER = "certificates"  # of the working folder: where `certify` writes
SHIPPED = Path(__file__).parent / "shipped"  # those that come with the project
Settings = Mapping[str, Any]
Bar = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Plan:
    """What to run. `size`: outcomes that a deeper round on a table may have; `outcomes`: where an enumeration gives up."""

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
        if self.outcomes < 1 or self.size < 1 or not self.strength > 0 or self.prompts < 1 or self.max_new_tokens < 1:
            raise ValueError("outcomes, size, prompts and max_new_tokens must be >= 1 and strength > 0")


@dataclass(frozen=True)
class Pair:
    """A drafter and a verifier by their settings (`_target_` or `name`, and arguments). Where a check brings its own target the
    drafter comes from its `tiny`."""

    drafter: Settings
    verifier: Settings

    def on_tables(self, tables: Tables) -> Drafter:
        return make(self.drafter, tables.target(), tables.draft())

    def rule(self, temperature: float) -> Verifier:
        """A fresh verifier."""
        found = build("verifier", resolved(self.drafter, self.verifier, temperature))
        assert isinstance(found, Verifier)
        return found


def resolved(drafter: Settings, verifier: Settings, temperature: float) -> Settings:
    """The verifier's settings, with the rule that `auto` is for this drafter in its place."""
    if "_target_" in verifier or verifier.get("name", "auto") != "auto":
        return _arguments("verifier", verifier)
    begins, _ = begun(drafter, temperature)
    return _arguments("verifier", {"name": choose(begins, Sampling(temperature), Keyed(0))})


def certify(pair: Pair, plan: Plan, bar: Bar, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The certificate of a pair. `bar` shows progress, `say` hears of every result."""
    began = time.perf_counter()
    head: dict[str, Any] = {"schema_version": records.SCHEMA_VERSION, **records.surroundings()}
    pair = Pair(_arguments("drafter", pair.drafter), resolved(pair.drafter, pair.verifier, 1.0))
    head |= {"drafter": dict(pair.drafter), "verifier": dict(pair.verifier), "plan": _plain_plan(plan)}
    rule = pair.rule(1.0)
    zero = rule.zero_temperature_only
    name = str(pair.drafter["_target_"]).split(".")[-2]
    head |= {"pair": [name, name_of(rule)], "zero_temperature_only": zero}
    reasons: list[str] = []
    found: dict[str, Any] = {}
    passed: dict[str, bool] = {}
    try:
        if "exact" in plan.checks or not rule.lossless:
            found["exact"], passed["exact"] = _exact(pair, plan, zero, reasons, bar, say)
        if rule.lossless and "sampled" in plan.checks and not zero:
            found["sampled"], passed["sampled"] = _sampled(pair, plan, reasons, bar, say)
        if rule.lossless and "greedy" in plan.checks:
            found["greedy"], passed["greedy"] = _greedy(pair, plan, zero, reasons, say)
    except Refused as refusal:
        return {**head, "verdict": NOT_APPLICABLE, "reasons": [str(refusal)], "seconds": time.perf_counter() - began}
    ran = [check for check, result in found.items() if result is not None]
    if not rule.lossless:
        verdict = LOSSY
    elif ran and all(passed[check] for check in ran) and {"exact", "sampled"} & set(ran):
        verdict = CERTIFIED
    else:
        verdict = NOT_CERTIFIED
        if not {"exact", "sampled"} & set(ran):
            reasons.append("neither the exact nor the sampled check could be run")
    return {**head, "verdict": verdict, "reasons": reasons, **found, "seconds": time.perf_counter() - began}


def _exact(
    pair: Pair, plan: Plan, zero: bool, reasons: list[str], bar: Bar, say: Callable[[str], None]
) -> tuple[Any, bool]:
    """At a temperature above 0 where the pair allows one, and at 0 where the contract allows that."""
    results: list[exact.Exact] = []
    left_out: list[str] = []
    at_zero = [Tables(f"{one.name}, T = 0", one.p, one.q, one.prompt, {"temperature": 0.0}) for one in plan.tables]
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
                some, without = exact.suite(pair.on_tables, pair.rule(0.0), [tables], plan.size, plan.outcomes)
                results += some
                left_out += without
            except Refused:
                left_out.append(f"{tables.name}: the pair is refused at temperature 0")
            advance()
    if not results:
        reasons.append(f"exact: no table could be run: {left_out[0]}")
        return None, False
    reasons += [f"exact: {one}" for one in results if not one.lossless]
    distances = [one.tv for one in results if one.tv is not None]
    total = sum(one.outcomes for one in results)
    say(f"exact: {len(results)} cases, {total} outcomes, largest TV {max(distances, default=float('nan')):.2e}")
    return {
        "lossless": all(one.lossless for one in results),
        "worst_tv": max(distances, default=None),
        "threshold": exact.LOSSLESS,
        "outcomes": total,
        "cases": [asdict(one) for one in results],
        "left_out": left_out,
    }, all(one.lossless for one in results)


def _sampled(pair: Pair, plan: Plan, reasons: list[str], bar: Bar, say: Callable[[str], None]) -> tuple[Any, bool]:
    def drafter(target: TransformersLM, draft: TransformersLM) -> Drafter:
        return make(pair.drafter, target, draft)

    results = []
    for setting in sampled.SETTINGS:
        try:
            job = sampled.prepare(setting, drafter, pair.rule(1.0), plan.strength, Keyed(plan.seed))
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


def _greedy(pair: Pair, plan: Plan, zero: bool, reasons: list[str], say: Callable[[str], None]) -> tuple[Any, bool]:
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
    prompts = [torch.randint(97, (3 + row % 5,), generator=random).tolist() for row in range(plan.prompts)]
    target = TransformersLM(tiny.llama(97, hidden=32), name="tiny")
    return target, prompts, make(pair.drafter, target, TransformersLM(tiny.similar(97, 0.05, hidden=32)))


def _plain_plan(plan: Plan) -> dict[str, Any]:
    return {key: value for key, value in vars(plan).items() if key != "tables"} | {
        "checks": list(plan.checks),
        "tables": [one.name for one in plan.tables],
    }


# --------------------------------------------------------------------------------------------------- writing and finding


def _arguments(group: str, settings: Settings) -> dict[str, Any]:
    """The settings with the YAML's own where a name stands for them."""
    own = {key: value for key, value in settings.items() if key != "name"}
    if settings.get("name"):
        return {**yaml.safe_load((CONF / group / f"{settings['name']}.yaml").read_text()), **own}
    return own


def _identity(drafter: Settings, verifier: Settings, kind: bool) -> str:
    """What a pair is; of its `kind`, numbers do not matter: they size the tree and choose no law (one child per node or several
    does: a chain and a tree are two kinds)."""
    parts = []
    for group, settings in (("drafter", drafter), ("verifier", verifier)):
        arguments = _arguments(group, settings)
        weights = getattr(find(group, arguments)[0], "weights", frozenset())
        kept = {key: value for key, value in arguments.items() if key not in weights}
        if kind:
            widths = kept.pop("branching", None)
            kept = {key: value for key, value in kept.items() if not _number(value)}
            if widths is not None:
                kept["chain"] = max(widths if isinstance(widths, Sequence) else [widths]) == 1
        parts.append(kept)
    return json.dumps(parts, sort_keys=True, default=str)


def _number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or value is None


def write(certificate: Mapping[str, Any], folder: str | Path = FOLDER) -> Path:
    """One file per pair and settings; a newer certificate replaces an older one."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    identity = _identity(certificate["drafter"], certificate["verifier"], kind=False)
    mark = hashlib.sha256(identity.encode()).hexdigest()[:8]
    path = place / f"{'-'.join(certificate['pair'])}-{mark}.json"
    records.write_json(path, dict(certificate))
    return path


def read_certificates(folder: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The certificates that lie in a folder, in the order of their names; what is no certificate is passed over."""
    for path in sorted(Path(folder).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if {"drafter", "verifier", "verdict", "pair"} <= content.keys():
                yield path, content
        except (OSError, ValueError, AttributeError):
            continue


def find_certificate(
    drafter: Settings, verifier: Settings, *folders: str | Path, temperature: float = 1.0
) -> dict[str, Any] | None:
    """The certificate of a pair given by its settings (`_target_` or `name`, and arguments), with `same_settings`; None where
    there is none. `folders`: where to look, the first match wins; the working folder's and the shipped ones by default.

    One with the very same settings if there is one (a draft model's name is no such setting), else one of the same kind, which
    differs in numbers only. `verifier` may be that of `auto`, which then stands for its choice at `temperature`.
    """
    found: list[tuple[bool, dict[str, Any]]] = []
    written = [entry for folder in folders or (FOLDER, SHIPPED) for entry in read_certificates(folder)]
    if written:
        verifier = resolved(drafter, verifier, temperature)
    for path, content in written:
        for kind in (False, True):
            if _identity(content["drafter"], content["verifier"], kind) == _identity(drafter, verifier, kind):
                found.append((kind, {**content, "file": str(path), "same_settings": not kind}))
                break
    return min(found, key=lambda entry: entry[0])[1] if found else None


def attached(drafter: Settings, verifier: Settings, report: Report) -> dict[str, Any]:
    """What a run's result says about its law: `verdict` is certified | not certified | lossy; with a certificate also its file,
    git state and whether its settings are the very same."""
    if not report.lossless:
        return {"verdict": LOSSY}
    judge = verifier if "_target_" in verifier else {"name": report.verifier}  # what `auto` was
    found = find_certificate(drafter, judge)
    if found is None:
        return {"verdict": NOT_CERTIFIED}
    verdict = found["verdict"] if found["verdict"] == CERTIFIED else NOT_CERTIFIED
    return {"verdict": verdict, **{key: found[key] for key in ("file", "git", "same_settings")}}
