"""Certificates of every pair, the statistics behind them, and case files."""

import copy
import itertools
import json
import subprocess
import sys
import zlib
from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments import certify as certify_command
from experiments.certificates import exact, greedy, sampled, statistics, tiny
from experiments.certificates.certificate import Pair, Plan, certify
from experiments.certificates.code import code_of
from experiments.certificates.enumeration import outcomes
from experiments.certificates.kept import find_law, resolved, write
from experiments.certificates.law import CERTIFIED, LOSSY
from experiments.certificates.suite import AUTO, make, pairs, rules
from experiments.certificates.tables import Tables, read_cases, standard
from specdec import Enumerate
from specdec.models.language_model import TransformersLM
from specdec.models.table import TableModel
from specdec.plugins import build, names
from tests.exact import exact as enumerated
from tests.exact import title
from tests.learners import Counts

STRENGTH = 0.05
SMALL = [
    tables for tables in standard() if tables.name in ("two tokens, zeros", "zeros", "filtered")
]
CASE = {
    "name": "coins",
    "V": 2,
    "P": {"": ["1", "2"]},
    "Q": {"": ["2/3", "1/3"]},
    "branching": [1, 1],
    "draft": "chain",
    "verifier": "block",
}


@contextmanager
def no_bar(name, total):
    yield lambda: None


@pytest.mark.parametrize(("drafter", "rule"), pairs(), ids=title)
def test_exact_certificates_of_all_pairs(drafter, rule):
    pair = Pair(drafter, {"name": rule})
    found, left_out = exact.suite(pair.on_tables, pair.rule(1.0), SMALL, size=500, limit=2000)
    assert found, left_out
    if pair.rule(1.0).lossless:
        assert all(one.lossless for one in found), [str(one) for one in found if not one.lossless]


@pytest.mark.parametrize("name", names("drafter"))
def test_every_drafters_own_settings_can_be_certified(name):
    chosen = resolved({"name": name}, {"name": "auto"}, 1.0)
    pair = Pair({"name": name}, chosen)
    found, left_out = exact.suite(pair.on_tables, pair.rule(1.0), SMALL[:2], size=30)
    assert len(found) > 1, left_out
    assert all(one.lossless for one in found), [str(one) for one in found if not one.lossless]


LOSSLESS_PAIRS = pairs(allow_lossy=False)


def dealt(things, place, places):
    """What one of several places gets when things are dealt out in turn: nothing is left over, and
    no place goes empty."""
    place %= places
    return list(things)[place % len(things) :: places]


def tables_of(drafter, rule):
    """The standard tables, dealt out among the drafters of a rule. Rules begin at different
    tables, so that a drafter meets several."""
    drafters = [one for one, other in LOSSLESS_PAIRS if other == rule]
    first, tables = [*rules(), AUTO].index(rule), standard()
    return dealt([*tables[first:], *tables[:first]], drafters.index(drafter), len(drafters))


def settings_of(drafter, rule):
    """The settings of the sampled tests, dealt out among the rules of a drafter. Drafters begin at
    different settings, so that a rule meets both."""
    partners = [other for one, other in LOSSLESS_PAIRS if one == drafter]
    first = zlib.crc32(title(drafter).encode())
    return dealt(sampled.SETTINGS, first + partners.index(rule), len(partners))


@pytest.mark.slow
@pytest.mark.parametrize(("drafter", "rule"), LOSSLESS_PAIRS, ids=title)
def test_certificates_of_all_pairs(drafter, rule, monkeypatch):
    """Whole certificates. What depends on the rule or on the drafter alone is dealt out."""
    monkeypatch.setattr(sampled, "SETTINGS", settings_of(drafter, rule))
    plan = Plan(
        strength=STRENGTH,
        target="tiny",
        prompts=4,
        max_new_tokens=24,
        tables=tables_of(drafter, rule),
    )
    found = certify(Pair(drafter, {"name": rule}), plan, no_bar)
    assert found["verdict"] == CERTIFIED, found["reasons"]


def test_every_rule_meets_all_tables_and_every_part_both_settings():
    tables, settings = defaultdict(set), defaultdict(set)
    for drafter, rule in LOSSLESS_PAIRS:
        tables[rule] |= {one.name for one in tables_of(drafter, rule)}
        for part in (title(drafter), rule):
            settings[part] |= {one.name for one in settings_of(drafter, rule)}
    assert all(met == {one.name for one in standard()} for met in tables.values()), tables
    assert all(len(met) == len(sampled.SETTINGS) for met in settings.values()), settings


@pytest.mark.parametrize("rule", [rule for rule in rules() if not build("verifier", rule).lossless])
def test_a_lossy_rule_is_never_certified(rule):
    """Whatever its drafter, and though nothing of it was compared."""
    drafter = next(one for one, other in pairs() if other == rule)
    found = certify(Pair(drafter, {"name": rule}), Plan(tables=SMALL[:1]), no_bar)
    assert found["verdict"] == LOSSY, found["reasons"]
    assert not {"sampled", "greedy"} & set(found)


COMPILED = [
    {"name": "small_model", "depth": 3},
    {"name": "small_model", "depth": 2, "branching": [2, 1]},
    {"name": "eagle", "depth": 2, "draw": "wor"},
    {"name": "medusa"},
]


def compiled(model, name):
    """An error where a pass cannot be compiled."""
    return TransformersLM(model, name=name, compile="require")


@pytest.mark.slow
@pytest.mark.parametrize("drafter", COMPILED, ids=title)
def test_exact_certificates_of_compiled_pairs(drafter):
    """Passes of fixed shape, every outcome of the draws: the law is that of plain compiled passes,
    and of uncompiled ones."""
    model, similar = (copy.deepcopy(each(3)).double() for each in (tiny.llama, tiny.similar))

    def law(target, drafter):
        toy = SimpleNamespace(
            target=target,
            prompt=(0, 1, 2, 1),
            completions=lambda emitted, mass, _: [(emitted, mass)],
        )
        return enumerated(toy, lambda: drafter, "auto", tokens=3, rounds=None)

    target = compiled(model, "tiny")
    found = law(target, make(drafter, target, compiled(similar, "draft")))
    assert target.compiled.shapes
    assert found.distance(law(target, "none").law) < exact.LOSSLESS
    # Its norms compute in float32, where kernels differ.
    assert found.distance(law(TransformersLM(model), "none").law) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("drafter", COMPILED, ids=title)
def test_sampled_certificates_of_compiled_pairs(drafter):
    """Whole drafts and verdicts, rows of unlike lengths."""
    pair = Pair(drafter, {"name": "auto"})
    job = sampled.prepare(
        sampled.SETTINGS[0],
        lambda target, draft: make(pair.drafter, target, draft),
        pair.rule(1.0),
        STRENGTH,
        lm=compiled,
    )
    result = next(result for result in job.run() if result is not None)
    assert result.passes, result
    assert job.target.compiled.shapes


@pytest.mark.slow
@pytest.mark.parametrize("drafter", COMPILED, ids=title)
def test_greedy_certificates_of_compiled_pairs(drafter):
    """In bfloat16, where compiled passes decide near-ties in their own way: reported as ties."""
    model, similar = (
        copy.deepcopy(make_tiny(97, **how, hidden=32)).bfloat16()
        for make_tiny, how in ((tiny.llama, {}), (tiny.similar, {"noise": 0.05}))
    )
    pair, target = Pair(drafter, {"name": "auto"}), compiled(model, "tiny")
    chosen = make(pair.drafter, target, compiled(similar, "draft"))
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(97, (3 + row,), generator=random).tolist() for row in range(4)]
    found = greedy.compare(target, prompts, chosen, pair.rule(0.0), 24)
    assert found.passes, found
    assert target.compiled.shapes


PARTNER = {
    **{rule: {"depth": 2} for rule in ("token", "block")},
    **{rule: {"depth": 2, "branching": [2, 1], "draw": "wr"} for rule in ("rrs_wr", "kseq", "is2")},
    **{
        rule: {"depth": 2, "branching": [2, 1], "draw": "wor"}
        for rule in ("naive", "rrs_wor", "traversal", "ot")
    },
    "hub": {"depth": 2, "branching": [2, 1], "draw": "hub"},
}


@pytest.mark.parametrize("rule", [rule for rule in rules() if rule in PARTNER])
def test_a_sampled_certificate_of_every_rule(rule):
    pair = Pair({"name": "small_model", **PARTNER[rule]}, {"name": rule})
    job = sampled.prepare(
        sampled.SETTINGS[0],
        lambda target, draft: make(pair.drafter, target, draft),
        pair.rule(1.0),
        STRENGTH,
    )
    result = next(result for result in job.run() if result is not None)
    assert result.rounds_per_row > 1.5
    assert result.passes, result


def test_a_rule_for_temperature_0_is_sampled_there():
    pair = Pair({"name": "small_model", "depth": 2, "branching": [2, 1]}, {"name": "greedy"})
    plan = Plan(checks=["sampled"], tables=SMALL[:1])
    found = certify(pair, plan, no_bar)
    assert found["verdict"] == "certified", found["reasons"]
    for test in found["sampled"]["tests"]:
        assert test["setting"].endswith("T = 0")
        assert (test["fit"]["samples"], test["fit"]["impossible"]) == (sampled.ROWS, 0)
        assert test["rounds_per_row"] > 1
    wrong = sampled.prepare(
        sampled.at_zero(sampled.SETTINGS[0]),
        lambda target, draft: make(pair.drafter, target, draft),
        pair.rule(0.0),
    )
    wrong.law[:] = np.roll(wrong.law, 1)  # another sequence
    result = next(result for result in wrong.run() if result is not None)
    assert result.fit.impossible == sampled.ROWS
    assert not result.passes


def test_outcomes_side_by_side_are_those_of_enumerate():
    tables = SMALL[1]
    pair = Pair({"name": "small_model", "depth": 2, "branching": [2, 1]}, {"name": "traversal"})
    program = exact.program(tables, pair.on_tables, pair.rule(1.0), 3, 1)
    together = sorted(outcomes(program, rows=7), key=str)
    alone = sorted(
        ((p, out) for p, (out,) in Enumerate().runs(lambda chance: program(chance, 1))), key=str
    )
    assert [out for _, out in together] == [out for _, out in alone]
    assert [p for p, _ in together] == pytest.approx([p for p, _ in alone], abs=1e-15)


def test_an_enumeration_that_gives_up_certifies_nothing():
    pair = Pair({"name": "small_model", "depth": 2}, {"name": "token"})
    found = exact.exact(SMALL[1], pair.on_tables, pair.rule(1.0), 3, limit=5)
    assert not found.complete
    assert not found.lossless
    assert 0 < found.covered < 1
    assert "nothing is certified" in str(found)


def counts(dtype=torch.float64):
    return lambda tables: Counts(tables.vocabulary, dtype)


@pytest.mark.parametrize(("tokens", "rounds"), [(3, 1), (4, 2)])
def test_outcomes_of_a_drafter_that_learns_are_runs_of_their_own(tokens, rounds, monkeypatch):
    """Rows of one batch, and runs of one object, share what it learns: side by side they are no
    function of their own draws, and a lossless pair looks lossy."""
    rule = build("verifier", "token")
    found = exact.exact(SMALL[1], counts(), rule, tokens, rounds)
    assert found.lossless, str(found)
    assert found.outcomes >= 10
    monkeypatch.setattr(Counts, "learns", False)
    shared = Counts(SMALL[1].vocabulary)
    with pytest.raises(ValueError, match=r"not a function of its draws.*`learns = True`"):
        exact.exact(SMALL[1], lambda tables: shared, rule, 6, 3)


def test_a_pair_that_learns_is_certified_on_every_table():
    found, left_out = exact.suite(counts(), build("verifier", "block"), SMALL, size=200)
    assert {one.tables for one in found} == {tables.name for tables in SMALL}
    assert all(one.lossless for one in found), [str(one) for one in found if not one.lossless]
    assert any(one.rounds == 2 for one in found), left_out


def test_laws_in_float32_are_called_rounding():
    """Their error is above 1e-12 and below its bound; a fault is far above that."""
    tables, rule = standard()[0], build("verifier", "token")
    found = exact.exact(tables, counts(torch.float32), rule, 4, 2)
    assert exact.LOSSLESS < found.tv < found.rounding < 1e-5
    assert found.lossless
    assert f"rounding of laws in less than float64: at most {found.rounding:.2g}" in str(found)
    exactly = exact.exact(tables, counts(), rule, 4, 2)
    assert exactly.rounding == 0
    assert "rounding" not in str(exactly)


def test_the_tables_have_what_hides_faults():
    sets = {tables.name: tables for tables in standard()}
    assert {tables.vocabulary for tables in sets.values()} == {2, 3, 4}
    assert sets["p = q"].p == sets["p = q"].q
    for prefix, row in sets["disjoint"].p.items():
        assert not any(a and b for a, b in zip(row, sets["disjoint"].q[prefix], strict=True))
    assert any(0 in sets["filtered"].law(prefix) for prefix in sets["filtered"].p)


# --------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(("cells", "expected"), [(27, 94), (64, 122), (256, 203), (1000, 360)])
def test_known_noncentralities(cells, expected):
    assert statistics.noncentrality(cells) == pytest.approx(expected, abs=1)


def test_cells_of_probability_0_fail_outright():
    found = statistics.fit(np.array([500, 499, 1]), np.array([0.5, 0.5, 0.0]))
    assert found.impossible == 1
    assert found.p_value == 0


def test_cells_are_hashed_and_merged():
    law = np.random.default_rng(0).dirichlet(np.ones(3000))
    found = statistics.fit(np.random.default_rng(1).multinomial(20_000, law), law)
    assert found.cells <= statistics.CELLS
    assert found.p_value > 1e-6
    small = np.array([0.9, 0.0999, 0.0001])
    assert statistics.fit(np.array([900, 100, 0]), small).cells == 2


def test_the_size_of_the_sample_finds_what_it_promises():
    law = np.full(64, 1 / 64)
    bent = law + 0.02 / 32 * np.repeat([1, -1], 32)
    samples = statistics.sample_size(64)
    draws = np.random.default_rng(2)
    found = [
        statistics.fit(draws.multinomial(samples, bent), law).p_value < statistics.SIZE
        for _ in range(50)
    ]
    assert sum(found) >= 46
    assert statistics.fit(draws.multinomial(samples, law), law).tv_upper < 0.05


def test_holm():
    assert statistics.holm([0.5, 1e-9, 4e-7], 1e-6) == [True, False, False]
    assert statistics.holm([0.5, 6e-7, 4e-7], 1e-6) == [True, True, True]


# ------------------------------------------------------------------ certificates, written and found


def test_certificates_are_found_by_the_pair(tmp_path):
    pair = Pair({"name": "small_model", "depth": 2, "branching": 2}, {"name": "rrs_wor"})
    found = certify(pair, Plan(checks=["exact"], tables=SMALL[:1]), no_bar)
    assert found["verdict"] == "certified"
    write(found, tmp_path)
    assert str(find_law(pair.drafter, pair.verifier, tmp_path)) == "certified (exact)"
    for other in ({"depth": 5}, {"model": "another"}):
        law = find_law({**pair.drafter, **other}, pair.verifier, tmp_path)
        assert str(law) == "certified: rule and tree, other settings (exact)"
    assert find_law(pair.drafter, {"name": "naive"}, tmp_path) is None
    assert find_law({**pair.drafter, "draw": "wr"}, pair.verifier, tmp_path) is None


def test_the_certificate_of_the_very_settings_comes_first(tmp_path):
    """Whatever the files are called; and a tree's is none of a chain."""
    rule = {"name": "rrs_wor"}
    tree = Pair({"name": "small_model", "depth": 2, "branching": 2}, rule)
    found = certify(tree, Plan(checks=["exact"], tables=SMALL[:1]), no_bar)
    others = [{**tree.drafter, "depth": depth} for depth in (2, 3, 4, 5, 6)]
    for drafter in others:
        write({**found, "drafter": drafter}, tmp_path)
    for drafter in others:
        assert find_law(drafter, rule, tmp_path).same_settings
    assert find_law({**tree.drafter, "branching": 1}, rule, tmp_path) is None


def test_rounds_are_run_for_real():
    """Two have more outcomes than one, whose second half is plain decoding."""
    pair = Pair({"name": "small_model", "depth": 1}, {"name": "token"})
    one, two = (exact.exact(SMALL[1], pair.on_tables, pair.rule(1.0), 4, n) for n in (1, 2))
    assert two.outcomes > one.outcomes
    assert two.accepted == pytest.approx(one.accepted)


def test_a_refused_pair_is_not_applicable():
    found = certify(
        Pair({"name": "ngram"}, {"name": "kseq"}), Plan(checks=["exact"], tables=SMALL[:1]), no_bar
    )
    assert found["verdict"] == "not applicable"
    assert "kseq" in found["reasons"][0]


def test_what_is_too_large_is_left_out_and_said():
    pair = Pair({"name": "small_model", "depth": 3}, {"name": "token"})
    found, left_out = exact.suite(pair.on_tables, pair.rule(1.0), SMALL[:2], size=50)
    assert {one.tables for one in found} == {"two tokens, zeros", "zeros"}
    assert any("zeros: depth" in reason and "more than size=50" in reason for reason in left_out)
    assert any("two rounds at depth" in reason for reason in left_out)


def test_a_folder_of_certificates_is_one_family(tmp_path, capsys):
    def certified(name, p_value):
        tests = [{"setting": "temperature", "fit": {"p_value": p_value}}]
        settings = {"drafter": {"name": "none"}, "verifier": {"name": name}}
        return {
            **settings,
            "pair": ["none", name],
            "verdict": "certified",
            "code": code_of(**settings),
            "sampled": {"tests": tests},
        }

    # 8e-7 falls alone and after one that fell, not beside one that stands
    for name, p_value in (("greedy", 8e-7), ("naive", 1e-9)):
        (tmp_path / f"{name}.json").write_text(json.dumps(certified(name, p_value)))
    (tmp_path / "other.json").write_text("[]")
    suite = certify_command.read_folder(str(tmp_path))
    assert [one["pair"][1] for one in suite] == ["greedy", "naive"]
    assert len(certify_command.summarise(suite)) == 2
    assert certify_command.summarise(suite[:1]) == ["none + greedy: temperature"]
    old = {**suite[0], "code": {}, "sampled": None}
    gone = {**old, "pair": ["none", "gone"], "verifier": {"_target_": "gone.Rule"}}
    assert certify_command.summarise([old, gone]) == ["none + greedy", "none + gone"]
    said = capsys.readouterr().err
    assert "stale: specdec, drafter, verifier changed" in said
    assert "stale: _target_ gone.Rule lies outside" in said
    suite[1]["sampled"]["tests"][0]["fit"]["p_value"] = 0.5
    assert certify_command.summarise(suite) == []
    assert "2 sampled tests as one family" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no certificates in"):
        certify_command.read_folder(str(tmp_path / "empty"))


# --------------------------------------------------------------------------------------- case files


def test_cases_from_a_file(tmp_path):
    bad = [
        {**CASE, "name": "beam", "draft": "beam"},
        {**CASE, "name": "rows", "P": {"": ["1"]}},
        {"name": "short"},
        7,
    ]
    refused = {**CASE, "name": "refused", "verifier": "hub"}
    path = tmp_path / "cases.json"
    path.write_text(
        json.dumps({"cases": [CASE, *bad, refused, {**CASE, "name": "token", "verifier": "token"}]})
    )
    command = [sys.executable, "-m", "experiments.certify", f"cases={path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["name"] for line in lines] == ["coins", "token"]
    assert [line["expected_accepted"] for line in lines] == pytest.approx(
        [11 / 9, 10 / 9], abs=1e-9
    )
    assert all(
        set(line) == {"name", "expected_accepted", "tv_joint", "lossless"} and line["lossless"]
        for line in lines
    )
    assert done.returncode == 1
    for name in ("'beam'", "'rows'", "'short'", "number 4", "'refused'"):
        assert f"{path}, case {name}" in done.stderr


@pytest.mark.parametrize("content", ["", "[]", "{}", "[1"])
def test_files_without_cases(tmp_path, content):
    path = tmp_path / "cases.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"cases\.json"):
        list(read_cases(path))


def test_rows_that_are_missing_are_the_roots():
    tables = Tables("coins", {(): [1, 2]}, {(): [2, 1]})
    assert tables.plain(2) == pytest.approx(
        {
            key: np.prod([(1 / 3, 2 / 3)[x] for x in key])
            for key in itertools.product(range(2), repeat=2)
        }
    )


RULES_OF_SIBLINGS = [
    ("rrs_wor", "wor"),
    ("traversal", "wor"),
    ("ot", "wor"),
    ("rrs_wr", "wr"),
    ("traversal", "wr"),
    ("kseq", "wr"),
    ("hub", "hub"),
]


def test_second_siblings_of_a_draft_that_is_nearly_certain():
    """In float32 a law that is nearly certain leaves its other tokens less than the rounding of 1:
    what is left after a sibling is a sum of its own, not 1 minus that sibling's probability."""
    certain = TableModel({(): [3e7, 3, 2, 1]}, dtype=torch.float32)
    tables = Tables("nearly certain", {(): [1, 6, 2, 1]}, {(): [1, 1, 1, 1]})
    settings = {"name": "small_model", "model": certain, "depth": 1, "branching": 3}
    for rule, draw in RULES_OF_SIBLINGS:
        drafter = build("drafter", {**settings, "draw": draw})
        found = exact.exact(tables, lambda tables, drafter=drafter: drafter, rule, 2)
        assert found.tv < 1e-5, str(found)
