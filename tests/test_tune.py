"""Tuning: candidates on few prompts, the better half on more; and the file that comes of it."""

import json
from dataclasses import dataclass, replace

import pytest

import specdec
from experiments import benchmark_tune, tune
from experiments.measuring.halving import halve
from experiments.measuring.ways import Sample
from experiments.study import schema
from specdec.plugins import build


@dataclass
class Told:
    """As much of a report as tuning reads."""

    tau: float
    seconds: float
    num_tokens: int = 100

    @property
    def target_calls(self):
        return round(self.num_tokens / self.tau)

    @property
    def decode_seconds(self):
        return self.seconds * self.target_calls


def decoder(ways, log):
    """ways: tau and seconds of a round."""

    def decode(way, prompt):
        log.append((way, prompt))
        return Sample([], 0.0, report=Told(*ways[way]))

    return decode


WAYS = {"none": (1.0, 1.0), "bad": (1.0, 3.0), "good": (3.0, 1.5), "fair": (2.0, 1.6), "so": (2, 2)}


def test_the_best_is_left_and_the_others_cost_little():
    log = []
    decode = decoder(WAYS, log)
    left, tallies = halve([w for w in WAYS if w != "none"], range(16), decode, 1e9)
    assert left == ["good"]
    assert {way: len(tally.gains) for way, tally in tallies.items()} == {
        "bad": 2,
        "so": 2,
        "fair": 4,
        "good": 8,
    }
    assert tallies["good"].speed_up == pytest.approx(2, rel=0.02)
    assert tallies["good"].predicted == pytest.approx(2)


def test_it_stops_when_the_time_is_up():
    now = iter(range(1000))
    left, _ = halve(list(WAYS)[1:], range(16), decoder(WAYS, []), 0.5, clock=lambda: next(now))
    assert left[0] == "good"
    assert len(left) == 4


@pytest.mark.parametrize("budget", ["5 minutes", "0s", "soon", "-3min"])
def test_budgets_that_are_none(budget):
    with pytest.raises(ValueError, match="budget must be a time such as 90s or 5min"):
        tune.seconds_of(budget)


def test_budgets():
    assert [tune.seconds_of(each) for each in ("90s", "5min", "1.5 m", "1h")] == [90, 300, 90, 3600]


@pytest.mark.parametrize("temperatures", [[0.0], [0.0, 0.6], [0.0, 0.6, 1.0]])
def test_both_parts_of_the_prompts_meet_all_temperatures(temperatures):
    tuning, apart = tune.parts(24)
    assert sorted(tuning + apart) == list(range(24))
    assert len(apart) == 8
    met = tune.in_turn(24, temperatures)
    for part in (tuning, apart):
        counts = [sum(met[number] == one for number in part) for one in temperatures]
        assert max(counts) - min(counts) <= 1


@pytest.mark.slow
def test_a_run_with_a_tuned_file(tmp_path, command):
    (tmp_path / "tuned.yaml").write_text("_target_: drafters.ngram.NGram\nlength: 3\n")
    schema.register()
    folder = command("drafter=tuned", "no_harm=true")
    (result,) = folder.rglob("result.json")
    found = json.loads(result.read_text())
    assert found["effective"]["drafter"]["length"] == 3
    assert found["config"]["no_harm"] is True


@pytest.mark.slow
def test_a_tuned_file_is_a_drafter(tiny, tmp_path, capsys):
    output = tmp_path / "tuned.yaml"
    tune.main(
        tune.Tune(
            target=str(tiny),
            prompts=str(tiny / "prompts.jsonl"),
            draft=None,
            budget="5s",
            max_new_tokens=8,
            output=str(output),
        )
    )
    said = capsys.readouterr()
    assert "left out" in said.err
    assert "against plain decoding" in said.out
    found = json.loads(output.with_suffix(".json").read_text())
    assert found["chosen"] == "none" or found["measured"]["median"] > 1
    assert "Candidates" in output.with_suffix(".html").read_text()
    out = specdec.generate(str(tiny), "def read (", drafter=str(output), max_new_tokens=4)
    assert out.report.drafter


@pytest.mark.slow
def test_the_choice_against_a_full_sweep(tiny, tmp_path, capsys):
    wanted = benchmark_tune.Benchmark(
        target=str(tiny),
        prompts=str(tiny / "prompts.jsonl"),
        draft=None,
        budget="5s",
        max_new_tokens=6,
        tuned_on=3,
        limit=4,
        temperatures=[0.0],
        dtype="float32",
        output=str(tmp_path),
    )
    benchmark_tune.main(wanted)
    said = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("|")}
    assert {"none", "ngram", "recycle"} <= rows.keys()
    assert not any(row.startswith("eagle") for row in rows)  # the target takes no head
    chosen = json.loads((tmp_path / "tuned.json").read_text())["chosen"]
    assert any(row.startswith(f"chosen by tune: {chosen}") for row in rows)
    with pytest.raises(ValueError, match="tuned_on=4 leaves none of the 4 prompts"):
        benchmark_tune.main(replace(wanted, tuned_on=4))


def test_a_file_as_a_drafters_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("_target_: drafters.ngram.NGram\nlength: 3\n")
    made = build("drafter", str(path))
    assert (made.length, made.yaml_name) == (3, "ngram")
    with pytest.raises(ValueError, match=r"names a file that is not there.*experiments.tune"):
        build("drafter", str(tmp_path / "none.yaml"))
    path.write_text("_target_: os.system\n")
    with pytest.raises(ValueError, match="lies outside of"):
        build("drafter", str(path))
