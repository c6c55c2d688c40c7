"""Losslessness, exactly: every drafter under every rule that the contract allows, enumerated
outcome by outcome in float64. What every plug-in has to keep is experiments.certificates.laws."""

from fractions import Fraction

import pytest

from experiments.certificates import laws
from experiments.certificates.laws import TestLaws as TestLaws
from experiments.certificates.suite import pairs, rules
from experiments.certificates.tables import Tables
from specdec.plugins import build
from tests.exact import COINS, KNOWN, TOY, Toy, exact, make, table, title

EXACT = 1e-12
OTHER_PROMPT = (1, 0, 2, 1, 0, 1, 0)
FEW = 60  # outcomes that are also run one at a time

CASES = [  # draw, depth, branching, rule, expected accepted drafted tokens of the first round
    ("wor", 2, 1, "token", "67/50"),
    ("wor", 2, 1, "block", "7/5"),
    ("wor", 2, 1, "traversal", "7/5"),
    ("wor", 2, 1, "naive", "657/1250"),
    ("wr", 1, 2, "naive", "579/1000"),
    ("wr", 1, 2, "rrs_wr", "41/50"),
    ("wr", 1, 2, "kseq", "21/25"),
    ("wr", 1, 2, "is2", "21581/25300"),
    ("wr", 1, 2, "ot", "89/100"),
    ("wr", 1, 2, "traversal", "41/50"),
    ("wor", 1, 2, "naive", "989/1400"),
    ("wor", 1, 2, "rrs_wor", "47/56"),
    ("wor", 1, 2, "ot", "139/140"),
    ("wor", 1, 2, "traversal", "47/56"),
    ("topk", 1, 2, "naive", "7/10"),
    ("topk", 1, 2, "rrs_wor", "7/10"),
    ("topk", 1, 2, "traversal", "7/10"),
    ("hub", 1, 2, "hub", "19/20"),
    ("hub", 1, 2, "naive", "29/40"),
]
# p = (1/3, 2/3), q = (2/3, 1/3), everywhere: depth of the chain, rule, expected accepted drafted
# tokens
COIN_CASES = [
    *((1, rule, "2/3") for rule in ("token", "block", "traversal")),
    (1, "naive", "4/9"),
    *((2, rule, "11/9") for rule in ("block", "traversal")),
    (2, "token", "10/9"),
    (2, "naive", "52/81"),
    *((3, rule, "5/3") for rule in ("block", "traversal")),
    (3, "token", "38/27"),
    (3, "naive", "532/729"),
]


def of_this_project(cases: list[tuple], place: int) -> list[tuple]:
    return [case for case in cases if case[place] in rules()]


def pytest_generate_tests(metafunc):
    laws.parametrize(metafunc, ours=True)


@pytest.mark.parametrize("rule", [rule for rule in rules() if not build("verifier", rule).lossless])
def test_a_lossy_rule_is_seen_to_be_lossy(rule):
    drafter = {"name": "small_model", "depth": 2, "branching": 1, "draw": "wor"}
    found = exact(TOY, make(drafter, TOY), rule, tokens=3, allow_lossy=True)
    assert found.distance(TOY.plain(3)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("drafter", "rule"), pairs(allow_lossy=False), ids=title)
def test_one_round_on_other_tables(drafter, rule):
    """Side by side, and each outcome alone where they are few: rows of a batch and rows alone take
    different ways through the code."""
    for seed in range(3):
        p, q = (table(3, 2, first + seed) for first in (100, 200))
        tables = Tables(f"seed {seed}", p, q, OTHER_PROMPT)
        found = TestLaws.check((drafter, rule), tables, tokens=3)
        if found.outcomes <= FEW:
            TestLaws.check((drafter, rule), tables, tokens=3, alone=True)


@pytest.mark.parametrize(
    "rule", [rule for rule in ("token", "block", "naive", "traversal") if rule in rules()]
)
def test_whole_generations_of_coins(rule):
    """Every round is real: what one round leaves must not bend the next."""
    found = exact(
        COINS, make({"name": "small_model", "depth": 2}, COINS), rule, tokens=4, rounds=None
    )
    assert found.distance(COINS.plain(4)) < EXACT


@pytest.mark.parametrize(
    ("draw", "depth", "branching", "rule", "expected"), of_this_project(CASES, 3)
)
def test_known_expected_lengths(draw, depth, branching, rule, expected):
    drafter = {"name": "small_model", "depth": depth, "branching": branching, "draw": draw}
    found = exact(KNOWN, make(drafter, KNOWN), rule, tokens=depth + 1)
    assert found.accepted == pytest.approx(float(Fraction(expected)), abs=1e-9)
    assert found.distance(KNOWN.plain(depth + 1)) < EXACT


@pytest.mark.parametrize(("depth", "rule", "expected"), of_this_project(COIN_CASES, 1))
def test_known_expected_lengths_of_coins(depth, rule, expected):
    found = exact(
        COINS, make({"name": "small_model", "depth": depth}, COINS), rule, tokens=depth + 1
    )
    assert found.accepted == pytest.approx(float(Fraction(expected)), abs=1e-12)
    assert found.distance(COINS.plain(depth + 1)) < EXACT


def test_a_draft_model_that_is_the_target_is_always_accepted():
    toy = Toy(TOY.p, TOY.p, TOY.prompt)
    for rule in ("token", "block"):
        found = exact(toy, make({"name": "small_model", "depth": 2}, toy), rule, tokens=3)
        assert found.accepted == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"temperature": 1.7, "top_k": 2},
        {"top_p": 0.7},
        {"temperature": 1.7, "min_p": 0.3},
    ],
    ids=title,
)
@pytest.mark.parametrize(
    "rule",
    [rule for rule in ("naive", "token", "block", "rrs_wor", "traversal") if rule in rules()],
)
def test_sampling_options_bend_the_target_not_the_losslessness(options, rule):
    """The law to reach is that of plain decoding (the drafter `none`) with the same options."""
    drafter = {"name": "small_model", "depth": 2, "draw": "wor"}
    plain = exact(KNOWN, make({"name": "none"}, KNOWN), "naive", 3, rounds=None, **options)
    found = exact(KNOWN, make(drafter, KNOWN), rule, 3, rounds=None, **options)
    assert found.distance(plain.law) < EXACT


def test_the_toys_have_what_hides_faults():
    """Zeros in p and in q at the same prefix, and rows that depend on the context."""
    zeros = [(0 in TOY.p[prefix], 0 in TOY.q[prefix]) for prefix in TOY.p]
    assert {(True, True), (True, False), (False, True)} <= set(zeros)
    assert len({tuple(row) for row in TOY.p.values()}) > 10


def test_the_dense_tables_have_what_zeros_hide():
    """Residuals of more than one token, at the root and below a token that may be rejected."""
    tables = laws.DENSE
    for prefix in ((), (2,)):
        p, q = tables.p[prefix], tables.q[prefix]
        assert sum(p) == sum(q)
        assert sum(a > b for a, b in zip(p, q, strict=True)) == 2
    assert tables.p[()][2] < tables.q[()][2]
    assert min(min(row) for row in (*tables.p.values(), *tables.q.values())) > 0


def test_lossy_rules_need_permission():
    refused = {rule for _, rule in pairs()} - {rule for _, rule in pairs(allow_lossy=False)}
    assert refused == {rule for rule in rules() if not build("verifier", rule).lossless}
