"""Runs, sweeps, tables and figures, on a target small enough to be made here."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from matplotlib.text import Text

import specdec
from experiments import benchmark, benchmark_grammar, benchmark_replay, collect, run
from experiments.certificates import certificate, kept
from experiments.certificates.tables import standard
from experiments.measuring import lineup, measures
from experiments.measuring.divergence import divergences
from experiments.measuring.intervals import median_interval
from experiments.measuring.play import Play, Played
from experiments.measuring.rounds import COLUMNS, rounds
from experiments.measuring.ways import Sample
from experiments.prompts import Prompt
from experiments.report import contents as pages
from experiments.report import frames, logger, tables
from experiments.study import folder, outcome, result, schema, studies
from experiments.system import files
from experiments.terminal import options, program, refusals
from specdec.measuring.report import Report, Served, Step
from specdec.models.load import BUNDLED
from specdec.plugins import CONF
from tests.conftest import QUIET

GROUPS = (
    "target",
    "drafter",
    "verifier",
    "sampling",
    "prompts",
    "method",
    "experiment",
    "debug",
    "launcher",
)


STUDIES = [  # those of experiments.run
    path.stem
    for path in sorted((CONF / "experiment").glob("*.yaml"))
    if path.read_text().splitlines()[1].startswith("# python -m experiments.run ")
]


@contextmanager
def no_bar(name, total):
    yield lambda: None


def only(root: Path, name: str) -> Path:
    (found,) = root.rglob(name)
    return found


def test_run_leaves_a_complete_result(command):
    root = command(
        "drafter=ngram", "baselines=[none,transformers,prompt_lookup]", "hydra.run.dir=here"
    )
    found = json.loads((root / "here" / "result.json").read_text())
    assert found["status"] == "ok"
    assert found["schema_version"] == result.SCHEMA_VERSION
    assert found["config"]["drafter"]["_target_"] == "drafters.ngram.NGram"
    assert {"versions", "machine", "threads", "git", "choices", "overrides"} <= set(found)
    assert set(found["ways"]) == {"method", "none", "transformers", "prompt_lookup", "again"}
    # fp32: the same tokens
    assert all(each["diverging"] == 0 for each in found["divergence"].values())
    assert all(
        ratio["n"] == 4 and ratio["low"] <= ratio["median"] <= ratio["high"]
        for way, baselines in {
            "method": {"none", "transformers", "prompt_lookup"},
            "again": {"none"},
        }.items()
        for ratio in (found["ways"][way]["speedup"][name] for name in baselines)
    )
    assert found["ways"]["none"]["tau"] == 1
    frame = pd.read_parquet(root / "here" / "rounds.parquet")
    assert list(frame.columns) == COLUMNS
    method = found["ways"]["method"]
    assert set(frame["way"]) == {"method", "none", "again"}
    frame = frame[frame["way"] == "method"]
    assert frame["kept"].sum() == method["tokens"] == 4 * 12
    assert len(frame) == method["rounds"]
    assert frame["accepted"].sum() / frame["reached"].sum() == method["acceptance_rate"]
    assert (frame.groupby("prompt")["position"].max() < 12).all()
    assert method["memory"]["target_weights"] > 0 == method["memory"]["drafter_weights"]
    assert method["flops_per_token"]["target"] > 0 == method["flops_per_token"]["draft"]
    assert set(frame["category"]) == {"code", "prose"}
    assert {path.name for path in (root / "here").iterdir()} == {
        ".hydra",
        ".lock",
        "started.json",
        "result.json",
        "rounds.parquet",
    }


def test_assisted_generation_and_batches(command, tiny):
    draft = f"drafter.model={tiny}"
    root = command(
        "drafter=small_model",
        draft,
        "baselines=[none,assisted]",
        "sampling=cool",
        "hydra.run.dir=one",
    )
    result = json.loads((root / "one" / "result.json").read_text())
    assert result["ways"]["assisted"]["tokens"] == 48
    assert result["ways"]["method"]["tau"] > 3  # it drafts for itself
    command(
        "drafter=small_model",
        draft,
        "baselines=[none,transformers]",
        "batch_size=3",
        "hydra.run.dir=three",
    )
    result = json.loads((root / "three" / "result.json").read_text())
    assert result["divergence"]["transformers"]["diverging"] == 0
    assert [entry["batch"] for entry in result["ways"]["method"]["per_prompt"]] == [0, 0, 0, 1]
    with pytest.raises(SystemExit, match="one prompt at a time"):
        command("baselines=[prompt_lookup]", "batch_size=2")


def test_results_say_whose_law_they_have(command, tiny, monkeypatch):
    """The certificate of the pair, if there is one; a lossy rule's name carries the word in every
    table and figure."""
    said = []
    monkeypatch.setattr(run.log, "info", lambda form, *values: said.append(form % values))
    monkeypatch.setattr(kept, "SHIPPED", Path("nowhere"))
    cool = [
        "-m",
        "study=laws",
        "sampling=cool",
        "drafter=ngram",
        "allow_lossy=true",
        "max_new_tokens=4",
    ]
    root = command(
        *cool, "verifier=naive,traversal,typical", "hydra.sweep.dir=multirun/laws/before"
    )
    pair = certificate.Pair({"name": "ngram", "length": 2}, {"name": "naive"})
    kept.write(
        certificate.certify(pair, certificate.Plan(checks=["exact"], tables=standard()[:1]), no_bar)
    )
    command(*cool, "verifier=naive,traversal,typical", "hydra.sweep.dir=multirun/laws/since")
    before, since = (
        studies.read("laws", str(root / "multirun"), sweep) for sweep in ("before", "since")
    )
    without = "lossless, not certified"
    assert list(frames.table(before.results)["law"]) == [without, without, "lossy"]
    table, covered = frames.table(since.results), "certified: rule and tree, other settings (exact)"
    assert list(table["law"]) == [covered, without, "lossy"]
    on_terminal = [line.partition(": tau ")[2].partition(", ")[2] for line in said]
    assert on_terminal == [without, without, "lossy", covered, without, "lossy"]
    assert list(tables.headline(since.results).text["law"])[:3] == list(table["law"])
    assert covered in "".join(collect.readable(table)["law"])
    assert list(table["drafter"]) == ["ngram", "ngram", "ngram (lossy)"]
    assert set(frames.phases(since.results)["drafter"]) >= set(
        frames.acceptance(since.results)["drafter"]
    )
    law = since.results[0].certificate
    assert Path(law.file).exists()
    assert not law.same_settings
    shown = {
        name: drawn for section in pages.sections(since) for name, drawn in section.figures.items()
    }
    for name, drawn in shown.items():
        drawn.figure.draw_without_rendering()
        words = [text.get_text() for text in drawn.figure.findobj(Text)]
        assert any("lossy" in word for word in words), name


def test_second_run_into_a_folder_is_refused(command):
    root = command("hydra.run.dir=here")
    before = (root / "here" / "result.json").read_bytes()
    with pytest.raises(ValueError, match="here already belongs to a run"):
        command("hydra.run.dir=here", "seed=1")
    assert (root / "here" / "result.json").read_bytes() == before
    assert not (root / "here" / "failed.json").exists()


def test_interrupted_write_leaves_no_result(command, monkeypatch):
    real = files.os.replace

    def replace(source, destination):
        if Path(destination).name == folder.RESULT:
            raise OSError("disk full")
        real(source, destination)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(OSError, match="disk full"):
        command("hydra.run.dir=here")
    assert not Path("here/result.json").exists()
    assert not Path("here/rounds.parquet").exists()
    assert "disk full" in json.loads(Path("here/failed.json").read_text())["error"]


def test_refused_pair_is_not_applicable(command):
    root = command(
        "drafter=ngram",
        "drafter.tree=true",
        "verifier=token",
        "sampling=cool",
        "hydra.run.dir=here",
    )
    result = json.loads((root / "here" / "result.json").read_text())
    assert result["status"] == "not_applicable"
    assert "chains" in result["reason"]
    assert not (root / "here" / "failed.json").exists()


def test_a_sweep_resumes(command, usual, monkeypatch):
    """One job finished, one killed with -9 amid decoding, one failing, one never reached."""
    jobs = [
        "-m",
        "study=resumed",
        "drafter.length=4,5,0,6",
        "hydra.sweep.dir=multirun/resumed/first",
    ]
    script = (  # as -c, __main__ has no file: the configuration is found by --config-dir
        "import os, signal\nfrom experiments import run\nfrom experiments.study import "
        "result\nwrite = result.write_json\n"
        "def killed(path, content):\n"
        "    if path.name == 'result.json' and path.parent.name == '1': os.kill(os.getpid(), "
        "signal.SIGKILL)\n"
        "    write(path, content)\n"
        "result.write_json = killed\nrun.program()\n"
    )
    place = {**os.environ, "PYTHONPATH": str(CONF.parent)}
    conf = [f"--config-dir={CONF}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *conf, *jobs, *usual, *QUIET],
        env=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    study = studies.read("resumed")
    assert [job.name for job in study.jobs] == ["0", "1", "2", "3"]
    assert [job.trouble for job in study.jobs] == [
        "",
        "no result: killed, or still running",
        *["never started"] * 2,
    ]
    assert not (study.folder / "first" / "1" / "result.json").exists()
    before = (study.folder / "first" / "0" / "result.json").stat().st_mtime_ns

    with pytest.raises(SystemExit, match="1 of the sweep's jobs failed: 2 "):
        command("-m", "study=resumed", "drafter.length=4,5,0,6", "resume=true")
    study = studies.read("resumed")
    assert study.sweeps == ["first"]
    assert [job.result is not None for job in study.jobs] == [True, True, False, True]
    assert "length must be an integer >= 1" in study.notes[0]
    assert (study.folder / "first" / "0" / "result.json").stat().st_mtime_ns == before
    with pytest.raises(
        SystemExit, match=r"its job 2 is .*drafter\.length=0.*this command's .*drafter\.length=7"
    ):
        command("-m", "study=resumed", "drafter.length=4,5,7,6", "resume=true")
    with pytest.raises(SystemExit, match="no sweep in multirun/elsewhere"):
        command("-m", "study=elsewhere", "drafter.length=4,5", "resume=true")


HOLD = """
import sys
from pathlib import Path
from experiments.study.folder import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_running_job_is_not_resumed(tmp_path):
    """The system lets go of a folder when its process dies, however it dies."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(CONF.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=rf"still at work \(process {process.pid} on "),
            folder.claimed(tmp_path, True),
        ):
            pass
    finally:
        process.kill()
        process.communicate()
    (tmp_path / f".{folder.RESULT}.{process.pid}").write_text("half a res")
    with folder.claimed(tmp_path, again=True):
        assert {path.name for path in tmp_path.iterdir()} == {folder.LOCK, folder.STARTED}
    with pytest.raises(ValueError, match="already belongs to a run"), folder.claimed(tmp_path):
        pass


def test_a_failing_job_does_not_stop_the_sweep(command, capsys, monkeypatch):
    with pytest.raises(SystemExit, match="2 of the sweep's jobs failed: 0, 1 "):
        command("-m", "study=mixed", "drafter=ngram", "drafter.length=0,4", "sampling=greedy,cool")
    root = Path.cwd()
    study = studies.read("mixed", str(root / "multirun"))
    table, notes = collect.collect(study), study.notes
    assert list(table["run"]) == ["2", "3"]
    assert list(table["temperature"]) == [0.0, 0.6]
    assert [
        note.startswith(f"job {n}") and "drafter.length=0" in note for n, note in enumerate(notes)
    ] == [True, True]
    assert "length must be an integer >= 1" in notes[0]
    assert (study.folder / "table.csv").exists()
    assert "Without a measurement" in (study.folder / "table.md").read_text()
    assert len(study.rounds()["run"].unique()) == 2

    page = pages.write(study, root / "report").read_text()
    assert "drafter.length=0" in page  # what has no result is named
    figures = sorted((root / "report" / "figures").glob("*.p*"))
    assert {"time_by_phase", "acceptance_per_depth", "speedups", "pareto"} <= {
        path.stem for path in figures
    }
    assert all(path.stat().st_size > 2000 for path in figures)

    monkeypatch.setenv("COLUMNS", "160")
    collect.main(collect.Collect("mixed"))
    assert "ngram length=4" in capsys.readouterr().out


PLUGINS = {
    "joblib": "hydra_joblib_launcher",
    "ray": "hydra_ray_launcher",
    "slurm": "hydra_submitit_launcher",
}


def needs(launcher: str) -> None:
    """Skip where the launcher's plug-in is not installed."""
    plugin = PLUGINS.get(launcher)
    if plugin is not None and find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"launcher={launcher} needs its plug-in: pip install -e '.[{launcher}]'")


def elsewhere(overrides: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """python -m experiments.run in a process of its own and in this folder."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", *overrides],
        env={**os.environ, "PYTHONPATH": str(CONF.parent), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "joblib", "slurm", "ray"])
def test_launchers(launcher, usual, tmp_path, monkeypatch):
    """Each runs a sweep with a job that fails; the other has its result; and resuming runs nothing
    but the failed one."""
    needs(launcher)
    monkeypatch.chdir(tmp_path)
    jobs = ["-m", "study=launched", "drafter=ngram", "drafter.length=0,3", f"launcher={launcher}"]
    jobs += {"slurm": ["hydra/launcher=submitit_local"], "joblib": ["hydra.launcher.n_jobs=1"]}.get(
        launcher, []
    )
    finished = []
    for resume in ([], ["resume=true"]):
        done = elsewhere([*jobs, *resume, *usual])
        assert done.returncode == 1, done.stderr
        assert "1 of the sweep's jobs failed: 0 (failed.json" in done.stderr
        study = studies.read("launched")
        assert [job.result is not None for job in study.jobs] == [False, True]
        assert "length must be an integer >= 1" in study.notes[0]
        finished.append((study.jobs[1].folder / folder.RESULT).stat().st_mtime_ns)
    assert finished[0] == finished[1]
    assert len(study.sweeps) == 1


@pytest.mark.slow
def test_wandb_offline(usual, tmp_path, monkeypatch):
    """What is logged lies in the run's folder: config, a point per round, tables and figures."""
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    done = elsewhere(
        ["logger=wandb", "logger.project=rehearsal", "hydra.run.dir=here", *usual],
        WANDB_MODE="offline",
    )
    assert done.returncode == 0, done.stderr
    (run_folder,) = (tmp_path / "here" / "wandb").glob("offline-run-*")
    written = b"".join(path.read_bytes() for path in run_folder.glob("*.wandb"))
    assert all(
        word in written
        for word in (b"rehearsal", b"round_milliseconds", b"max_new_tokens", b"speedup_none")
    )
    media = {
        path.relative_to(run_folder / "files" / "media")
        for path in run_folder.rglob("*.*")
        if "media" in path.parts
    }
    assert any(path.match("images/figures/time_by_phase*.png") for path in media)
    assert any(path.match("table/tables/results*.json") for path in media)


def test_a_result_outlives_its_logger(command, monkeypatch):
    def broken(*_):
        raise OSError("no network")

    monkeypatch.setattr(logger, "log_result", broken)
    root = command("logger=wandb", "hydra.run.dir=here")
    assert json.loads((root / "here" / "result.json").read_text())["status"] == "ok"
    assert {"rounds.parquet", "result.json"} <= {path.name for path in (root / "here").iterdir()}
    assert not (root / "here" / "failed.json").exists()


def test_only_sweeps_resume(command):
    with pytest.raises(SystemExit, match="give it with -m"):
        command("resume=true")


def test_curves_have_a_point_per_round(command):
    root = command("drafter=ngram", "hydra.run.dir=here")
    method = result.read(root / "here" / "result.json").method
    points = list(logger.curve(pd.read_parquet(root / "here" / "rounds.parquet")))
    assert len(points) == method.rounds
    assert points[-1]["tau"] == pytest.approx(method.tau)
    assert sum(point["kept"] for point in points) == method.tokens
    assert all(point["round_milliseconds"] > 0 for point in points)


def test_a_logger_that_is_not_installed_says_what_to_install(command, monkeypatch):
    monkeypatch.setattr(logger, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'specdec\[wandb\]'"):
        command("logger=wandb")


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))],
)
def test_every_option_composes(group, option):
    if group == "experiment" and option not in STUDIES:
        pytest.skip("of another program, whose own tests read it")
    if group == "launcher":
        needs(option)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("run", [f"{group}={option}"])
    assert config.study
    assert "_target_" in config.drafter


def test_studies_open_with_their_command():
    for path in (CONF / "experiment").glob("*.yaml"):
        package, first, *_ = path.read_text().splitlines()
        assert package == "# @package _global_"
        assert first.startswith("# python -m experiments.")
        assert f"experiment={path.stem}" in first


@pytest.mark.skipif(not BUNDLED["demo"].exists(), reason="the bundled models are not there")
@pytest.mark.parametrize(
    "study",
    [
        pytest.param(
            path.stem,
            marks=[] if path.stem in ("demo", "drafters_temperature") else pytest.mark.slow,
        )
        for path in (CONF / "experiment" / f"{name}.yaml" for name in STUDIES)
        if path.stem != "deepspec_table"  # needs files (tests/test_heads_compared.py)
    ],
)
def test_studies_run_in_miniature(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    quiet = ["progress=false", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    monkeypatch.setattr(sys, "argv", ["run", f"experiment={study}", "debug=tiny", *quiet])
    run.program()
    result = json.loads(only(tmp_path, "result.json").read_text())
    assert result["status"] == "ok"
    assert result["prompts"] == 2


def test_prompts_that_do_not_fit_are_refused_before_anything_runs(command):
    with pytest.raises(ValueError, match="over the target's context of 128"):
        command("max_new_tokens=125")


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        (["drafter=none"], "none"),
        (["drafter=ngram", "drafter.tree=true", "drafter.length=4"], "ngram length=4 tree=true"),
        (["method=ngram_tree"], "ngram tree"),
        (["method=ngram_tree", "drafter.length=4"], "ngram tree length=4"),
    ],
)
def test_labels_tell_settings_apart(command, overrides, label):
    root = command("hydra.run.dir=here", "baselines=[]", "debug=tiny", *overrides)
    assert json.loads((root / "here" / "result.json").read_text())["config"]["label"] == label


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_tokens=3", "unknown key 'max_tokens' (did you mean 'max_new_tokens'?)"),
        ("verfier=token", "unknown key 'verfier' (did you mean 'verifier'?)"),
        ("experimnt=demo", "unknown key 'experimnt' (did you mean 'experiment'?)"),
        (
            "sampling.temprature=1",
            "unknown key 'sampling.temprature' (did you mean 'temperature'?)",
        ),
        ("target.nam=x", "unknown key 'target.nam' (did you mean 'name'?)"),
        ("drafter.lenght=3", "unknown key 'drafter.lenght' (did you mean 'length'?)"),
        (
            "drafter=ngramm",
            "drafter has no option 'ngramm' (did you mean 'ngram'?). There are: auto, cascade,",
        ),
        ("max_new_tokens=many", "Value 'many' of type 'str' could not be converted to Integer"),
    ],
)
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_misspelt_options_are_told_with_what_may_be_meant(
    override, said, mode, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(refusals.FULL, raising=False)
    monkeypatch.setattr(sys, "argv", ["run", *mode, override, "hydra/hydra_logging=disabled"])
    with pytest.raises(SystemExit) as refused:
        run.program()
    first, *rest = str(refused.value).splitlines()
    assert said in first or said in rest[0]
    assert len(rest) <= 2
    assert refusals.FULL not in os.environ
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize(
    ("override", "extra"),
    [("launcher=joblib", "joblib"), ("launcher=ray", "ray"), ("launcher=slurm", "slurm")],
)
def test_a_launcher_without_its_plug_in_says_what_to_install(override, extra):
    choice = {"launcher=slurm": "submitit_slurm"}.get(override, extra)
    missing = MissingConfigException("no", f"hydra/launcher/{choice}", ["basic"])
    assert program.explained(missing).endswith(f"pip install 'specdec[{extra}]'")


def test_small_programs_refuse_misspelt_options():
    assert options.parse(collect.Collect, ["study=demo"]).study == "demo"
    with pytest.raises(ValueError, match=r"did you mean study="):
        options.parse(collect.Collect, ["stdy=demo"])


def test_no_runs_is_an_error_that_says_how_to_start(tmp_path):
    with pytest.raises(ValueError, match=r"python -m experiments\.run"):
        studies.read("nothing", str(tmp_path))


# ------------------------------------------------------------------------------------ known answers


def step(kept: list[int], accepted: list[int], seconds: float = 1.0) -> Step:
    """A round of chains of two, of which row b accepts accepted[b]."""
    path = np.array([[node + 1 if node < n else -1 for node in range(2)] for n in accepted])
    parents = np.array([[-1, 0, 1]] * len(kept))
    live = np.array([n > 0 for n in kept])
    prompts = np.where(live, np.arange(len(kept)), -1)
    times = SimpleNamespace(seconds={"score": seconds})
    return Step(0, live, parents, path, np.array(accepted), np.array(kept), times, {}, prompts)


def report(*steps: Step) -> Report:
    served = [Served(0.0, 0.5, 1.0)] * len(steps[0].live)
    return Report(list(steps), served, 1.0, {"target": 8}, {}, "ngram", "greedy", True)


def test_pooled_numbers():
    first, second = (
        report(step([3], [2]), step([1], [0])),
        report(step([2, 1], [1, 0]), step([3, 0], [2, 0])),
    )
    found = measures.pooled([first, second])
    assert found["tau"] == 10 / 5  # five live row-rounds
    assert found["tau_macro"] == pytest.approx((2 + 2.5 + 1) / 3)
    assert found["accepted_per_round"] == 1.0
    cells = {
        cell.depth: (cell.offered, cell.reached, cell.accepted) for cell in found["acceptance"]
    }
    assert cells == {1: (5, 5, 3), 2: (5, 3, 2)}
    assert found["acceptance_rate"] == 5 / 8
    assert found["accepted_lengths"] == {0: 2, 1: 1, 2: 2}
    assert found["tokens_per_second"] == 10 / 4
    assert first.acceptance_per_depth == {1: 0.5, 2: 1.0}


def played(**samples: list[Sample]) -> list[Played]:
    """A batch per sample, whose prompts are all [0]."""
    found = []
    for batch, done in enumerate(zip(*samples.values(), strict=True)):
        made = dict(zip(samples, done, strict=True))
        prompts = [Prompt(10 * batch + row, "", "all") for row in range(len(done[0].tokens))]
        found.append(Played(prompts, dict.fromkeys(made, [[0]] * len(prompts)), made, batch))
    return found


def way(cases: list[Played], name: str) -> outcome.WayResult:
    """As far as speed is concerned."""
    return outcome.WayResult(
        tokens=0,
        wall_seconds=0.0,
        wall_tokens_per_second=0.0,
        distinct_4grams=None,
        per_prompt=measures.per_prompt(cases, name),
        memory=outcome.Memory(target_weights=0, drafter_weights=0, peak=None, before=None),
    )


def test_speedup_is_paired():
    ours = [Sample([[1] * 10], 1.0), Sample([[1] * 5], 1.0), Sample([[1] * 10], 4.0)]
    theirs = [Sample([[1] * 10], 2.0), Sample([[1] * 5], 3.0), Sample([[1] * 5], 2.0)]
    cases = played(method=ours, none=theirs)
    found = measures.speedup(way(cases, "method"), way(cases, "none"))
    assert found.per_batch == pytest.approx([2.0, 3.0, 1.0])
    assert found.median == pytest.approx(2.0)


def test_speedup_of_a_conversation_takes_its_turns_together():
    one, two = played(
        method=[Sample([[1] * 4], 1.0)] * 2, none=[Sample([[1] * 2], 1.0), Sample([[1] * 6], 5.0)]
    )
    cases = [one, replace(two, batch=0, turn=1)]
    found = measures.speedup(way(cases, "method"), way(cases, "none"))
    assert found.per_batch == pytest.approx([(6 / 8) / (2 / 8)])


def test_seconds_of_a_batch_count_once():
    """Two prompts side by side: 1 s for 8 tokens, whichever of them is asked."""
    (case,) = played(method=[Sample([[1] * 3, [1] * 5], 1.0)])
    assert way([case], "method").seconds_per_token == [1 / 8]


def test_divergence_names_the_index_the_tokens_and_the_margin(tiny):
    """The runner-up taken at step 3, as another rounding might, is a tie only if it is about as
    probable."""
    target = specdec.load(str(tiny))
    plain = (
        specdec.generate(target, [[1, 2, 3]], drafter="none", max_new_tokens=6).tokens[0].tolist()
    )
    ids = torch.tensor([[1, 2, 3, *plain[:3]]])
    with torch.inference_mode():
        best, second = target.model(ids).logits[0, -1].topk(2)[1].tolist()
        margin = float(target.model(ids).logits[0, -1].topk(2)[0].diff().abs())
    ours = [*plain[:3], second, 0, 0]
    cases = played(
        method=[Sample([ours], 1.0), Sample([plain], 1.0)], none=[Sample([plain], 1.0)] * 2
    )
    cases = [replace(case, given={way: [[1, 2, 3]] for way in case.given}) for case in cases]
    found = divergences(cases, target, "none")
    assert (found.compared, found.diverging, found.faults, found.ties) == (2, 1, 1, 0)
    (one,) = found.found
    assert (one.prompt, one.turn, one.index, one.ours, one.plain) == (0, 0, 3, second, best)
    assert one.margin == pytest.approx(margin, rel=1e-4)
    assert one.kind == "fault"
    (unjudged,) = divergences(cases, target, "none", judged=False).found
    assert (unjudged.index, unjudged.margin, unjudged.kind) == (3, None, "unjudged")
    # What comes after a difference is another conversation.
    apart = [replace(cases[0], turn=1, given={"method": [[1, 2]], "none": [[1, 3]]})]
    assert divergences(apart, target, "none").compared == 0


def test_rounds_have_a_row_per_round_and_live_prompt():
    taken = report(step([3, 1], [2, 0]), step([3, 0], [2, 0], seconds=2.0))
    frame = rounds("s", "7", "two", played(method=[Sample([[1] * 6, [1]], 3.0, report=taken)]))
    assert list(frame.columns) == COLUMNS
    wanted = {
        "prompt": [0, 1, 0],
        "round": [0, 0, 1],
        "live_rows": [2, 2, 1],
        "position": [0, 0, 3],
        "depth": [2, 2, 2],
        "nodes": [2, 2, 2],
        "reached": [2, 1, 2],
        "accepted": [2, 0, 2],
        "kept": [3, 1, 3],
        "score_seconds": [1.0, 1.0, 2.0],
        "draft_seconds": [0.0, 0.0, 0.0],
    }
    assert {name: frame[name].tolist() for name in wanted} == wanted
    assert not frame["warm"].any()


def test_a_drafter_that_learns_is_measured_cold_and_warm(tiny, monkeypatch):
    from drafters.ngram import NGram

    forgotten = []
    monkeypatch.setattr(NGram, "learns", True)
    monkeypatch.setattr(NGram, "forget", lambda self: forgotten.append(self))
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        settings = schema.settings_of(compose("run", ["target=model", f"target.name={tiny}"]))
    available = lineup.make(settings)
    assert list(available) == ["method", "none", "again", "cold"]
    prompts = [Prompt(0, "def read", "all"), Prompt(1, "class Stack", "all")]
    cases = list(Play(prompts, available["method"].target, False, 1, 4)(available, warmup=1))
    method, cold = available["method"].drafter, available["cold"].drafter
    # after the warm-up; and before each call
    assert (forgotten.count(method), forgotten.count(cold)) == (1, 4)
    whole = rounds("s", "0", "x", cases)
    warm = whole.groupby(["way", "batch"], observed=True)["warm"].all()
    assert warm["method"].tolist() == [False, True]
    assert not warm["cold"].any()
    found = measures.outcome(cases, available, settings.sampling, whole)
    assert found.learns
    assert set(found.ways["cold"].speedup) == {"none"}


def test_gaps_between_tokens():
    """Two rounds of 1 s and 2 s: 3 tokens, then 2 in one row, 1 in the other; the first token's
    wait is no gap."""
    found = report(step([3, 1], [2, 0]), step([2, 1], [1, 0], seconds=2.0)).gaps
    assert sorted(found.tolist()) == [0.0, 0.0, 0.0, 2.0, 2.0]
    assert measures.gaps(found).p50 == 0.0
    assert measures.gaps(np.zeros(0)) is None


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"name": "a", "state": "new", "count": 1, "tags": [], "public": true}', True),
        ('{"name": "", "state": "new", "count": 1, "tags": [], "public": true}', False),
        ('{"name": "a", "state": "old", "count": 1, "tags": [], "public": true}', False),
        ('{"name": "a", "state": "new", "count": true, "tags": [], "public": true}', False),
        ('{"name": "a", "state": "new", "count": 10000, "tags": [], "public": true}', False),
        ('{"name": "a", "state": "new", "count": 1, "tags": [1], "public": true}', False),
        ('{"name": "a", "state": "new", "count": 1, "tags": []}', False),
        ("[]", False),
        ('{"name": "a', False),
    ],
)
def test_what_the_benchmark_of_grammars_calls_valid(text, valid):
    assert benchmark_grammar.is_valid(text) is valid


@pytest.mark.slow
def test_the_benchmark_of_grammars(tmp_path, capsys):
    wanted = {"limit": 1, "max_new_tokens": 60, "output": str(tmp_path)}
    benchmark_grammar.main(benchmark_grammar.Benchmark(**wanted))
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if "|" in line][2:]
    found = {what.strip(): measured.strip() for _, what, measured, *_ in lines}
    assert float(found["tau, drafts masked / unmasked"]) > 1
    assert found["valid outputs"] in ("1 of 1", "0 of 0")
    (written,) = tmp_path.rglob("benchmark.json")
    assert set(json.loads(written.read_text())["ways"]["a JSON schema"]) == {
        "none",
        "masked",
        "unmasked",
    }


@pytest.mark.slow
def test_the_benchmark_of_replays(tiny, tmp_path, capsys):
    """At temperature 0 a replay is the live run, in single precision too."""
    made = dict.fromkeys(("target", "draft"), str(tiny)) | {"prompts": f"{tiny}/prompts.jsonl"}
    small = {"limit": 2, "deep_limit": 0, "max_new_tokens": 6, "seeds": 1, "batch": 2}
    wanted = {**made, **small, "temperatures": [0.0, 1.0], "output": str(tmp_path)}
    benchmark_replay.main(benchmark_replay.Replayed(**wanted))
    said = capsys.readouterr().out
    assert "largest difference of tau 0.0e+00" in said
    assert said.count("chain of 4") == 6
    (written,) = tmp_path.rglob("benchmark.json")
    assert len(json.loads(written.read_text())["tables"][0]) == 24


def test_intervals_cover():
    random = np.random.default_rng(0)
    found = [median_interval(random.lognormal(0.5, 0.3, 24)) for _ in range(60)]
    covered = np.mean([each.low <= np.exp(0.5) <= each.high for each in found])
    assert covered > 0.88
    assert median_interval([1.0, 2.0]).low is None


@pytest.mark.slow
def test_benchmarks_print_what_they_measured(tiny, tmp_path, monkeypatch, capsys):
    """And nothing about what it ought to be. The records hold what a study's result holds of each
    way."""
    made = dict.fromkeys(("target", "draft"), str(tiny)) | {
        "prompts": f"{tiny}/prompts.jsonl",
        "output": str(tmp_path),
    }
    for part in ("memory", "wide_pass"):
        monkeypatch.setattr(benchmark, part, lambda bench: benchmark.line("apart", "", ""))
    benchmark.main(
        benchmark.Benchmark(
            **made,
            limit=2,
            deep_limit=1,
            max_new_tokens=6,
            lengths=[2],
            dtype="float32",
            extra_layers=1,
        )
    )
    said = capsys.readouterr().out
    header, _, *lines = [line for line in said.splitlines() if line.startswith("|")]
    assert header.replace(" ", "") == "|what|measured|how|"
    assert len(lines) == 12
    (written,) = tmp_path.rglob("benchmark.json")
    record = json.loads(written.read_text())
    assert len(record["tables"][0]) == 12
    assert record["ways"]["T = 0"]["chain 2"]["tau"] >= 1
    assert (written.parent / "table.md").read_text() == said.removesuffix("\n")


def test_two_folders_of_one_second(tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, "strftime", lambda pattern: "2026-01-02_03-04-05")
    made = [files.new_folder(tmp_path / "out") for _ in range(3)]
    assert [each.name.removeprefix("2026-01-02_03-04-05") for each in made] == ["", "-2", "-3"]
    assert all(each.is_dir() for each in made)
