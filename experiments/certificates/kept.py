"""Certificates on disk: written, and found again by the settings of their pair. This is the part
that a run needs; it does not import the checks."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any

from experiments.certificates import code
from experiments.certificates.law import LOSSY, NOT_CERTIFIED, STALE, Law
from experiments.certificates.suite import Settings, begun
from experiments.system.files import drafts, write_json
from experiments.system.surroundings import Git
from specdec.chance import Keyed
from specdec.interfaces import Verifier
from specdec.measuring.report import Report
from specdec.pairing import name_of
from specdec.plugins import arguments_of as signature_of
from specdec.plugins import build, find
from specdec.registry import described
from specdec.sampling import Sampling

SCHEMA_VERSION = 3  # of a certificate
CHECKS = ("exact", "sampled", "greedy")
FOLDER = "certificates"  # of the working folder: where `certify` writes
SHIPPED = Path(__file__).parent / "shipped"  # those that come with the project


def arguments_of(group: str, settings: Settings) -> dict[str, Any]:
    """The settings, with the YAML's own where there is a name."""
    return {**(described(group, settings["name"]) if settings.get("name") else {}), **settings}


def with_defaults(group: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a plug-in, with its signature's defaults where none was given. An argument
    without one that is None (`**shape`) is as good as not given."""
    plugin = find(group, given)
    arguments = (signature_of(plugin.make) or {}).items()
    defaults = {name: default for name, default in arguments if default is not Parameter.empty}
    said = {
        name: value
        for name, value in plugin.arguments.items()
        if name in defaults or value is not None
    }
    return {**defaults, **said}


def resolved(drafter: Settings, verifier: Settings, temperature: float) -> Settings:
    """The settings of the rule that this drafter's trees are judged by: `auto` chooses one where
    they have one sibling law."""
    rule = build("verifier", verifier)
    if type(rule).settled is not Verifier.settled:
        begins, _ = begun(drafter, temperature)
        chosen = rule.settled(begins, Sampling(temperature), Keyed(0))
        if chosen is not rule:
            return arguments_of("verifier", {"name": name_of(chosen)})
    return arguments_of("verifier", verifier)


def _identity(drafter: Settings, verifier: Settings, kind: bool) -> str:
    """What identifies a pair: its arguments. With `kind`, numbers and weights are ignored: numbers
    only size the tree and do not change the law. (But a chain and a tree are two kinds: one child
    per node or several makes a difference.)"""
    parts = []
    for group, settings in (("drafter", drafter), ("verifier", verifier)):
        arguments = arguments_of(group, settings)
        kept = {"_target_": arguments["_target_"], **with_defaults(group, arguments)}
        if kind:
            weights = getattr(find(group, arguments).make, "weight_arguments", frozenset())
            widths = kept.pop("branching", None)
            kept = {
                key: value
                for key, value in kept.items()
                if key not in weights and not _number(value)
            }
            if widths is not None:
                kept["chain"] = max(widths if isinstance(widths, Sequence) else [widths]) == 1
        parts.append(kept)
    return json.dumps(parts, sort_keys=True, default=str)


def _number(value: Any) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)) or value is None


def path_of(certificate: Mapping[str, Any], folder: str | Path) -> Path:
    """Where a certificate is kept: one file per pair and settings."""
    identity = _identity(certificate["drafter"], certificate["verifier"], kind=False)
    mark = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return Path(folder) / f"{'-'.join(certificate['pair'])}-{mark}.json"


def write(certificate: Mapping[str, Any], folder: str | Path = FOLDER) -> Path:
    """A newer certificate replaces an older one, whole or not at all."""
    path = path_of(certificate, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in drafts(path):
        leftover.unlink(missing_ok=True)
    write_json(path, dict(certificate))
    return path


def read_certificates(folder: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The certificates in a folder, in the order of their names. Other files are skipped."""
    for path in sorted(Path(folder).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if {"drafter", "verifier", "verdict", "pair"} <= content.keys():
                yield path, content
        except (OSError, ValueError, AttributeError):
            continue


def checks_of(certificate: Mapping[str, Any]) -> list[str]:
    """The checks that ran, in their order."""
    return [check for check in CHECKS if certificate.get(check)]


def law_of(
    certificate: Mapping[str, Any], file: Path | None = None, same_settings: bool = True
) -> Law:
    """What a certificate says about a pair with the present code; about other code it says nothing.
    Raises ValueError for a plug-in that is not here."""
    verdict, changed = certificate["verdict"], code.changed(certificate)
    if changed and verdict != LOSSY:
        verdict = STALE
    git = certificate.get("git")
    return Law(
        verdict=verdict,
        file=str(file) if file else None,
        git=Git(**git) if git else None,
        same_settings=same_settings,
        checks=checks_of(certificate),
        changed=changed,
    )


def find_law(
    drafter: Settings, verifier: Settings, *folders: str | Path, temperature: float = 1.0
) -> Law | None:
    """What the certificate of a pair says; None where there is none. The pair is given by its
    settings (`_target_` or `name`, and arguments). `folders`: where to look, the first match wins;
    the working folder's and the shipped ones by default.

    A certificate of this code is preferred to a stale one. After that, one with exactly the same
    arguments is preferred to one of the same kind, which differs only in numbers and weights.
    `verifier` may be `auto`, which is replaced by its choice at `temperature`.
    """
    found: list[Law] = []
    written = [
        entry for folder in folders or (FOLDER, SHIPPED) for entry in read_certificates(folder)
    ]
    if not written:
        return None
    verifier = resolved(drafter, verifier, temperature)
    ours = [_identity(drafter, verifier, kind) for kind in (False, True)]
    for path, content in written:
        try:
            theirs = [
                _identity(content["drafter"], content["verifier"], kind) for kind in (False, True)
            ]
            if ours[1] == theirs[1]:
                found.append(law_of(content, path, ours[0] == theirs[0]))
        except ValueError:  # of a plug-in that is not here
            continue
    best = sorted(found, key=lambda law: (law.verdict == STALE, not law.same_settings))
    return best[0] if best else None


def attached(drafter: Settings, verifier: Settings, report: Report) -> Law:
    """What a run's result says about its law."""
    if not report.lossless:
        return Law(verdict=LOSSY)
    judge = verifier if "_target_" in verifier else {"name": report.verifier}  # what `auto` was
    found = find_law(drafter, judge)
    return found or Law(verdict=NOT_CERTIFIED)
