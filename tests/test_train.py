"""Training recipes in miniature: from a folder of text to models that load, and resuming to the same losses."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import specdec
from experiments.training import recipes
from experiments.training.text import Stream, clean, documents
from specdec.plugins import CONF

TINY = [
    "text=files",
    "text.held_out=0.3",
    "evaluate_every=2",
    "evaluate_windows=2",
    "device=cpu",
    "drafter.batch=2",
    "drafter.context=16",
    "drafter.steps=4",
    "drafter.warmup=1",
    "drafter.architecture.hidden_size=16",
    "drafter.architecture.intermediate_size=32",
    "drafter.architecture.num_attention_heads=2",
    "drafter.architecture.num_key_value_heads=1",
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(24):
        lines = [f"def function_{number}_{line}(x):\n    return x + {line}\n" for line in range(20)]
        (folder / f"module_{number}.py").write_text("\n".join(lines))
    return folder


def settings(texts: Path, output: Path, *more: str):
    with initialize_config_dir(str(CONF / "train"), version_base="1.3"):
        return compose("train", [*TINY, f"text.source={texts}", f"output={output}", *more])


def target_settings(texts: Path, output: Path):
    return settings(
        texts,
        output,
        "drafter=none",
        "drafter.vocabulary=300",
        "drafter.architecture.num_hidden_layers=3",
        "drafter.early_exits=[1]",
    )


def test_a_target_and_its_draft_model_from_a_folder_of_text(texts: Path, tmp_path: Path) -> None:
    recipes.train_target(target_settings(texts, tmp_path / "t"), tmp_path / "t", "cpu")
    small = settings(texts, tmp_path / "d", "drafter=small_model", f"target={tmp_path / 't' / 'model'}")
    recipes.train_small_model(small, tmp_path / "d", "cpu")
    log = json.loads((tmp_path / "d" / "checkpoint" / "log.json").read_text())
    assert [entry["step"] for entry in log] == [2, 4]
    assert {"agreement", "overlap", "kl"} <= set(log[-1])
    out = specdec.generate(
        str(tmp_path / "t" / "model"),
        "def f",
        drafter={"name": "small_model", "model": str(tmp_path / "d" / "model"), "depth": 2},
        max_new_tokens=6,
    )
    assert len(out.tokens[0]) <= 6


def test_an_interrupted_training_resumes_to_the_same_losses(texts: Path, tmp_path: Path, monkeypatch) -> None:
    whole = target_settings(texts, tmp_path / "whole")
    recipes.train_target(whole, tmp_path / "whole", "cpu")

    sound, seen = recipes.target.loss, []

    def killed(*arguments):
        seen.append(1)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return sound(*arguments)

    broken = target_settings(texts, tmp_path / "broken")
    monkeypatch.setattr(recipes.target, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        recipes.train_target(broken, tmp_path / "broken", "cpu")
    monkeypatch.setattr(recipes.target, "loss", sound)
    recipes.train_target(broken, tmp_path / "broken", "cpu")

    first, second = (
        json.loads((tmp_path / name / "checkpoint" / "log.json").read_text()) for name in ("whole", "broken")
    )
    assert [entry["bits_per_byte"] for entry in first] == [entry["bits_per_byte"] for entry in second]


def test_a_drafter_needs_a_target(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target=demo"):
        recipes.train_small_model(settings(texts, tmp_path, "drafter=small_model"), tmp_path, "cpu")


def test_bad_lines_of_a_jsonl_are_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    with pytest.raises(ValueError, match=r"texts\.jsonl:2"):
        documents(str(file))
    with pytest.raises(ValueError, match="does not exist"):
        documents(str(tmp_path / "nothing"))


def test_the_split_depends_on_names_alone(texts: Path) -> None:
    found = documents(str(texts))
    sides = {document.name: document.held_out(0.3) for document in found}
    assert 0 < sum(sides.values()) < len(sides)
    (texts / "another.py").write_text("x = 1\n")
    assert all(
        sides.get(document.name, document.held_out(0.3)) == document.held_out(0.3) for document in documents(str(texts))
    )


def test_cleaning() -> None:
    assert clean("a\t b  \n\n\n\n\n\n" + "x" * 300 + "\nc") == "a    b\n\n\nc\n"


def test_windows_of_a_step_are_its_own() -> None:
    import numpy as np

    stream = Stream(np.arange(1000), 1000)
    again = [stream.windows(10, 4, seed=1, step=step) for step in (3, 40, 3)]
    assert (again[0] == again[2]).all()
    assert not (again[0] == again[1]).all()
