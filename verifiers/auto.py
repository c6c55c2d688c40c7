"""Lossless on every tree: the strongest rule for its siblings, from a table.

A drafter whose trees have one sibling law gets one rule for the whole run. Where they have several,
as those of a portfolio of a lookup and a model, each round's tree is judged by the rule of its own
law. That law is known before anything is drawn, and each rule is exact for its own. Cost: that of
the round's rule; a lookup's tree is not judged at the price of a sampled one.
"""

from collections.abc import Mapping
from functools import cached_property

from specdec import Drafter, Laws, Sampling, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Chance, Draws
from specdec.plugins import build

SAMPLED, CHAIN = (SiblingLaw.WOR, SiblingLaw.WR), "sampled_chain"


class Auto(Verifier):
    """Exact for every tree.

    table  names of rules: by sibling law, and for chains whose tokens were drawn, temperature 0 and
           coupled chance. Where trees have several laws, one that needs a fixed width gives way to
           `naive`
    """

    laws = frozenset(SiblingLaw)

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = dict(table)

    def settled(self, drafter: Drafter, sampling: Sampling, chance: Chance) -> Verifier:
        if not (sampling.greedy or chance.coupled) and drafter.other_laws:
            return self
        return _rule(self.table[_case(drafter, sampling, chance)])

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return self.rule_for(trees).verify(trees, p, chance)

    def rule_for(self, trees: TokenTree) -> Verifier:
        return self._rules[_case_of(trees.is_chain, trees.law)]

    @cached_property
    def _rules(self) -> dict[str, Verifier]:
        """By sibling law, and for drawn chains. Made when they are needed: most runs settle for
        one."""
        cases = (CHAIN, *(law.value for law in SiblingLaw))
        return {case: _of_any_width(self.table[case]) for case in cases}


def _case(drafter: Drafter, sampling: Sampling, chance: Chance) -> str:
    """The entry of the table for a drafter of one law."""
    if sampling.greedy:
        return "zero_temperature"
    if chance.coupled:
        return "coupled"
    return _case_of(drafter.chain, drafter.law)


def _case_of(chain: bool, law: SiblingLaw) -> str:
    return CHAIN if chain and law in SAMPLED else law.value


def _rule(name: str) -> Verifier:
    rule: Verifier = build("verifier", name)
    return rule


def _of_any_width(name: str) -> Verifier:
    rule = _rule(name)
    return _rule("naive") if rule.needs_fixed_width else rule
