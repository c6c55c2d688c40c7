"""Certificates of every pair, the statistics behind them, and case files."""

import itertools
import json
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments import certify as certify_command
from experiments.certificates import exact, kept, sampled, statistics
from experiments.certificates.certificate import Pair, Plan, certify
from experiments.certificates.enumeration import outcomes
from experiments.certificates.kept import find_certificate, resolved, write
from experiments.certificates.suite import make, pairs, rules
from experiments.certificates.tables import Tables, read_cases, standard
from specdec import Enumerate
from specdec.plugins import build, names
from tests.exact import title

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


@pytest.mark.slow
@pytest.mark.parametrize(("drafter", "rule"), pairs(), ids=title)
def test_certificates_of_all_pairs(drafter, rule):
    plan = Plan(strength=0.3, target="tiny", prompts=4, max_new_tokens=24)
    found = certify(Pair(drafter, {"name": rule}), plan, no_bar)
    lossless = build("verifier", rule).lossless
    assert found["verdict"] == (kept.CERTIFIED if lossless else kept.LOSSY), found["reasons"]


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
    assert find_certificate(pair.drafter, pair.verifier, tmp_path)["same_settings"]
    deeper = {**pair.drafter, "depth": 5, "model": "another"}
    assert not find_certificate(deeper, pair.verifier, tmp_path)["same_settings"]
    assert find_certificate(deeper, {"name": "naive"}, tmp_path) is None
    assert find_certificate({**pair.drafter, "draw": "wr"}, pair.verifier, tmp_path) is None


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
        settings = {
            "drafter": {"_target_": "drafters.none.NoDrafter"},
            "verifier": {"_target_": name},
        }
        return {
            **settings,
            "pair": ["none", name],
            "verdict": "certified",
            "sampled": {"tests": tests},
        }

    for name in (
        "a.b.C",
        "d.e.F",
    ):  # 8e-7 falls alone and after one that fell, not beside one that stands
        (tmp_path / f"{name}.json").write_text(
            json.dumps(certified(name, 8e-7 if name == "a.b.C" else 1e-9))
        )
    (tmp_path / "other.json").write_text("[]")
    suite = certify_command.read_folder(str(tmp_path))
    assert [one["pair"][1] for one in suite] == ["a.b.C", "d.e.F"]
    assert len(certify_command.summarise(suite)) == 2
    assert certify_command.summarise(suite[:1]) == ["none + a.b.C: temperature"]
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


def test_a_folder_is_certified_again_pair_by_pair(tmp_path, monkeypatch):
    pairs_of = [({"name": "none"}, {"name": name}) for name in ("greedy", "naive")]
    for number, (drafter, verifier) in enumerate(pairs_of):
        content = {
            "drafter": drafter,
            "verifier": verifier,
            "verdict": "certified",
            "pair": ["none", "naive"],
        }
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    seen = []
    monkeypatch.setattr(certify_command, "certify_pair", lambda config, *pair: seen.append(pair))
    config = certify_command.Certify(again=str(tmp_path), drafter={}, verifier={})
    certify_command.main.__wrapped__(OmegaConf.structured(config))
    assert seen == pairs_of
