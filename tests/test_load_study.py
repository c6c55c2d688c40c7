"""Load studies: arrivals, one load played on an engine, its figures, and the program."""

import json
import math
import re
import sys

import pandas as pd
import pytest

import specdec
from experiments import collect, load
from experiments.load_study import arrivals, measures
from experiments.load_study import study as study_module
from experiments.load_study.measures import Limits, crossing, measured, sentence, with_speedups
from experiments.load_study.play import Asked, Closed, Open, Played, Request, Round, play
from experiments.load_study.study import drawn, named
from experiments.report import __main__ as report
from experiments.terminal import options
from experiments.terminal.options import parse

OPTIONS = {"ignore_eos": True, "temperature": 0.0, "seed": 0}


class Ticks:
    """A clock that goes on by a second whenever it is read."""

    def __init__(self):
        self.time, self.waits = 0.0, []

    def now(self):
        self.time += 1
        return self.time

    def wait(self, seconds):
        assert seconds > 0
        self.waits.append(seconds)
        self.time += seconds


@pytest.fixture(scope="module")
def target(tiny):
    return specdec.load(str(tiny))


def asked(count, tokens):
    return [Asked(number, [1 + number % 5, 2, 3], tokens) for number in range(count)]


def played(target, arrivals, count=5, tokens=6, seats=2, drafter="ngram", **options):
    clock = Ticks()
    with specdec.Engine(target, drafter=drafter, seats=seats, **options) as engine:
        return play(engine, asked(count, tokens), arrivals, OPTIONS, clock), clock


# -------------------------------------------------------------------------------------- arrivals


def test_a_rate_stretches_the_same_arrivals():
    once = arrivals.poisson(2000, seed=3)
    assert once[0] == 0
    assert once == sorted(once)
    assert once == arrivals.poisson(2000, seed=3) != arrivals.poisson(2000, seed=4)
    assert arrivals.mean_rate(once) == pytest.approx(1, rel=0.1)
    assert arrivals.at_rate(once, 4)[7] == once[7] / 4


def test_bursts_keep_the_rate():
    assert arrivals.bursts(7, 3) == [0, 0, 0, 3, 3, 3, 6]


def test_a_trace_counts_from_its_first_line(tmp_path):
    (tmp_path / "times").write_text("100\n\n100.5\n100.5\n104\n")
    times = arrivals.read_trace(str(tmp_path / "times"), 64)
    assert times == [0, 0.5, 0.5, 4]
    assert arrivals.read_trace(str(tmp_path / "times"), 2) == [0, 0.5]
    assert arrivals.mean_rate(times) == 0.75


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1\n2\n1.5\n", "line 3: the trace runs backwards, 1.5 after 2; sort its lines"),
        ("1\nsoon\n", "line 2: expected a time in seconds, got 'soon'"),
        ("1\nnan\n", "line 2: expected a time in seconds"),
        ("1\n", "needs two different times"),
        ("", "needs two different times"),
    ],
)
def test_bad_traces_are_refused(text, says, tmp_path):
    (tmp_path / "times").write_text(text)
    with pytest.raises(ValueError, match=says):
        load.study(load.LoadStudy(arrivals="trace", trace=str(tmp_path / "times")))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rate": 0}, "rate must be a number above 0, or several as 1,2,4; got 0"),
        ({"rate": "1,-2"}, "rate must be a number above 0"),
        ({"rate": "1,inf"}, "rate must be a number above 0"),
        ({"rate": "1,1"}, "each once"),
        ({"rate": []}, "rate must list one load or more"),
        ({"arrivals": "poison"}, r"unknown arrivals 'poison' \(did you mean 'poisson'\?\)"),
        ({"arrivals": "trace"}, "arrivals=trace and trace=FILE.*go together"),
        ({"trace": "times"}, "arrivals=trace and trace=FILE.*go together"),
        ({"concurrency": 0}, "concurrency must be a whole number above 0"),
        ({"concurrency": 1.5}, "concurrency must be a whole number above 0"),
        ({"concurrency": 2, "rate": 1}, "rate and concurrency were both given"),
        ({"concurrency": 2, "arrivals": "burst"}, "arrivals=burst and concurrency were both"),
        ({"warmup": 1.0}, "warmup is a share of the requests"),
        ({"gap": 0}, "gap must be a number above 0"),
        ({"shortest": 9, "longest": 8}, "longest"),
        ({"requests": 1}, "requests"),
        ({"drafter": "depth=4"}, "must begin with a name"),
        ({"drafter": "ngram,ngram"}, "must list drafters, each once"),
        ({"seats": 0}, "seats"),
    ],
)
def test_impossible_studies_are_refused(options, says, tiny):
    with pytest.raises(ValueError, match=says):
        load.study(load.LoadStudy(**{"target": str(tiny), "drafter": "ngram", **options}))


def test_a_request_that_can_never_be_served_is_refused_before_anything_runs(tiny):
    options = {"prompts": f"{tiny}/prompts.jsonl", "memory": "4KiB", "page": 4, "longest": 100}
    with pytest.raises(ValueError, match="pages"):
        load.study(load.LoadStudy(target=str(tiny), drafter="ngram", **options))


def test_drafters_of_a_command_line():
    assert named("small_model,depth=4,nodes=[1,2],ngram") == [
        "none",
        "small_model,depth=4,nodes=[1,2]",
        "ngram",
    ]
    assert named("none") == ["none"]


def test_requests_are_drawn_by_their_seed():
    prompts = [[1], [2], [3]]
    once = drawn(prompts, 50, 4, 9, seed=1)
    assert once == drawn(prompts, 50, 4, 9, seed=1) != drawn(prompts, 50, 4, 9, seed=2)
    assert {one.max_new_tokens for one in once} == set(range(4, 10))
    assert {tuple(one.prompt) for one in once} == {(1,), (2,), (3,)}


# ------------------------------------------------------------------------------------ one load


def test_an_open_loop_counts_from_arrival(target):
    times = [0.0, 0.5, 0.5, 100.0, 100.0]
    found, clock = played(target, Open(times), drafter="none", seats=1)
    assert [request.arrived for request in found.requests] == times
    assert all(len(request.token_times) == 6 for request in found.requests)
    assert all(request.ended == request.token_times[-1] for request in found.requests)
    assert len(clock.waits) == 1  # for the fourth request, when the engine had nothing to do
    first, second, third = (request.first_token for request in found.requests[:3])
    assert first < second < third  # one seat: they wait for each other
    assert max(each.queue for each in found.rounds) == 2
    assert sum(each.tokens for each in found.rounds) == 5 * 6


def test_a_closed_loop_keeps_so_many_under_way(target):
    found, clock = played(target, Closed(3), count=7)
    assert not clock.waits
    assert len(found.requests) == 7
    assert max(each.queue + each.seats for each in found.rounds) <= 3
    assert sorted(request.arrived for request in found.requests)[2] < found.rounds[0].second


def test_short_memory_sets_requests_aside(target):
    memory = 8 * 4 * target.bytes_per_token()
    options = {"drafter": "none", "tokens": 20, "memory": memory, "page": 4}
    found, _ = played(target, Closed(4), seats=4, count=8, **options)
    assert sum(request.set_aside for request in found.requests) > 0
    assert max(each.pages for each in found.rounds) <= 8
    assert all(request.finish_reason == "length" for request in found.requests)


# -------------------------------------------------------------------------------------- figures


def request(number, arrived, times):
    return Request(number, arrived, 3, times, times[-1], "length")


def test_figures_of_a_load():
    one = Played(
        [
            request(0, 0.0, [50.0, 90.0]),  # warm-up
            request(1, 1.0, [1.5, 1.5, 2.0]),
            request(2, 2.0, [4.0, 4.5]),  # late
            request(3, 3.0, [3.25, 5.0]),  # slow
        ],
        [
            Round(0.5, 9, 9, 9, 9, 9, 9),  # warm-up
            Round(1.5, 0, 1, 1, 2, 3, 100),
            Round(2.5, 2, 1, 1, 1, 4, 120),
            Round(5.0, 0, 2, 2, 4, 2, 120),
        ],
    )
    found = measured(one, 0.25, Limits(first_token=1.0, gap=1.0))
    assert found["requests"] == 3
    assert found["tokens_per_second"] == 7 / 4  # from 1 to 5
    assert found["goodput"] == 1 / 4
    assert found["in_time"] == pytest.approx(1 / 3)
    assert found["request_seconds"] == pytest.approx((1 + 2.5 + 2) / 3)
    assert found["first_token_p50"] == 0.5
    assert found["gap_p50"] == 0.5  # of 0, 0.5, 0.5, 1.75
    assert found["tau"] == 7 / 4
    assert found["queue"] == pytest.approx(2 * 2.5 / 3.5)
    assert (found["pages_most"], found["memory_bytes"], found["failed"]) == (4, 120, 0)


def test_a_text_of_one_token_has_no_gap():
    found = measured(
        Played([request(0, 0.0, [1.0])], [Round(1.0, 0, 1, 1, 1, None, 0)]), 0.0, Limits(1.0, 0.1)
    )
    assert found["gap_p50"] is None
    assert found["pages_most"] is None
    assert found["in_time"] == 1


def test_speedups_are_of_one_load_and_one_repeat():
    plays = pd.DataFrame(
        [
            ("none", 1.0, 0, 6.0),
            ("ngram", 1.0, 0, 3.0),
            ("ngram", 1.0, 1, 2.0),
            ("none", 1.0, 1, 3.0),
            ("none", 2.0, 0, 5.0),
            ("ngram", 2.0, 0, 10.0),
        ],
        columns=["drafter", "load", "repeat", "request_seconds"],
    )
    found = with_speedups(plays)
    assert found["speedup"].tolist() == [1, 2, 1.5, 1, 1, 0.5]
    table = measures.medians(found).set_index(["drafter", "load"])["speedup"]
    assert table["ngram", 1.0] == 1.75


def test_where_speculation_stops_paying():
    assert crossing([1, 4, 16], [2.0, 1.5, 0.5]) == pytest.approx(8)
    assert crossing([1, 2], [2.0, 1.5]) is None
    assert crossing([1, 2], [0.5, 1.5]) is None
    assert sentence("x", [1, 4, 16], [2, 1.5, 0.5], "requests/s").startswith("x pays up to about 8")
    assert "at every load" in sentence("x", [1, 2], [2, 1], "requests/s")
    assert "at no load" in sentence("x", [1, 2], [0.5, 0.9], "requests/s")
    assert "higher loads only" in sentence("x", [1, 2], [0.5, 1.1], "requests/s")


def test_the_program_leaves_a_record_and_a_page(tiny, tmp_path, capsys):
    given = f"target={tiny} prompts={tiny}/prompts.jsonl drafter=ngram rate=500,2000 requests=6"
    more = f"shortest=2 longest=6 seats=2 repeats=2 memory=1MiB output={tmp_path} progress=false"
    load.main(parse(load.LoadStudy, [*given.split(), *more.split()]))
    assert "ngram pays" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    plays = pd.DataFrame(result["plays"])
    assert len(plays) == 2 * 2 * 2
    assert result["config"]["rate"] == "500,2000"
    assert result["machine"]
    assert result["crossings"]
    assert (plays["requests"] == 6 - math.floor(0.2 * 6)).all()
    requests = pd.read_parquet(tmp_path / "requests.parquet")
    lengths = requests.assign(tokens=requests["token_times"].map(len)).groupby(["repeat", "number"])
    assert (lengths["tokens"].nunique() == 1).all()  # the same requests for every drafter and load
    assert (requests["first_token"] <= requests["seconds"]).all()
    assert len(pd.read_parquet(tmp_path / "rounds.parquet"))
    page = (tmp_path / "index.html").read_text()
    assert "Speed-up against load" in page
    assert "Plain decoding, ngram, at loads of 500, 2000 requests/s." in page
    table = pd.read_csv(tmp_path / "tables" / "load.csv")
    assert {"load", "requests_per_second"} <= set(table)
    shown = (tmp_path / "tables" / "load.tex").read_text()
    assert "load, requests/s & speed-up & tokens/s & requests/s" in shown
    assert "over time" in page
    assert (tmp_path / "figures" / "speedup_against_load.pdf").exists()


def without_pictures(page):
    return re.sub(r"base64,[\w+/=]+", "", page)


def test_a_study_of_conf_is_played_recorded_and_drawn_again(tiny, tmp_path, monkeypatch, capsys):
    """conf/experiment/load.yaml, made small by the command line, which comes after it."""
    monkeypatch.chdir(tmp_path)
    small = f"experiment=load target={tiny} prompts={tiny}/prompts.jsonl drafter=ngram rate=500"
    small += " requests=4 shortest=2 longest=4 seats=2 repeats=1 progress=false"
    monkeypatch.setattr(sys, "argv", ["load", *small.split()])
    options.start(load.main, load.LoadStudy)
    (folder,) = (tmp_path / "outputs" / "load").iterdir()
    found = json.loads((folder / "result.json").read_text())
    assert (found["kind"], found["study"], found["run"]) == ("load", "load", folder.name)
    assert "experiment=load" in found["overrides"]
    assert found["config"]["arrivals"] == "poisson"
    assert found["config"]["drafter"] == "ngram"
    assert found["git"] is None or found["git"]["commit"]
    drawn = (folder / "index.html").read_text()
    (folder / "index.html").unlink()
    monkeypatch.setattr(sys, "argv", ["report", "study=load"])
    options.start(report.main, report.Report)
    assert without_pictures((folder / "index.html").read_text()) == without_pictures(drawn)
    assert "experiments.load experiment=load" in drawn
    with pytest.raises(ValueError, match="already belongs to a run"):
        load.main(parse(load.LoadStudy, [*small.split(), f"output={folder}"]))
    collect.main(collect.Collect("load"))
    assert "is of a load study; draw its page with" in " ".join(capsys.readouterr().out.split())


def test_studies_of_other_programs_are_refused(command):
    says = "is a study of another program: python -m experiments"
    with pytest.raises(ValueError, match=rf"experiment=demo {says}\.run -m experiment=demo"):
        parse(load.LoadStudy, ["experiment=demo"])
    with pytest.raises(ValueError, match=rf"experiment=load {says}\.load experiment=load"):
        command("experiment=load")
    with pytest.raises(ValueError, match=r"unknown experiment 'lod'; did you mean 'load'\?"):
        parse(load.LoadStudy, ["experiment=lod"])
    every = parse(load.LoadStudy, ["experiment=load", "seats=3"])
    assert (every.rate, every.seats) == ("1,2,4,8,16,32", 3)


def test_a_play_that_fails_says_so_in_its_folder(tiny, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of paper")

    monkeypatch.setattr(study_module, "play", broken)
    given = f"target={tiny} prompts={tiny}/prompts.jsonl drafter=ngram rate=5 requests=4"
    given += f" shortest=2 longest=4 seats=2 repeats=1 progress=false output={tmp_path}/here"
    with pytest.raises(RuntimeError, match="out of paper"):
        load.main(parse(load.LoadStudy, given.split()))
    assert "out of paper" in json.loads((tmp_path / "here" / "failed.json").read_text())["error"]
