"""Every drafter, in each of its variants, and every rule: which rules take which trees.

A broken plug-in (its YAML, its import, its `tiny`) is left out here, so that it does not stop the
tests of others; `examine` says what is wrong with it.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from experiments.certificates.tables import Tables, standard
from specdec import Drafter, Keyed, LanguageModel, Refused, Sampling
from specdec.pairing import pair
from specdec.plugins import build, find
from specdec.registry import names

Settings = Mapping[str, Any]
AUTO = "auto"  # chooses among others; judges where trees have several laws


def plugins() -> list[tuple[str, str]]:
    """(group, name) of all that there are, in order or not."""
    return [
        (group, name) for group in ("drafter", "verifier") for name in names(group) if name != AUTO
    ]


def rules() -> list[str]:
    """The verifiers that can be made."""
    found = []
    for group, name in plugins():
        try:
            if group == "verifier" and build(group, name).laws:
                found.append(name)
        except Exception:  # whatever a plug-in raises: `examine` says it
            continue
    return found


def drafters() -> list[Settings]:
    """Every drafter that can be found, in each of its variants."""
    found: list[Settings] = []
    for group, name in plugins():
        try:
            found += variants(name) if group == "drafter" else []
        except Exception:  # whatever a plug-in raises: `examine` says it
            continue
    return found


def variants(name: str) -> list[Settings]:
    """The settings of a drafter that deserve tests of their own."""
    return [
        {"name": name, **variant}
        for variant in getattr(find("drafter", name).make, "variants", [{}])
    ]


def examine(group: str, name: str) -> None:
    """Raise what is wrong with a plug-in; nothing where it can be made and has a partner."""
    if group == "drafter":
        for settings in variants(name):
            for temperature in (1.0, 0.0):
                begun(settings, temperature)
    elif not build(group, name).laws:
        raise ValueError(f"verifier {name} declares no sibling laws, so no tree is for it")
    met = {(drafter["name"], rule) for at in (1.0, 0.0) for drafter, rule in pairs(at)}
    if name not in {each[group == "verifier"] for each in met}:
        raise ValueError(
            f"{group} {name} has no partner: the contract allows it with none that is here"
        )


def title(value: Any) -> str | None:
    """What tests call a drafter's settings, a pair of these and a rule, or another value."""
    if isinstance(value, tuple):
        return "-".join(filter(None, map(title, value)))
    if isinstance(value, dict):
        return "-".join(str(part) for part in value.values()).replace(" ", "")
    return str(value) if isinstance(value, (str, int, float)) else None


def make(settings: Settings, target: LanguageModel, draft: LanguageModel) -> Drafter:
    """The drafter that these settings describe, for a small target."""
    found: Drafter = find("drafter", settings).made_tiny(target, draft)
    return found


def begun(settings: Settings, temperature: float = 1.0) -> tuple[Drafter, Tables]:
    """The drafter after its `begin`, when its law is final, on the first of the standard targets
    that it takes."""
    refusal: ValueError | None = None
    for tables in standard():
        try:
            drafter = make(settings, tables.target(), tables.draft())
            drafter.begin(tables.target(), 1, Sampling(temperature))
        except Refused:
            raise
        except ValueError as error:
            refusal = refusal or error
            continue
        return drafter, tables
    assert refusal
    raise refusal


@cache
def pairs(temperature: float = 1.0, allow_lossy: bool = True) -> list[tuple[Settings, str]]:
    """Drafters and rules that the contract allows together, by asking it."""
    found = []
    for settings in drafters():
        try:
            drafter, tables = begun(settings, temperature)
        except Exception:  # whatever a plug-in raises: `examine` says it
            continue
        sampling = Sampling(temperature)
        found += [
            (settings, rule)
            for rule in (*rules(), *([AUTO] if drafter.other_laws else []))
            if allows(drafter, rule, sampling, tables.vocabulary, allow_lossy)
        ]
    return found


def allows(
    drafter: Drafter, rule: str, sampling: Sampling, vocabulary: int, allow_lossy: bool
) -> bool:
    try:
        pair(drafter, build("verifier", rule), sampling, Keyed(), vocabulary, allow_lossy)
    except Refused:
        return False
    return True
