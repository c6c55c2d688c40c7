"""What the programs choose for a machine that others use too, and that the library chooses
nothing; what is loaded by name is kept."""

import json
import os
import subprocess
import sys

import pytest
import torch

import specdec
from experiments import benchmark_busy as busy
from experiments.system.libraries import set_threads
from experiments.system.surroundings import cores, surroundings
from specdec import threads
from specdec.models import kept
from specdec.models.language_model import TransformersLM
from tests import models

ALL = (*threads.COUNTS, threads.OPEN)


@pytest.fixture
def nothing_set(monkeypatch):
    for name in ALL:
        monkeypatch.delenv(name, raising=False)


def noted_in(code: str, **environment: str) -> str:
    """What a fresh process tells its own processes after `code`."""
    clean = {key: value for key, value in os.environ.items() if key not in ALL}
    code = f"import os\n{code}\nprint(os.environ.get({threads.OPEN!r}, '-'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def test_processes_of_a_program_know_whether_the_user_has_chosen():
    helped = "from specdec.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    for code in ("from specdec.threads import settle; settle()", helped):
        assert noted_in(code) == "1"
        assert noted_in(code, OMP_NUM_THREADS="2") == "-"
    assert noted_in("import specdec") == "-"


def test_it_is_too_late_once_torch_is_loaded(nothing_set):
    threads.settle()
    assert threads.OPEN not in os.environ


# ------------------------------------------------------------------------- the number of threads


class Machine:
    """Passes that take `seconds` by number of threads, and the clock that they are timed by."""

    def __init__(self, seconds):
        self.seconds, self.now, self.count, self.passes = seconds, 0.0, 0, []

    def run(self):
        self.passes.append(self.count)
        first = self.passes[-2:-1] != [self.count]
        self.now += self.seconds[self.count] * (10 if first else 1)  # threads begin

    def choose(self, count):
        self.count = count

    def lose_the_processor(self):
        """In one pass of twelve with two threads."""
        if self.count == 2 and self.passes.count(2) % 12 == 0:
            self.now += 0.1

    def timed(self):
        return threads.timed(self.run, sorted(self.seconds), lambda: self.now, self.choose)


def test_candidates_end_at_torchs_own_number():
    assert [threads.candidates(most) for most in (1, 2, 3, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]


def test_numbers_take_turns_and_a_first_pass_does_not_count():
    machine = Machine({1: 0.0004, 2: 0.0003})
    assert machine.timed() == pytest.approx({1: 0.0004, 2: 0.0003})
    once = 1 + threads.RUNS
    assert machine.passes[: 4 * once] == [2] * once + [1] * 2 * once + [2] * once
    assert len(machine.passes) == 2 * once * threads.TURNS


def test_slow_passes_are_measured_less_often():
    machine = Machine({1: 1.0, 2: 0.5})
    assert machine.timed() == pytest.approx({1: 1.0, 2: 0.5})
    assert len(machine.passes) == 2 * (1 + threads.RUNS) * threads.LEAST


def test_the_time_that_few_passes_take_counts():
    """Beside busy processes most passes of two threads may be quick, and a few very slow."""
    machine = Machine({1: 0.002, 2: 0.001})
    quick, machine.run = machine.run, lambda: (quick(), machine.lose_the_processor())
    found = machine.timed()
    assert found[2] > 0.003
    assert threads.fastest(found) == 1


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        ({1: 1.0, 2: 0.6}, 2),
        ({1: 1.0, 2: 4.5}, 1),  # another process is busy
        ({1: 1.0, 2: 0.99}, 1),  # not clearly faster
        ({1: 1.0, 2: 0.99, 4: 0.97}, 4),
        ({1: 1.0, 2: 0.5, 4: 0.495, 8: 0.7}, 2),
        ({1: 1.0}, 1),
    ],
)
def test_more_threads_have_to_be_clearly_faster(seconds, count):
    assert threads.fastest(seconds) == count


@pytest.fixture
def of_two(nothing_set, monkeypatch):
    """A process that torch has begun with two threads, of which two are faster; how often passes
    were timed."""
    timings = []

    def timed(run, counts):
        timings.append(counts)
        run()
        return {1: 1.0, 2: 0.5}

    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_default", lambda: 2)
    monkeypatch.setattr(threads, "timed", timed)
    yield timings
    threads.choose(before)


def test_a_target_is_measured_once_and_the_result_recorded(of_two):
    target, other = (TransformersLM(models.shared("llama_gqa")) for _ in range(2))
    threads.choose(1)
    for _ in range(2):  # the jobs of a sweep share their target
        set_threads(None, target)
    assert (torch.get_num_threads(), of_two) == (2, [[1, 2]])
    where = surroundings()
    assert (where.threads, where.thread_seconds) == (2, {"1": 1.0, "2": 0.5})
    set_threads(None, other)
    assert len(of_two) == 2


def test_a_number_that_is_given_is_not_measured(of_two, monkeypatch):
    target = TransformersLM(models.shared("llama_gqa"))
    set_threads(None, target)
    set_threads(1, target)
    assert (torch.get_num_threads(), surroundings().thread_seconds) == (1, {})
    set_threads(None)  # without a target: torch's own
    assert torch.get_num_threads() == 2
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    set_threads(None, TransformersLM(models.shared("llama_gqa")))
    assert (len(of_two), threads.measured()) == (1, {})


def test_large_targets_and_those_of_several_processes_are_not_measured(of_two, monkeypatch):
    target = TransformersLM(models.shared("llama_gqa"))
    monkeypatch.setattr(target.model, "_tp_size", 2, raising=False)
    set_threads(None, target)
    monkeypatch.setattr(threads, "LARGE", 1)
    set_threads(None, TransformersLM(models.shared("llama_gqa")))
    assert (of_two, torch.get_num_threads()) == ([], 2)


def test_measured_passes_are_not_compiled_and_leave_no_trace():
    target = TransformersLM(models.shared("llama_gqa"), compile=True)
    with threads.passes(target) as run:
        run()
        run()
    assert target.compiled.shapes == []


def in_a_job():
    return threads.chosen_by_user(), torch.get_num_threads()


@pytest.mark.slow
def test_jobs_of_joblib_share_the_cores(nothing_set, monkeypatch):
    joblib = pytest.importorskip("joblib")
    from joblib.externals.loky import get_reusable_executor

    def jobs():
        try:
            return joblib.Parallel(n_jobs=2, backend="loky")([joblib.delayed(in_a_job)()] * 2)
        finally:
            get_reusable_executor().shutdown(wait=True)

    monkeypatch.setenv(threads.OPEN, "1")  # by `settle`, in the program
    for chosen, count in jobs():
        assert not chosen
        assert 1 <= count <= max(1, cores() // 2)
    monkeypatch.delenv(threads.OPEN)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert jobs() == [(True, 1)] * 2


# ------------------------------------------------------------------------------- loaded by name


@pytest.fixture
def folder(tmp_path):
    kept.forget()
    models.build("llama_gqa").save_pretrained(tmp_path / "draft")
    yield tmp_path / "draft"
    kept.forget()


def drafter(folder):
    return specdec.plugins.build("drafter", {"name": "small_model", "model": str(folder)})


def test_draft_models_by_name_are_loaded_once(folder):
    first = drafter(folder).model
    assert drafter(folder).model is first
    assert specdec.load(str(folder)) is not first  # whoever loads one has it alone


def test_a_changed_folder_is_read_again(folder):
    first = drafter(folder).model
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.125}))
    assert drafter(folder).model is not first


def test_only_the_last_few_are_kept():
    kept.forget()
    made = [kept.kept(number, None, object) for number in range(kept.MOST + 1)]
    assert kept.kept(kept.MOST, None, object) is made[-1]
    assert kept.kept(0, None, object) is not made[0]
    kept.forget()


def test_heads_by_name_are_loaded_once():
    one, other = (specdec.plugins.build("drafter", {"name": "eagle"}).heads for _ in range(2))
    assert one is other
    kept.forget()


# ---------------------------------------------------------------------------------- the benchmark


@pytest.mark.slow
def test_both_settings_decode_the_same_prompts(tmp_path, capsys):
    busy.main(busy.Busy(limit=1, max_new_tokens=4, rivals=1, output=str(tmp_path)))
    said = capsys.readouterr().out
    assert "quiet: chain of 5" in said
    assert "beside 1 busy processes: none" in said
    assert "beside 1 busy processes, begun before them: none" in said
    (written,) = tmp_path.glob("*/benchmark_busy.json")
    rows = json.loads(written.read_text())["rows"]
    assert {row["setting"] for row in rows} == {busy.OURS, busy.DEFAULT}
    assert len(rows) == 12
