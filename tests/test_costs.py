"""Cost tables as values and files, one price for time, and chances that are learnt."""

import json
from dataclasses import replace

import numpy as np
import pytest

from drafters.suffix import Suffix
from experiments.certificates.tables import standard
from specdec import Costs
from specdec.drafting.shape import Shape
from specdec.measuring.machine import Machine
from specdec.models.compiled import NODES
from specdec.pricing import files, known
from specdec.pricing.by_price import AGAIN, FIRST_TRIES, Learnt, Pause, Tried
from specdec.pricing.costs import Measured, Measuring
from specdec.pricing.measure import here, measure
from specdec.pricing.price import Choice, Price, rate_under_price, rate_under_ratio
from specdec.pricing.survival import GoingOn, Survival, sigma

MACHINE = Machine(cpu="a processor", cores=2, gpu=None, system="a system")
WHERE = Measuring(
    target="a target",
    dtype="float32",
    layers=0,
    device="cpu",
    machine=MACHINE,
    threads=2,
    versions={},
)
TABLE = Costs.written(WHERE, "suffix")
TABLES = standard()[0]


def measured(**changes) -> Measured:
    usual = Measured("suffix", False, False, 1, 5, 100, 1, 0.001, 0.004, 0.001, 0.0)
    return usual._replace(**changes)


def table(*rounds: Measured) -> Costs:
    return Costs(WHERE, rounds)


# ------------------------------------------------------------------------------------- tables


def test_a_table_survives_its_file(tmp_path):
    TABLE.save(tmp_path / "deep" / "costs.json")
    found = Costs.load(tmp_path / "deep" / "costs.json")
    assert (found.measuring, found.rounds) == (TABLE.measuring, TABLE.rounds)
    assert found.drafters == ["suffix"]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["costs.json"]


def test_a_result_holds_the_table_that_its_run_decided_by(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"effective": {"drafter": {"costs": TABLE.as_dict()}}}))
    assert Costs.load(path).rounds == TABLE.rounds


def test_curves_between_and_beyond_what_was_measured():
    costs = table(
        *(
            measured(nodes=nodes, context=context, rows=rows, score=1.0 * nodes + context + rows)
            for nodes in (1, 5)
            for context in (0, 1000)
            for rows in (1, 3)
        )
    )
    at = costs.curves("suffix", context=480, rows=2)  # contexts count in steps of 64
    assert at.score[3] == pytest.approx(3 + 480 + 2)
    assert costs.curves("suffix", context=9999, rows=1).score[1] == pytest.approx(1 + 1000 + 1)
    assert at.score[40] == pytest.approx(40 + 480 + 2)  # past the largest tree: the same slope


def test_drafting_costs_a_pass_for_each_level():
    rounds = [
        measured(levels=levels, nodes=1 + nodes, draft=0.002 + 0.003 * levels + 0.0001 * nodes)
        for levels, nodes in ((1, 1), (1, 4), (2, 8), (4, 4))
    ]
    at = table(*rounds, measured(levels=0, nodes=1, draft=0.0005)).curves("suffix")
    assert (at.first, at.level, at.node) == pytest.approx((0.002, 0.003, 0.0001))
    assert at.draft(0) == 0.0005
    assert at.round(5, 2) == pytest.approx(at.score[5] + at.host[5] + 0.008 + 0.0004)


def test_drafts_in_one_call_have_costs_of_their_own():
    by_level = [
        measured(levels=levels, nodes=1 + nodes, draft=0.002 + 0.003 * levels)
        for levels, nodes in ((1, 1), (2, 8), (4, 4))
    ]
    at_once = [
        measured(levels=4, draft=0.004, at_once="chain", context=context) for context in (100, 900)
    ]
    costs = table(*by_level, *(one._replace(context=900) for one in by_level), *at_once)
    at = Costs.of_dict(costs.as_dict()).curves("suffix", context=300)
    assert at.at_once("chain", 4) == pytest.approx(0.004)
    assert np.isnan([at.at_once("chain", 2), at.at_once("ranked", 4)]).all()
    assert at.level == pytest.approx(0.003)
    old = costs.as_dict()
    old["rounds"] = [{k: v for k, v in one.items() if k != "at_once"} for one in old["rounds"][:3]]
    assert np.isnan(Costs.of_dict(old).curves("suffix").chain).all()


def test_a_kind_of_drafts_that_has_waited_is_tried_again():
    tried, chain, tree = Tried(), Shape(2), Shape(3, 2, "ranked", 6)
    for _ in range(FIRST_TRIES):
        assert tried.due(("chain", "ranked")) == "chain"
        tried.round(chain, 2)
        assert tried.due(("chain", "ranked")) == "ranked"
        tried.round(tree, 6)
    for _ in range(AGAIN):
        assert tried.due(("chain", "ranked")) is None
        tried.round(chain, 2)
    tried.round(chain, 2)
    assert tried.due(("chain", "ranked")) == "ranked"
    assert tried.due(("chain",)) is None
    assert 2 < tried.nodes < 3  # of ranked trees, per level


def test_a_jag_does_not_stop_a_tree_before_a_cheap_step():
    seconds = {1: 1.0, 2: 1.5, 3: 1.5, 4: 1.5, 5: 3.0}
    rounds = [measured(nodes=n, score=s, host=0.0, levels=0) for n, s in seconds.items()]
    steps = table(*rounds).curves("suffix").steps
    assert steps[1:4] == pytest.approx([0.5 / 3] * 3)
    assert (np.diff(steps[1:20]) >= -1e-12).all()


def test_compiled_passes_cost_what_the_size_they_are_padded_to_costs():
    rounds = [measured(nodes=nodes, score=float(nodes), compiled=True, levels=0) for nodes in NODES]
    at = table(*rounds).curves("suffix", compiled=True)
    assert at.score[5] == at.score[8] == 8
    assert at.score[9] == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": replace(MACHINE, cpu="another")}, "machine a processor, here another"),
        ({"target": "another"}, "target a target, here another"),
        ({"threads": 1}, "threads 2, here 1"),
        ({"dtype": "bfloat16"}, "dtype float32, here bfloat16"),
    ],
)
def test_another_machine_or_model_is_a_warning_and_refused_if_strict(change, words):
    elsewhere = replace(WHERE, **change)
    with pytest.warns(UserWarning, match=words):
        TABLE.check(elsewhere)
    with pytest.raises(ValueError, match=words):
        TABLE.check(elsewhere, strict=True)
    TABLE.check(WHERE, strict=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[]", "is no cost table"),
        ('{"effective": {"drafter": {}}}', "is no cost table"),
        ('{"kind": "specdec costs 1"}', "is broken: 'measuring'"),
        (json.dumps({**TABLE.as_dict(), "rounds": []}), "has no rounds"),
        (json.dumps({**TABLE.as_dict(), "rounds": [{"nodes": 1}]}), "is broken"),
        (
            json.dumps({**TABLE.as_dict(), "rounds": [measured(score=-1.0)._asdict()]}),
            "a round that cannot be",
        ),
    ],
)
def test_files_that_are_no_tables(text, words, tmp_path):
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        Costs.load(path)


def test_a_file_or_a_drafter_that_is_not_there():
    with pytest.raises(ValueError, match=r"costs names no file: nowhere\.json; measure a table"):
        Costs.load("nowhere.json")
    with pytest.raises(ValueError, match=r"has no rounds of eagle; it has suffix\. Measure it"):
        TABLE.curves("eagle")
    for wrong in (3, "", None):
        with pytest.raises(ValueError, match="costs must be 'auto', a file"):
            known.check_choice(wrong)


def test_measured_on_first_use_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(known.FOLDER, str(tmp_path))
    monkeypatch.setattr("specdec.pricing.measure.SIZES", ((0, 0), (1, 2)))
    target, drafter = TABLES.target(), Suffix(nodes=2)
    few = {"repeats": 2, "sizes": ((0, 0), (1, 2)), "temperatures": (0.0,)}
    monkeypatch.setattr(
        "specdec.pricing.measure.measure", lambda *given, **_: measure(*given, rows=(1,), **few)
    )
    found = known.costs_for("auto", target, drafter)
    assert "measuring the costs of" in capsys.readouterr().err
    assert found.drafters == ["suffix"]
    assert {(one.levels, one.nodes) for one in found.rounds if one.drafter} == {(0, 1), (1, 3)}
    assert found.measuring == here(target)
    again = known.costs_for("auto", target, drafter)
    assert capsys.readouterr().err == ""
    assert again.rounds == found.rounds
    assert again.plain() > 0


# -------------------------------------------------------------------------------------- price


KINDS = [(0.5, (Choice(1, 1), Choice(4, 2.5))), (0.5, (Choice(1, 1), Choice(1.3, 1.25)))]


def test_the_best_ratio_of_each_round_is_not_the_best_rate():
    """Two kinds of rounds, equally frequent: the ratio takes the longer one in both."""
    assert rate_under_ratio(KINDS) == 5.3 / 3.75  # 1.413
    assert rate_under_price(KINDS) == 5 / 3.5  # 1.429


def test_the_price_is_the_rate_of_the_run():
    price = Price()
    assert price(2, 0.5) == 4  # plain decoding, before anything is known
    for _ in range(3000):
        price.learn(2, 0.5, tokens=6, seconds=1.0)
    assert price(2, 0.5) == pytest.approx(6, rel=1e-3)
    assert price(1, 0.5) == 2  # another number of rows


def test_drafting_that_loses_pauses_for_longer_and_longer():
    pause = Pause()
    drafted = []
    for _ in range(400):
        drafted.append(pause.drafts())
        if drafted[-1]:
            pause.learn(-0.5)
    assert all(drafted[:20])
    assert sum(drafted[100:]) < 30
    assert any(drafted[200:])  # it still tries
    drafted = []
    for _ in range(400):
        drafted.append(pause.drafts())
        if drafted[-1]:
            pause.learn(2.0)
    assert all(drafted[300:])  # once it pays, it drafts again


# ----------------------------------------------------------------------------------- survival


def outcomes(count: int, slope: float, bias: float, seed: int = 0):
    random = np.random.default_rng(seed)
    q = random.uniform(0.02, 0.98, count)
    chance = sigma(slope * np.log(q / (1 - q)) + bias)
    return q, random.integers(1, 4, count), random.uniform(size=count) < chance


def test_chances_are_learnt_from_outcomes():
    survival = Survival(4)
    assert survival(np.array([0.5]), 1) == pytest.approx(sigma(np.array([-0.2])))
    q, depth, accepted = outcomes(4000, 1.2, 0.4)
    for first in range(0, 4000, 20):
        part = slice(first, first + 20)
        survival.learn(q[part], depth[part], accepted[part])
    assert survival.slope == pytest.approx(1.2, abs=0.2)
    assert survival.bias[:3] == pytest.approx([0.4] * 3, abs=0.35)
    assert survival.bias[3] == pytest.approx(survival.bias[:3].mean(), abs=0.2)  # no outcome there


def test_deep_levels_are_not_expected_to_be_worse_before_they_are_reached():
    """Every level is accepted as often. The deepest ones have few outcomes."""
    survival, random = Survival(6), np.random.default_rng(0)
    for _ in range(60):
        depth = np.arange(1, 4)
        survival.learn(np.full(3, 0.6), depth, random.random(3) < 0.85)
    survival.learn(np.full(3, 0.6), np.full(3, 6), np.ones(3, dtype=bool))
    assert (survival(np.array([0.6] * 3), np.array([4, 5, 6])) > 0.7).all()  # 0.5 before


def test_what_was_learnt_is_kept_in_a_file(tmp_path):
    learnt, other = Learnt(3), Learnt(3)
    learnt.first.learn(*outcomes(200, 1.5, 0.0))
    files.save(tmp_path / "learnt.safetensors", learnt.state())
    other.restore(files.load(tmp_path / "learnt.safetensors"))
    q = np.linspace(0.1, 0.9, 5)
    assert (other.first(q, 2) == learnt.first(q, 2)).all()
    with pytest.raises(ValueError, match="has 3 depths, expected 2"):
        Learnt(2).restore(learnt.state())
    with pytest.raises(ValueError, match="learnt names no file"):
        files.load(tmp_path / "nowhere")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="is no safetensors file"):
        files.load(tmp_path / "text")


def test_how_often_another_level_brings_a_token():
    going = GoingOn(3)
    assert going(1) == pytest.approx(0.6)
    for turn in range(400):
        going.learn(2, turn % 4 == 0)
    assert going(2) == pytest.approx(0.25, abs=0.03)
    # not reached: like the one above
    assert going(7) == going(3) == pytest.approx(going(2), abs=1e-9)
