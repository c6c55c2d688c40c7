"""The laws that every plug-in has to keep, as tests that run wherever this project is installed.

SPECDEC_ALLOW=theirs python -m pytest --pyargs experiments.certificates.laws
SPECDEC_ALLOW=theirs python -m pytest --pyargs experiments.certificates.laws -k NAME

Run this way, they test the plug-ins of other packages: their drafters under every rule, and their
rules on every drafter's trees. A package that announces itself by an entry point needs no
SPECDEC_ALLOW. Our own plug-ins get the same tests in tests/test_laws.py.
"""

import pytest

from experiments.certificates import exact, suite
from experiments.certificates.suite import Settings
from experiments.certificates.tables import Tables, standard
from specdec import Drafter
from specdec.plugins import build
from specdec.registry import is_ours

SETS = {tables.name: tables for tables in standard()}
ZEROS = SETS["zeros"]
# No zeros, and rows whose residual (p - q)+ has two tokens. If the residual is one-hot, a rule that
# tests a second sibling against a wrong q, or a wrong share of p, still has the right law.
DENSE = Tables(
    "dense",
    {
        (): [4, 3, 2, 1],
        (0,): [1, 5, 2, 2],
        (1,): [3, 1, 3, 3],
        (2,): [4, 4, 1, 1],
        (3,): [4, 1, 1, 4],
    },
    {
        (): [1, 2, 3, 4],
        (0,): [3, 2, 1, 4],
        (1,): [1, 4, 4, 1],
        (2,): [1, 2, 3, 4],
        (3,): [1, 2, 3, 4],
    },
    (0, 1, 2, 0, 3, 0),
)
TWO_ZEROS, TWO_DENSE = SETS["two tokens, zeros"], SETS["two tokens"]
AT_0 = Tables("zeros, T = 0", ZEROS.p, ZEROS.q, ZEROS.prompt, {"temperature": 0.0})

Pair = tuple[Settings, str]


def parametrize(metafunc: pytest.Metafunc, ours: bool) -> None:
    """A test for each plug-in, or for each pair that the contract allows: those of this project
    alone, or those with a part of another package."""

    def wanted(*parts: tuple[str, str]) -> bool:
        return ours == all(is_ours(group, name) for group, name in parts)

    if "plugin" in metafunc.fixturenames:
        found = [plugin for plugin in suite.plugins() if wanted(plugin)]
        metafunc.parametrize("plugin", found, ids=[name for _, name in found])
    for pair, temperature in (("pair", 1.0), ("pair_at_0", 0.0)):
        if pair in metafunc.fixturenames:
            met = [
                (drafter, rule)
                for drafter, rule in suite.pairs(temperature)
                if wanted(("drafter", drafter["name"]), ("verifier", rule))
            ]
            metafunc.parametrize(pair, met, ids=suite.title)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if all(is_ours(*plugin) for plugin in suite.plugins()):
        raise pytest.UsageError(
            "there are no plug-ins of other packages: name yours in SPECDEC_ALLOW, and see that "
            "YOURS/conf/drafter/NAME.yaml or YOURS/conf/verifier/NAME.yaml is there"
        )
    parametrize(metafunc, ours=False)


class TestLaws:
    def test_it_is_in_order_and_has_a_partner(self, plugin: tuple[str, str]) -> None:
        """Its YAML, its import, its `tiny`, each of its variants."""
        suite.examine(*plugin)

    def test_one_round_has_the_law_of_plain_sampling(self, pair: Pair) -> None:
        """Joint law of three tokens; trees are two deep at most: the last token is the bonus."""
        for tables in (ZEROS, DENSE):
            self.check(pair, tables, tokens=3)

    def test_two_rounds_have_the_law_of_plain_sampling(self, pair: Pair) -> None:
        """Two rounds for real, four tokens in all, where a round of two tokens is small enough.
        Rows of a batch and rows alone take different ways through the code, so both are run."""
        drafter, rule = pair
        if {"depth", "branching"} <= set(drafter):
            widths = drafter["branching"]
            first = widths if isinstance(widths, int) else widths[0]
            drafter = {**drafter, "depth": 1, "branching": min(2, first)}
        for tables, alone in ((TWO_DENSE, False), (TWO_ZEROS, True)):
            one = self.check((drafter, rule), tables, tokens=2)
            if one and one.outcomes > exact.TWO_ROUNDS:
                pytest.skip(f"one round has {one.outcomes} outcomes; two need a smaller variant")
            self.check((drafter, rule), tables, tokens=4, rounds=2, alone=alone)

    def test_temperature_0_is_the_greedy_continuation(self, pair_at_0: Pair) -> None:
        """No draw at all: one outcome, the argmax of every row (ties to the lowest index)."""
        found = self.check(pair_at_0, AT_0, tokens=5, rounds=5)
        assert found is None or found.outcomes == 1

    @staticmethod
    def check(
        pair: Pair, tables: Tables, tokens: int, rounds: int = 1, alone: bool = False
    ) -> exact.Exact | None:
        """The real law is that of plain sampling. alone: each outcome is a run of its own, as it
        always is for a drafter that learns. None: the rule is lossy."""
        drafter, rule = pair
        if not build("verifier", rule).lossless:
            return None

        def made(tables: Tables) -> Drafter:
            return suite.make(drafter, tables.target(), tables.draft())

        rows = 1 if alone else exact.ROWS
        found = exact.exact(tables, made, rule, tokens, rounds, rows=rows)
        assert found.lossless, str(found)
        return found
