"""One prompt set, decoded in parts by several jobs, is one result; also after a part was killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.measuring import measures, shards
from experiments.measuring.play import Play, Played
from experiments.measuring.ways import Sample
from experiments.prompts import Prompt
from experiments.report import contents
from experiments.study import outcome, result, schema, studies
from experiments.study.sweeps import with_shards
from specdec.measuring.chosen import Chosen
from specdec.plugins import CONF
from specdec.pricing.decision import Decision
from tests.test_experiments import elsewhere, needs, report, step

TIMES = ("second", "speedup", "gaps", "memory", "flops", "wall")


def counted(value):
    """A result without what a clock or the system has said."""
    if isinstance(value, outcome.WayResult):
        value = {
            name: each
            for name, each in vars(value).items()
            if not any(word in name for word in TIMES)
        }
    if isinstance(value, outcome.PromptResult):
        return value.prompt, value.turn, value.batch, value.tokens, value.distinct_4grams
    if isinstance(value, dict):
        return {name: counted(each) for name, each in value.items()}
    if isinstance(value, list):
        return [counted(each) for each in value]
    return value


def numbers(found: result.Result):
    fields = {name: getattr(found, name) for name in outcome.Outcome.__dataclass_fields__}
    return counted(fields)


def rounds_of(folder: Path) -> pd.DataFrame:
    found = pd.read_parquet(folder / "rounds.parquet").drop(columns=["study", "run"])
    return found.drop(columns=[name for name in found if name.endswith("seconds")])


USED = ("drafter=ngram", "sampling=cool", "keep_texts=true", "baselines=[none]")


def test_shards_are_one_result_that_an_undivided_run_has_too(command, capsys):
    root = command(*USED, "hydra.run.dir=whole")
    command(*USED, "shards=3", "study=parts")
    whole = result.read(root / "whole" / "result.json")
    study = studies.read("parts")
    (job,) = study.jobs
    assert (job.name, study.notes) == ("0-2", [])
    assert job.result.batches == whole.batches == [[0], [1], [2], [3]]
    assert numbers(job.result) == numbers(whole)
    assert job.result.config == replace(whole.config, study="parts", shards=3)
    assert not any("shard=" in each for each in job.result.overrides)
    assert rounds_of(job.folder).equals(rounds_of(root / "whole"))
    texts = (root / "whole" / "outputs.jsonl").read_text()
    assert (job.folder / "outputs.jsonl").read_text() == texts
    assert len(list((root / "multirun").rglob("outputs.jsonl"))) == 1  # no prompt is there twice
    assert len(study.rounds()["prompt"].unique()) == 4
    assert "one result of all shards" in capsys.readouterr().err
    assert "1 of 1 jobs" in contents.write(study, root / "report").read_text()


def test_a_missing_shard_is_named_and_made_good(command):
    root = command(*USED, "shards=2", "study=parts", "drafter.length=2,3")
    study = studies.read("parts")
    assert [job.name for job in study.jobs] == ["0-1", "2-3"]
    sweep, whole = study.jobs[0].folder.parent, study.jobs[1].result
    shutil.rmtree(sweep / "2-3")
    (sweep / "3" / "result.json").unlink()
    study = studies.read("parts")
    assert [job.name for job in study.measured] == ["0-1"]
    assert "shard 0 of 2, and a result needs all" in study.notes[0]
    assert "killed" in study.notes[1]
    command("-m", "study=parts", "resume=true")
    again = studies.read("parts")
    assert [job.name for job in again.jobs] == ["0-1", "2-3"]
    assert numbers(again.jobs[1].result) == numbers(whole)
    assert root


def test_a_command_with_shards_is_a_sweep():
    assert with_shards(["shards=3", "seed=1"]) == ["-m", "shards=3", "seed=1", "shard=range(3)"]
    assert with_shards(["-m", "shards=2"]) == ["-m", "shards=2", "shard=range(2)"]
    for left in (["seed=1"], ["shards=1"], ["shards=3", "shard=1"], ["shards=no"]):
        assert with_shards(left) == left


def test_shards_that_cannot_be(command, tiny):
    for shard in (-1, 2):
        with pytest.raises(ValueError, match=rf"shard={shard} must be one of shards=2, from 0"):
            schema.Settings(shards=2, shard=shard)
    with pytest.raises(ValueError, match="shards must be >= 1"):
        schema.Settings(shards=0)
    with pytest.raises(SystemExit, match="5 of the sweep's jobs failed"):
        command("shards=5", "study=many")
    assert "only 4 batches to share out" in studies.read("many").notes[0]


def test_what_was_played_comes_back_as_it_was(tmp_path):
    """Also what a drafter had decided, which no run of these tests has."""
    decision = Decision(2.0, 1.5, 1.0, 2.0, 2, np.array([[1.0, 0.5, 0.25]]))
    first = replace(step([3], [2]), decision=decision, chosen=Chosen("ngram", 2.0, 1.0, 0.5))
    samples = {
        "method": Sample([[1, 2, 3, 4]], 2.0, 0.5, 0.25, report(first, step([1], [0]))),
        "transformers": Sample([[1, 2, 3, 5]], 3.0),
    }
    given = {name: [[7, 8]] for name in samples}
    played = [Played([Prompt(4, "a text", "code")], given, samples, 2, 1, 0)]
    # Seconds of these rounds are a simple object's.
    for one in samples["method"].report.steps:
        object.__setattr__(one, "times", shards.Times.of(one.times.seconds))
    shards.write(tmp_path / "played.json", played)
    (again,) = shards.read(tmp_path / "played.json")
    memory = outcome.Memory(target_weights=1, drafter_weights=0, peak=None, before=None)
    for name in samples:
        expected = measures.summed(played, name, memory)
        assert measures.summed([again], name, memory) == expected
    assert expected.tokens == 4
    assert measures.summed([again], "method", memory).expected.rounds == 1
    assert (again.given, again.turn, again.is_first) == (given, 1, True)
    chosen = again.samples["method"].report.steps[0].chosen
    assert chosen == first.chosen


def test_the_numbers_that_key_chance_are_those_of_the_whole(tiny):
    from experiments.prompts import read
    from specdec.models.load import load

    prompts = read("jsonl", f"{tiny}/prompts.jsonl")
    whole = Play(prompts, load(str(tiny)), None, 1, 4)
    parts = [Play(prompts, whole.target, None, 1, 4, shard=shard, shards=3) for shard in range(3)]
    assert [list(part.numbers) for part in parts] == [[0, 3], [1], [2]]
    keyed = sorted(one for part in parts for one in part.all())
    assert keyed == sorted(whole.all())


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_and_doubles_no_prompt(usual, tmp_path, monkeypatch):
    needs("joblib")
    monkeypatch.chdir(tmp_path)
    options = [*usual, "drafter=ngram", "sampling=cool", "keep_texts=true", "max_new_tokens=100"]
    done = elsewhere([*options, "hydra.run.dir=whole"])
    assert done.returncode == 0, done.stderr
    launcher = ["launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *options, "shards=4", "study=parts", *launcher],
        env={**os.environ, "PYTHONPATH": str(CONF.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    killed = None
    while killed is None and process.poll() is None:
        time.sleep(0.02)
        for mark in tmp_path.glob("multirun/parts/*/*/started.json"):
            if not (mark.parent / "result.json").exists():
                killed = json.loads(mark.read_text())["process"]
                os.kill(killed, signal.SIGKILL)
                break
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert killed != process.pid
    assert "a process that ran a job has died" in said
    assert "go on with: python -m experiments.run -m resume=multirun/parts/" in said
    assert not studies.read("parts").measured
    done = elsewhere(["-m", "study=parts", "resume=true", *launcher, "progress=false"])
    assert done.returncode == 0, done.stderr
    (job,) = studies.read("parts").jobs
    assert [one.prompt for one in job.result.method.per_prompt] == [0, 1, 2, 3]
    texts = Path("whole/outputs.jsonl").read_text()
    assert (job.folder / "outputs.jsonl").read_text() == texts
