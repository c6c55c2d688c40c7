"""Lossless on every tree: the strongest rule for its siblings, from a table.

A drafter whose trees have one sibling law gets one rule for the whole run. Where they have several,
as those of a portfolio of a lookup and a model, each round's tree is judged by the rule of its own
law. That law is known before anything is drawn, and each rule is exact for its own. Cost: that of
the round's rule; a lookup's tree is not judged at the price of a sampled one.
"""

from collections.abc import Mapping

from specdec import Drafter, Laws, Sampling, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Chance, Draws
from specdec.plugins import build

SAMPLED = (SiblingLaw.WOR, SiblingLaw.WR)


class Auto(Verifier):
    """Exact for every tree.

    table  names of rules: by sibling law, and for chains whose tokens were drawn, temperature 0 and
           coupled chance. Where trees have several laws, one that needs a fixed width gives way to
           `naive`
    """

    laws = frozenset(SiblingLaw)

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = dict(table)
        self._by_law = {law: _of_any_width(table[law.value]) for law in SiblingLaw}
        self._sampled_chain = _of_any_width(table["sampled_chain"])

    def settled(self, drafter: Drafter, sampling: Sampling, chance: Chance) -> Verifier:
        if not (sampling.greedy or chance.coupled) and drafter.other_laws:
            return self
        return _rule(self.table[_case(drafter, sampling, chance)])

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return self.rule_for(trees).verify(trees, p, chance)

    def rule_for(self, trees: TokenTree) -> Verifier:
        if trees.is_chain and trees.law in SAMPLED:
            return self._sampled_chain
        return self._by_law[trees.law]


def _case(drafter: Drafter, sampling: Sampling, chance: Chance) -> str:
    """The entry of the table for a drafter of one law."""
    if sampling.greedy:
        return "zero_temperature"
    if chance.coupled:
        return "coupled"
    return "sampled_chain" if drafter.chain and drafter.law in SAMPLED else drafter.law.value


def _rule(name: str) -> Verifier:
    rule: Verifier = build("verifier", name)
    return rule


def _of_any_width(name: str) -> Verifier:
    rule = _rule(name)
    return _rule("naive") if rule.needs_fixed_width else rule
