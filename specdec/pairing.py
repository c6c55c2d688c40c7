"""Which verifier is allowed for which drafter's trees. Decided once per call, after the drafter's
`begin`."""

from typing import Any

from specdec.chance import Chance
from specdec.errors import Refused, integer, switch
from specdec.interfaces import Drafter, Verifier
from specdec.plugins import build, name_without_yaml
from specdec.sampling import Sampling
from specdec.tree import SiblingLaw


def name_of(plugin: Drafter | Verifier) -> str:
    """The name of a plug-in: that of its YAML or, if it was made from its class,
    `name_without_yaml`."""
    return plugin.yaml_name or name_without_yaml(type(plugin))


def laws_of(drafter: Drafter) -> set[SiblingLaw]:
    """That its trees have."""
    return {drafter.law, *drafter.other_laws}


def check_declared(drafter: Drafter) -> None:
    """Raise ValueError if a drafter declares something impossible about its trees."""
    title = f"drafter {name_of(drafter)!r}: "
    for law in (drafter.law, *drafter.other_laws):
        if not isinstance(law, SiblingLaw):
            raise ValueError(f"{title}law must be a specdec.SiblingLaw, got {law!r}")
    integer(f"{title}max_nodes (root included)", drafter.max_nodes, 1)
    switch(f"{title}chain", drafter.chain)
    switch(f"{title}fixed_width", drafter.fixed_width)


def pair(
    drafter: Drafter,
    verifier: str | dict[str, Any] | Verifier,
    sampling: Sampling,
    chance: Chance,
    vocabulary: int,
    allow_lossy: bool,
) -> Verifier:
    """The verifier for this drafter. Raises Refused, naming both, if the rule would not be
    exact."""
    check_declared(drafter)
    rule = verifier if isinstance(verifier, Verifier) else build("verifier", verifier)
    rule = rule.settled(drafter, sampling, chance)
    ours, theirs = name_of(rule), name_of(drafter)

    def refuse(reason: str) -> None:
        raise Refused(f"verifier {ours!r} cannot judge the trees of drafter {theirs!r}: {reason}")

    if not rule.lossless and not allow_lossy:
        raise Refused(
            f"verifier {ours!r} is lossy: its output does not have the target's law; pass "
            "allow_lossy=True to use it anyway"
        )
    if rule.zero_temperature_only and not sampling.greedy:
        raise Refused(
            f"verifier {ours!r} is exact at temperature 0 only, got temperature "
            f"{sampling.temperature}; use 'naive' or 'auto'"
        )
    if chance.coupled and not rule.coupled:
        refuse(
            "coupled chance has one race per position, so only 'naive' and 'greedy' work under it"
        )
    if not laws_of(drafter) <= rule.laws:
        laws = sorted(law.name for law in laws_of(drafter))
        allowed = ", ".join(sorted(law.name for law in rule.laws))
        refuse(
            f"its siblings are {' and '.join(laws)}, the rule is exact for {allowed}; 'naive' "
            "takes every tree"
        )
    if rule.chain_only and not drafter.chain:
        refuse("it is for chains, and the drafter proposes trees")
    if rule.needs_fixed_width and not drafter.fixed_width:
        refuse(
            "it uses the joint law of all siblings, so their number must be fixed before the first "
            "is drawn (fixed_width)"
        )
    if rule.max_vocabulary is not None and vocabulary > rule.max_vocabulary:
        refuse(
            f"it is an oracle for vocabularies of at most {rule.max_vocabulary} tokens, this one "
            f"has {vocabulary}"
        )
    return rule
