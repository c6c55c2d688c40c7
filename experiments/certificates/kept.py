"""Certificates on disk: written, and found again by the settings of their pair. What a run needs of
them, without the checks."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.certificates.suite import Settings, begun
from experiments.system.files import write_json
from specdec.chance import Keyed
from specdec.measuring.report import Report
from specdec.pairing import choose
from specdec.plugins import find
from specdec.registry import described
from specdec.sampling import Sampling

SCHEMA_VERSION = 2  # of a certificate
CERTIFIED, NOT_CERTIFIED, LOSSY, NOT_APPLICABLE = (
    "certified",
    "not certified",
    "lossy",
    "not applicable",
)
FOLDER = "certificates"  # of the working folder: where `certify` writes
SHIPPED = Path(__file__).parent / "shipped"  # those that come with the project


def arguments_of(group: str, settings: Settings) -> dict[str, Any]:
    """The settings, with the YAML's own where there is a name."""
    return {**(described(group, settings["name"]) if settings.get("name") else {}), **settings}


def resolved(drafter: Settings, verifier: Settings, temperature: float) -> Settings:
    """The verifier's settings, with the rule that `auto` is for this drafter in its place."""
    if "_target_" in verifier or verifier.get("name", "auto") != "auto":
        return arguments_of("verifier", verifier)
    begins, _ = begun(drafter, temperature)
    return arguments_of("verifier", {"name": choose(begins, Sampling(temperature), Keyed(0))})


def _identity(drafter: Settings, verifier: Settings, kind: bool) -> str:
    """What a pair is; of its `kind`, numbers do not matter: they size the tree and choose no law
    (one child per node or several does: a chain and a tree are two kinds)."""
    parts = []
    for group, settings in (("drafter", drafter), ("verifier", verifier)):
        arguments = arguments_of(group, settings)
        weights = getattr(find(group, arguments).make, "weight_arguments", frozenset())
        kept = {key: value for key, value in arguments.items() if key not in {"name", *weights}}
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
    write_json(path, dict(certificate))
    return path


def read_certificates(folder: str | Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The certificates that lie in a folder, in the order of their names; what is no certificate is
    passed over."""
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
    """The certificate of a pair given by its settings (`_target_` or `name`, and arguments), with
    `same_settings`; None where there is none. `folders`: where to look, the first match wins; the
    working folder's and the shipped ones by default.

    One with the very same settings if there is one (a draft model's name is no such setting), else
    one of the same kind, which differs in numbers only. `verifier` may be that of `auto`, which
    then stands for its choice at `temperature`.
    """
    found: list[tuple[bool, dict[str, Any]]] = []
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
        except ValueError:  # of a plug-in that is not here
            continue
        if ours[1] == theirs[1]:
            kind = ours[0] != theirs[0]
            found.append((kind, {**content, "file": str(path), "same_settings": not kind}))
    return min(found, key=lambda entry: entry[0])[1] if found else None


def attached(drafter: Settings, verifier: Settings, report: Report) -> dict[str, Any]:
    """What a run's result says about its law: `verdict` is certified | not certified | lossy; with
    a certificate also its file, git state and whether its settings are the very same."""
    if not report.lossless:
        return {"verdict": LOSSY}
    judge = verifier if "_target_" in verifier else {"name": report.verifier}  # what `auto` was
    found = find_certificate(drafter, judge)
    if found is None:
        return {"verdict": NOT_CERTIFIED}
    verdict = found["verdict"] if found["verdict"] == CERTIFIED else NOT_CERTIFIED
    return {"verdict": verdict, **{key: found[key] for key in ("file", "git", "same_settings")}}
