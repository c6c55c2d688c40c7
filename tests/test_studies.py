"""Studies on disk: results, sweeps that go on, files that are broken, and programs that cannot go
on."""

import errno
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from experiments import collect, profile, run
from experiments.measuring import lineup
from experiments.report import contents
from experiments.report.looks import panels, save
from experiments.study import outcome, result, schema, studies, sweeps
from experiments.study.sweeps import PLAN
from experiments.system import files
from experiments.terminal import options, refusals
from experiments.terminal.progress import SILENCE, Lines
from experiments.terminal.tables import markdown
from specdec.models.load import BUNDLED
from specdec.plugins import CONF, build

QUIET = ("progress=false", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled")


@pytest.fixture
def type_in(monkeypatch, tmp_path, command):
    """python -m experiments.run, with nothing added but silence, in a folder of its own."""

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["run", *arguments, *QUIET])
        run.program()

    return call


def refused(monkeypatch, capsys, *arguments: str) -> str:
    """What the program says as it ends, as a user sees it."""
    monkeypatch.delenv(refusals.FULL, raising=False)
    monkeypatch.setattr(sys, "argv", ["run", *arguments, *QUIET])
    with pytest.raises(SystemExit) as end:
        run.program()
    return end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err.strip()


# ------------------------------------------------------------------------------------------ results


def test_results_come_back_as_they_were_written(command, tmp_path):
    root = command("drafter=ngram", "baselines=[none,transformers]", "hydra.run.dir=here")
    found = result.read(root / "here" / "result.json")
    assert isinstance(found.ways["none"], outcome.OurResult)
    assert type(found.ways["transformers"]) is outcome.WayResult
    # numbers, though JSON has only texts as keys
    assert found.method.accepted_lengths.keys() <= {*range(11)}
    result.write(tmp_path / "again.json", found)
    assert result.read(tmp_path / "again.json") == found
    head = {
        name: value
        for name, value in vars(found).items()
        if name in result.Record.__dataclass_fields__
    }
    refusal = result.NotApplicable(**head, reason="chains only")
    result.write(tmp_path / "refused.json", refusal)
    assert result.read(tmp_path / "refused.json") == refusal


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda content: content | {"schema_version": 2},
            "has schema version 2 and this code reads 3: run it again",
        ),
        (lambda content: content | {"taus": 3}, "is no result: taus: Unexpected keyword argument"),
        (
            lambda content: {k: v for k, v in content.items() if k != "prompts"},
            "is no result: prompts: Field required",
        ),
        (lambda content: [content], "has schema version None"),
    ],
)
def test_what_is_no_result_is_refused_with_its_file(command, tmp_path, change, said):
    root = command("drafter=ngram", "baselines=[]", "debug=tiny", "hydra.run.dir=here")
    path = root / "here" / "result.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=r"result\.json") as error:
        result.read(path)
    assert said in str(error.value)


@pytest.mark.skipif(not BUNDLED["demo"].exists(), reason="the bundled models are not there")
@pytest.mark.parametrize(
    ("overrides", "drafter"),
    [
        (["drafter=eagle"], {"depth": 5, "branching": 6, "draw": "ranked", "nodes": 24}),
        (["drafter=small_model"], {"depth": 4, "branching": [1] * 4, "draw": "wor", "nodes": 4}),
        (["method=ranked_tree"], {"depth": 4, "branching": 4, "draw": "ranked", "nodes": 16}),
        (
            ["drafter=medusa", "drafter.nodes=null", "drafter.branching=[2,1]"],
            {"branching": [2, 1], "nodes": 4},
        ),
        (["drafter=ngram"], {"max_ngram": 3, "length": 10, "tree": False}),
    ],
)
def test_results_hold_the_values_that_a_run_had(overrides, drafter, tmp_path, type_in):
    """Where the configuration leaves them open; and the configuration as it was given."""
    type_in(*overrides, "debug=tiny", "prompts.limit=1", "noise=false", "hydra.run.dir=here")
    found = result.read(Path("here/result.json"))
    own = found.effective.drafter
    assert {name: own[name] for name in drafter} == drafter
    assert own["_target_"] == found.config.drafter["_target_"]
    assert found.effective.verifier["_target_"].split(".")[1] == found.method.verifier
    assert found.effective.target.dtype == "bfloat16"
    assert found.effective.threads == torch.get_num_threads()
    assert found.effective.prompts.chat is False
    assert (found.config.target.dtype, found.config.threads) == (None, None)


def test_seats_of_a_run_change_no_prompt(command):
    """Two of four prompts side by side: the rounds that each prompt takes are what they were."""
    found = {}
    for seats in ("null", "2"):
        options = (
            "drafter=ngram",
            "sampling=cool",
            "baselines=[]",
            "batch_size=4",
            "debug=tiny",
            "max_new_tokens=9",
        )
        root = command(*options, "prompts.limit=4", f"seats={seats}", f"hydra.run.dir=run-{seats}")
        found[seats] = result.read(root / f"run-{seats}" / "result.json")
    assert [one.effective.seats for one in found.values()] == [4, 2]
    all_at_once, in_turn = (one.method.per_prompt for one in found.values())
    assert [one.rounds for one in all_at_once] == [one.rounds for one in in_turn]
    assert len(all_at_once) == 4
    with pytest.raises(ValueError, match="seats must be from 1 to batch_size=1"):
        schema.Settings(seats=2)


def test_a_drafter_may_say_what_its_settings_are_in_effect(monkeypatch):
    drafter = build("drafter", "ngram")
    given = {"_target_": "drafters.ngram.NGram", "length": 7}
    assert lineup.drafter_in_effect(given, drafter) == {
        **given,
        "max_ngram": 3,
        "tree": False,
        "fanout": 0,
    }
    monkeypatch.setattr(type(drafter), "settings_in_effect", lambda self: {"length": 9})
    assert lineup.drafter_in_effect(given, drafter) == {
        **given,
        "length": 9,
        "max_ngram": 3,
        "tree": False,
        "fanout": 0,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_draft_model_has_the_targets_dtype(dtype, tiny):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        chosen = [
            "target=model",
            f"target.name={tiny}",
            f"target.dtype={dtype}",
            "drafter=small_model",
        ]
        composed = compose("run", [*chosen, f"drafter.model={tiny}", "baselines=[none,assisted]"])
    ways = lineup.make(schema.settings_of(composed))
    models = [ways["method"].target, ways["method"].drafter.model, ways["assisted"].draft]
    assert [model.dtype for model in models] == [getattr(torch, dtype)] * 3


# ------------------------------------------------------------------------------------- broken files


def test_one_broken_job_makes_no_study_unreadable(command, capsys):
    root = command("-m", "study=torn", "drafter.length=2,3,4,5,6,7", "baselines=[]", "debug=tiny")
    (sweep,) = (root / "multirun" / "torn").glob("2*")
    whole = (sweep / "0" / "result.json").read_text()
    (sweep / "0" / "result.json").write_text(whole[: len(whole) // 2])
    (sweep / "1" / "result.json").write_bytes(b"\xff\xfe")
    (sweep / "2" / "result.json").unlink()
    (sweep / "2" / "failed.json").write_text('{"error": "out of')
    (sweep / "3" / ".hydra" / "overrides.yaml").write_text("- [")
    (sweep / PLAN).write_text('{"jobs": [["dr')
    study = studies.read("torn")
    assert [job.name for job in study.measured] == ["4", "5"]
    assert len(study.notes) == 5
    for note, name in zip(
        study.notes, ["0/result.json", "1/result.json", "2/failed.json", "[", PLAN], strict=True
    ):
        assert name in note
    collect.main(collect.Collect("torn"))
    assert "0/result.json is no whole JSON file" in capsys.readouterr().out.replace("\n", "")
    assert "2 of 6 jobs have a measurement" in contents.write(study, root / "report").read_text()


def test_a_study_without_a_readable_job_says_so(command, capsys):
    root = command("-m", "study=old", "drafter.length=2", "baselines=[]", "debug=tiny")
    (path,) = root.rglob("result.json")
    path.write_text(json.dumps({"schema_version": 2}))
    collect.main(collect.Collect("old"))
    assert "schema version 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no job of .* has a result"):
        contents.write(studies.read("old"), root / "report")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    files.write_text(path, "before")

    def stop_half_way() -> None:
        with files.written(path) as draft:
            draft.write_text("aft")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        stop_half_way()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------------- sweeps: order and resuming


def test_sweeps_are_ordered_by_what_was_recorded(command, capsys):
    """Whatever they are called: a clock may have gone back between them."""
    for folder, length in (("2031-05-01_08-00-00", 3), ("1999-12-31_23-59-59", 4)):
        where = f"hydra.sweep.dir=multirun/clock/{folder}"
        command(
            "-m", "study=clock", f"drafter.length={length}", "baselines=[]", "debug=tiny", where
        )
    study = studies.read("clock")
    assert (study.sweeps, study.others) == (["1999-12-31_23-59-59"], ["2031-05-01_08-00-00"])
    assert studies.read("clock", sweep="all").sweeps == [
        "2031-05-01_08-00-00",
        "1999-12-31_23-59-59",
    ]
    assert [
        sweeps.read(study.folder / name).number
        for name in ("2031-05-01_08-00-00", "1999-12-31_23-59-59")
    ] == [1, 2]
    collect.main(collect.Collect("clock"))
    assert "clock: 1999-12-31_23-59-59" in capsys.readouterr().out
    command("-m", "study=clock", "resume=true")
    assert (
        "going on in multirun/clock/1999-12-31_23-59-59: 1 of 1 jobs have a result"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("how", ["resume=true", "resume=FOLDER"])
def test_resuming_repeats_nothing_that_the_plan_knows(command, type_in, how):
    """Neither what the sweep is, nor the launcher that it began with; and the finished job stays as
    it is."""
    root = command(
        "-m",
        "study=long",
        "drafter.length=3,4",
        "sampling=cool",
        "seed=5",
        "baselines=[]",
        "launcher=local",
    )
    (sweep,) = (root / "multirun" / "long").glob("2*")
    kept, lost = (sweep / name / "result.json" for name in "01")
    before, wanted = kept.stat().st_mtime_ns, result.read(lost)
    lost.unlink()
    type_in(
        "-m", how.replace("FOLDER", str(sweep)), *(["study=long"] if how == "resume=true" else [])
    )
    assert kept.stat().st_mtime_ns == before
    again = result.read(lost)
    assert (again.config, again.overrides, again.study) == (wanted.config, wanted.overrides, "long")
    assert (
        again.config.seed,
        again.config.sampling.temperature,
        again.config.drafter["length"],
    ) == (5, 0.6, 4)
    assert len(list((root / "multirun").rglob(PLAN))) == 1
    assert not any("launcher" in each for job in sweeps.read(sweep).jobs for each in job)
    with pytest.raises(SystemExit, match=r"its job 0 is .*drafter\.length=3"):
        type_in("-m", "study=long", "resume=true", "drafter.length=3,9")


def test_a_resumed_sweep_says_what_it_cannot_do(type_in):
    with pytest.raises(
        SystemExit, match=r"resume=nowhere names no sweep: there is no plan\.json in it"
    ):
        type_in("-m", "resume=nowhere")
    with pytest.raises(SystemExit, match="resume=true finds no sweep in multirun/unheard"):
        type_in("-m", "study=unheard", "resume=true")


def test_interrupting_a_sweep_says_how_to_go_on(command, type_in, monkeypatch, capsys):
    """And that line does go on."""
    real, begun = run.execute, []

    def execute(settings, identity, folder, keep_texts=False):
        begun.append(identity.run)
        if identity.run == "1":
            raise KeyboardInterrupt
        return real(settings, identity, folder, keep_texts)

    monkeypatch.setattr(run, "execute", execute)
    with pytest.raises(SystemExit) as end:
        command("-m", "study=stopped", "drafter.length=3,4,5", "baselines=[]", "debug=tiny")
    assert end.value.code == refusals.INTERRUPTED
    line = capsys.readouterr().err.strip().splitlines()[-1]
    said, _, going_on = line.partition(": python -m experiments.run ")
    assert said == "interrupted; go on with"
    assert begun == ["0", "1"]
    monkeypatch.setattr(run, "execute", real)
    type_in(*going_on.split())
    assert len(studies.read("stopped").results) == 3


@pytest.mark.slow
def test_a_signal_ends_a_sweep_with_one_line(tiny, tmp_path):
    arguments = [
        "-m",
        "study=signalled",
        f"drafter.length={','.join(map(str, range(3, 40)))}",  # not over before the signal comes
        "baselines=[]",
        "progress=false",
    ]
    arguments += [
        "target=model",
        f"target.name={tiny}",
        "prompts=jsonl",
        f"prompts.path={tiny}/prompts.jsonl",
    ]
    arguments += ["max_new_tokens=40", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CONF.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not list(tmp_path.rglob("result.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == refusals.INTERRUPTED
    assert (
        said.strip()
        .splitlines()[-1]
        .startswith("interrupted; go on with: python -m experiments.run -m resume=")
    )
    assert "Traceback" not in said


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("threads=-1", "threads must be >= 1, or null to have them chosen, got -1"),
        ("threads=0", "threads must be >= 1, or null to have them chosen, got 0"),
        ("warmup=-1", "warmup must be >= 0, got -1"),
        ("study=../../x", "study='../../x' is no name for a folder"),
        ("study=/x", "study='/x' is no name"),
        ("study='it\\'s'", 'study="it\'s" is no name'),
        ("study='\"quoted\"'", "is no name"),
        ("study='<b>'", "study='<b>' is no name"),
        ("study=.hidden", "study='.hidden' is no name"),
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_made(
    override, said, mode, monkeypatch, capsys, tmp_path
):
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert said in refused(monkeypatch, capsys, *mode, override)
    assert set(tmp_path.rglob("*")) == {inside, inside.parent}


@pytest.mark.parametrize("mode", [[], ["-m", "sampling=greedy,cool"]])
def test_a_setting_of_a_drafter_that_was_not_named(mode, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = refused(monkeypatch, capsys, *mode, "drafter.depth=2")
    assert said.startswith("unknown key 'drafter.depth'")
    assert "small_model, " in said
    assert "name the drafter first, e.g. drafter=small_model drafter.depth=..." in said
    assert not list(tmp_path.rglob("default"))  # no job began, so the study is not there


@pytest.mark.parametrize("depth", ["2", "1,2"])
def test_settings_of_a_drafter_that_each_job_names(depth, command, tiny):
    """method=chain,ranked_tree drafter.depth=2: the frame of the sweep has another drafter."""
    root = command(
        "-m",
        "study=each",
        "method=chain,ranked_tree",
        f"drafter.depth={depth}",
        f"drafter.model={tiny}",
        "debug=tiny",
    )
    found = studies.read("each", str(root / "multirun")).results
    depths = [int(each) for each in depth.split(",")]
    assert [each.config.drafter["depth"] for each in found] == depths * 2
    assert {each.config.drafter["draw"] for each in found} == {"auto", "ranked"}
    assert found[0].config.label == f"small_model chain model={tiny.name} depth={depths[0]}"


def test_a_model_that_is_not_there(monkeypatch):
    monkeypatch.delenv(refusals.FULL, raising=False)
    with pytest.raises(SystemExit) as end:
        options.start(profile.main, profile.Profile, ["target=./nope", "threads=1"])
    assert str(end.value).splitlines()[0] == "no model folder at nope"
    with pytest.raises(SystemExit, match="threads must be >= 1"):
        options.start(profile.main, profile.Profile, ["target=demo", "threads=0"])


def test_a_value_of_another_type(capsys):
    with pytest.raises(SystemExit) as end:
        options.start(profile.main, profile.Profile, ["threads=many"])
    first, second, *_ = str(end.value).splitlines()
    assert first.startswith("threads: Value 'many' of type 'str' could not be converted to Integer")
    assert second.startswith("options: ")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ValueError("no such text"), "no such text\n(HYDRA_FULL_ERROR=1 shows where", ""),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), "No space left on device: x\n", ""),
        (KeyboardInterrupt(), "", "interrupted; the same command goes on from its last checkpoint"),
    ],
)
def test_a_training_that_cannot_go_on(raised, code, said, monkeypatch, capsys, tmp_path):
    """One line, and none of Hydra's before it."""

    def fail(*arguments):
        raise raised

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(refusals.FULL, raising=False)
    monkeypatch.setattr("experiments.training.recipes.train", fail)
    monkeypatch.setattr(sys, "argv", ["train", "target=demo", "device=cpu", *QUIET[1:]])
    monkeypatch.delitem(sys.modules, "experiments.train", raising=False)  # as in a new process
    with pytest.raises(SystemExit) as end:
        runpy.run_module("experiments.train", run_name="__main__", alter_sys=False)
    if said:
        assert end.value.code == refusals.INTERRUPTED
    else:
        assert str(end.value.code).startswith(code)
    assert capsys.readouterr().err.strip() == said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_disks_that_take_nothing(number, command, monkeypatch, capsys, tiny):
    """A run ends with one line that names the file; not even failed.json can be written."""

    def replace_nothing(source, destination):
        raise OSError(number, os.strerror(number), str(destination))

    monkeypatch.setattr(files.os, "replace", replace_nothing)
    monkeypatch.setattr("experiments.study.folder.write_json", lambda path, content: None)
    chosen = [
        "target=model",
        f"target.name={tiny}",
        "prompts=jsonl",
        f"prompts.path={tiny}/prompts.jsonl",
    ]
    said = refused(monkeypatch, capsys, *chosen, "debug=tiny", "baselines=[]", "hydra.run.dir=here")
    first, *more = said.splitlines()
    assert first == f"{os.strerror(number)}: {Path('here/rounds.parquet').resolve()}"
    assert more == [f"({refusals.FULL}=1 shows where it comes from)"]
    assert not capsys.readouterr().err


def test_a_sweep_that_cannot_be_written_down(monkeypatch, capsys, tmp_path):
    """Its plan comes before its first job, in a call in which Hydra only warns of exceptions."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "multirun").write_text("a file, where the folder of sweeps would be")
    said = refused(monkeypatch, capsys, "-m", "drafter.length=2,3")
    assert said.startswith("Not a directory: multirun/default/")
    assert "\n" not in said


@pytest.mark.parametrize("module", ["run", "certify", "collect"])
def test_a_reader_that_has_gone_is_no_error(module):
    """... --help | head: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"experiments.{module}", "--help"],
        cwd=CONF.parent,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (refusals.PIPE_CLOSED, "")


@pytest.mark.parametrize(
    ("program", "groups"), [("certify", "drafter verifier"), ("run", " ".join(schema.GROUPS))]
)
def test_help_lists_the_groups_that_a_program_has(program, groups):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"experiments.{program}", "--help"],
        cwd=CONF.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("again=FOLDER " in done.stdout) == (program == "certify")
    listed = done.stdout.partition("(group=option)\n\n")[2].partition("\n\n")[0]
    assert [line.partition(":")[0] for line in listed.splitlines()] == groups.split()
    for group in ("drafter", "verifier"):
        assert (
            f"{group}: {', '.join(sorted(path.stem for path in (CONF / group).glob('*.yaml')))}"
            in listed
        )


# ----------------------------------------------------------------------------- single runs, reports


def test_a_single_run_is_collected_and_reported(command, capsys):
    root = command("drafter=ngram", "study=alone", "hydra.run.dir=outputs/alone/first")
    for asked in ("alone", "outputs/alone", "outputs/alone/first"):
        study = studies.read(asked)
        assert [each.run for each in study.results] == ["first"]
    command("drafter=ngram", "study=alone", "hydra.run.dir=outputs/alone/another", "seed=1")
    assert [each.run for each in studies.read("alone").results] == ["another"]  # the latest
    assert [each.run for each in studies.read("alone", sweep="all").results] == ["first", "another"]
    assert [each.run for each in studies.read("alone", sweep="first").results] == ["first"]
    collect.main(collect.Collect("outputs/alone/first"))
    assert "ngram" in capsys.readouterr().out
    page = contents.write(study, root / "report").read_text()
    assert "<h1>alone</h1>" in page
    assert "python -m experiments.report study=outputs/alone/first" in page


def test_pdfs_have_fonts_that_journals_take(tmp_path):
    figure, (axis,) = panels(1, 1, 2.0)
    axis.set_xlabel("tokens per second")
    save(figure, tmp_path / "figure.pdf")
    assert b"/Type3" not in (tmp_path / "figure.pdf").read_bytes()


def test_markdown_tables(tmp_path):
    import pandas as pd

    text = markdown(pd.DataFrame({"rule": ["a|b", "c"], "tau": ["1.50", "-"]}))
    assert text.splitlines()[2] == "| a\\|b   | 1.50  |"
    assert text.count("\n") == 4


# ----------------------------------------------------------------------------------------- progress


def test_lines_now_and_then(capsys):
    """Where nobody sees a bar: step, share and time left, and nothing of what is over soon."""
    now = [0.0]
    lines = Lines("study", 8, lambda: now[0])
    for _ in range(3):
        now[0] += SILENCE / 2
        lines.advance()
    assert capsys.readouterr().err == "study: 2 of 8, 25%, 2 min left\n"
    now[0] += 100 * SILENCE
    lines.advance()
    assert capsys.readouterr().err.startswith("study: 4 of 8, 50%, 51 min left")


def test_lines_of_what_goes_on_from_an_earlier_run(capsys):
    """The time left is that of this run's steps; a note, such as a loss, stands by the title."""
    now = [0.0]
    lines = Lines("training", 10, lambda: now[0], done=6)
    now[0] += SILENCE
    lines.advance("loss 2.500")
    assert capsys.readouterr().err == "training loss 2.500: 7 of 10, 70%, 2 min left\n"


def test_lines_count_what_a_training_ends_by(capsys):
    """A budget of seconds goes on by several at a time, or by none."""
    now = [0.0]
    lines = Lines("head", 600, lambda: now[0])
    lines.advance("loss 3.000, step 1, seconds", by=0)
    now[0] += 2 * SILENCE
    lines.advance("loss 2.500, step 2, seconds", by=60)
    assert (
        capsys.readouterr().err == "head loss 2.500, step 2, seconds: 60 of 600, 10%, 9 min left\n"
    )


def test_results_are_plain_json(command):
    """asdict of a result is what its file holds."""
    root = command("drafter=ngram", "baselines=[]", "debug=tiny", "hydra.run.dir=here")
    path = root / "here" / "result.json"
    found = result.read(path)
    assert json.loads(json.dumps(asdict(replace(found, prompts=7))))["prompts"] == 7
    assert json.loads(path.read_text()) == json.loads(json.dumps(asdict(found)))
