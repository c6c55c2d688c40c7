"""Every drafter of conf/drafter, in each of its variants, and every rule of conf/verifier: who may judge whom, on small targets."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from experiments.certificates.tables import Tables, standard
from specdec import Drafter, Keyed, LanguageModel, Refused, Sampling
from specdec.pairing import pair
from specdec.plugins import build, construct, described, find, names

Settings = Mapping[str, Any]


def rules() -> list[str]:
    """The verifiers of conf/verifier; `auto` is a table, not a rule."""
    return [name for name in names("verifier") if "_target_" in described("verifier", name)]


def drafters() -> list[Settings]:
    """Every drafter of conf/drafter, in each of its variants."""
    classes = {name: find("drafter", name)[0] for name in names("drafter")}
    return [{"name": name, **variant} for name in classes for variant in getattr(classes[name], "variants", [{}])]


def make(settings: Settings, target: LanguageModel, draft: LanguageModel) -> Drafter:
    """The drafter that these settings describe, for a small target: by its `tiny`, where it has one."""
    described, arguments = find("drafter", settings)
    tiny = getattr(described, "tiny", None)
    found = construct(described, arguments) if tiny is None else construct(tiny, arguments, target, draft)
    assert isinstance(found, Drafter)
    return found


def begun(settings: Settings, temperature: float = 1.0) -> tuple[Drafter, Tables]:
    """The drafter after its `begin`, when its law is final, on the first of the standard targets that it takes."""
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
        drafter, tables = begun(settings, temperature)
        found += [
            (settings, rule)
            for rule in rules()
            if allows(drafter, rule, Sampling(temperature), tables.vocabulary, allow_lossy)
        ]
    return found


def allows(drafter: Drafter, rule: str, sampling: Sampling, vocabulary: int, allow_lossy: bool) -> bool:
    try:
        pair(drafter, build("verifier", rule), sampling, Keyed(), vocabulary, allow_lossy)
    except Refused:
        return False
    return True
