"""What the programs choose for a machine that others use too, and that the library chooses
nothing; what is loaded by name is kept."""

import json
import os
import subprocess
import sys

import pytest

import specdec
from experiments import benchmark_busy as busy
from specdec import threads
from specdec.models import kept
from tests import models

ALL = (*threads.SPINNING, *threads.COUNTS)


@pytest.fixture
def nothing_set(monkeypatch):
    for name in ALL:
        monkeypatch.delenv(name, raising=False)


def spin_in(code: str, **environment: str) -> str:
    """GOMP_SPINCOUNT in a fresh process after `code`."""
    clean = {name: value for name, value in os.environ.items() if name not in ALL}
    code = f"import os\n{code}\nprint(os.environ.get('GOMP_SPINCOUNT', '-'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def test_programs_shorten_the_spin_and_the_library_does_not():
    settle = "from specdec.threads import settle; settle()"
    assert spin_in(settle) == threads.SPIN
    assert spin_in(settle, GOMP_SPINCOUNT="7") == "7"
    assert spin_in(settle, OMP_WAIT_POLICY="passive") == "-"
    assert spin_in("import specdec") == "-"
    helped = "from specdec.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert spin_in(helped) == threads.SPIN


def test_it_is_too_late_once_torch_is_loaded(nothing_set):
    threads.settle()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_small_targets_get_one_thread(nothing_set, tmp_path, monkeypatch):
    assert threads.threads_for("demo") == 1
    assert threads.threads_for(str(tmp_path)) is None  # no weights
    assert threads.threads_for("somebody/model") is None
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(threads.SMALL + 1)
    assert threads.threads_for(str(tmp_path)) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.threads_for("demo") is None


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
    (written,) = tmp_path.glob("*/benchmark_busy.json")
    rows = json.loads(written.read_text())["rows"]
    assert {row["setting"] for row in rows} == {busy.OURS, busy.DEFAULT}
    assert len(rows) == 8
