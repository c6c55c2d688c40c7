"""Training recipes in miniature: from a folder of text to models that load, and resuming to the
same losses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import specdec
from experiments.training import recipes
from experiments.training.documents import clean, documents, pieces
from experiments.training.text import Stream
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


def target_settings(texts: Path, output: Path, *more: str):
    return settings(
        texts,
        output,
        "drafter=none",
        "drafter.vocabulary=300",
        "drafter.architecture.num_hidden_layers=3",
        "drafter.early_exits=[1]",
        *more,
    )


def test_a_target_and_its_draft_model_from_a_folder_of_text(texts: Path, tmp_path: Path) -> None:
    recipes.train_target(target_settings(texts, tmp_path / "t"), tmp_path / "t", "cpu")
    small = settings(
        texts, tmp_path / "d", "drafter=small_model", f"target={tmp_path / 't' / 'model'}"
    )
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


def killed(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    """A training that is interrupted in its step `before`, counted from 1."""
    sound, seen = recipes.target.loss, []

    def loss(*arguments):
        seen.append(1)
        if len(seen) == before:
            raise KeyboardInterrupt
        return sound(*arguments)

    monkeypatch.setattr(recipes.target, "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        recipes.train(config, folder, "cpu")
    monkeypatch.setattr(recipes.target, "loss", sound)


@pytest.mark.parametrize("minutes", [60, 0])
def test_an_interrupted_training_resumes_to_the_same_losses(
    minutes: int, texts: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """From the evaluation after two steps, or from a checkpoint between two evaluations. It says
    from where."""
    whole, broken = (
        target_settings(texts, tmp_path / name, f"checkpoint_minutes={minutes}")
        for name in ("whole", "broken")
    )
    recipes.train(whole, tmp_path / "whole", "cpu")
    assert "going on" not in capsys.readouterr().err
    killed(broken, tmp_path / "broken", monkeypatch, before=4)
    recipes.train(broken, tmp_path / "broken", "cpu")
    assert f"going on from step {3 if minutes == 0 else 2} of 4" in said(capsys)
    first, second = (
        json.loads((tmp_path / name / "checkpoint" / "log.json").read_text())
        for name in ("whole", "broken")
    )
    assert [entry["bits_per_byte"] for entry in first] == [
        entry["bits_per_byte"] for entry in second
    ]
    assert [entry["loss"] for entry in first] == [entry["loss"] for entry in second]
    same = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "broken")
    ]
    assert same[0] == same[1]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed for the reader, lines joined again."""
    return " ".join(capsys.readouterr().err.split())


def test_a_training_that_is_complete_says_that_nothing_is_left(
    texts: Path, tmp_path: Path, capsys
) -> None:
    config = target_settings(texts, tmp_path)
    recipes.train(config, tmp_path, "cpu")
    (tmp_path / "model" / "config.json").unlink()
    capsys.readouterr()
    recipes.train(config, tmp_path, "cpu")
    assert "nothing to train: all 4 steps were done before" in said(capsys)
    assert (tmp_path / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("changed", "listed"),
    [
        ("drafter.steps=6", "drafter.steps 4, now 6"),
        ("seed=3", "seed 0, now 3"),
        ("drafter.architecture.hidden_size=32", "drafter.architecture.hidden_size 16, now 32"),
    ],
)
def test_a_training_of_other_settings_is_refused(
    changed: str, listed: str, texts: Path, tmp_path: Path, monkeypatch
) -> None:
    killed(target_settings(texts, tmp_path), tmp_path, monkeypatch, before=4)
    before = (tmp_path / "checkpoint" / "log.json").read_text()
    with pytest.raises(ValueError, match=f"other settings: {listed}. Give another output=FOLDER"):
        recipes.train(target_settings(texts, tmp_path, changed), tmp_path, "cpu")
    assert (tmp_path / "checkpoint" / "log.json").read_text() == before


def test_where_a_training_runs_is_no_setting(
    texts: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """A folder that was moved goes on, also when it evaluates at other steps; the same texts at
    another place are the same, other texts at the same place are not."""
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    killed(target_settings(texts, folder), folder, monkeypatch, before=4)
    folder.rename(moved)
    copied = shutil.copytree(texts, tmp_path / "copied")
    killed(target_settings(copied, moved, "evaluate_every=1"), moved, monkeypatch, before=2)
    assert "going on from step 2 of 4" in said(capsys)
    (copied / "module_0.py").write_text("another = 1\n")
    with pytest.raises(ValueError, match=r"other settings: .*text\.digest \d+, now \d+"):
        recipes.train(target_settings(copied, moved), moved, "cpu")


def test_a_checkpoint_that_does_not_say_its_settings_is_refused(
    texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "log.json").write_text("[]")
    with pytest.raises(ValueError, match=r"of an earlier version.*output=FOLDER, or delete it"):
        recipes.train(target_settings(texts, tmp_path), tmp_path, "cpu")


def test_a_drafter_needs_a_target(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target=demo"):
        recipes.train_small_model(settings(texts, tmp_path, "drafter=small_model"), tmp_path, "cpu")


def test_bad_lines_of_a_jsonl_are_named(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    with pytest.raises(
        ValueError, match=r"texts\.jsonl:2: no text in the field 'text' \(there are: body\)"
    ):
        documents(str(file))
    with pytest.raises(ValueError, match="does not exist"):
        documents(str(tmp_path / "nothing"))


def test_the_split_depends_on_names_alone(texts: Path) -> None:
    found = documents(str(texts))
    sides = {document.name: document.held_out(0.3) for document in found}
    assert 0 < sum(sides.values()) < len(sides)
    (texts / "another.py").write_text("x = 1\n")
    assert all(
        sides.get(document.name, document.held_out(0.3)) == document.held_out(0.3)
        for document in documents(str(texts))
    )


def test_cleaning() -> None:
    assert clean("a\t b  \n\n\n\n\n\n" + "x" * 300 + "\nc") == "a    b\n\n\nc\n"


LONG = "A question with more than two hundred characters, as word problems are. " * 5
FOREIGN = (
    "Zwölf Boxkämpfer jagen Viktor quer über den Deich.  \n\n\n\n\n这是一个完全不同的句子\tщит\n"
)
SOURCE = "x = 1\n"


def test_rules_for_source_code_are_for_source_code(tmp_path: Path, capsys) -> None:
    """Long lines, other alphabets, tabs and blanks stay in texts; the same file as source code is
    left out in part or whole, and the numbers say so."""
    (tmp_path / "long.txt").write_text(LONG)
    (tmp_path / "foreign.md").write_text(FOREIGN, encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text(
        json.dumps({"text": LONG}) + "\n\n" + json.dumps({"text": " "}) + "\n"
    )
    (tmp_path / "long.py").write_text(f"{SOURCE}# {LONG}\n# {LONG}\n")
    (tmp_path / "foreign.py").write_text(FOREIGN, encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "picture.png").write_bytes(b"")
    found = documents(str(tmp_path), ["*.txt", "*.md", "*.py", "*.jsonl"])
    assert {one.name: one.text for one in found} == {
        "long.txt": LONG,
        "foreign.md": FOREIGN,
        "lines.jsonl:1": LONG,
        "long.py": SOURCE,
    }
    told = said(capsys)
    for number in (
        "4 documents of",
        "2 lines of source code over 200 characters",
        "1 source files that are for more than a tenth not ASCII",
        "1 files that are not UTF-8",
        "1 empty texts",
        "1 files of other names",
    ):
        assert number in told


def test_where_nothing_is_left_the_numbers_say_why(tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(FOREIGN, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("another pattern")
    with pytest.raises(
        ValueError, match=r"left out: 1 source files .* not ASCII, 1 files of other names"
    ):
        documents(str(tmp_path), ["*.py"])


def test_fields_of_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    entry = {"question": LONG, "answer": "Zwölf.", "turns": ["One.", "Two."], "id": 3}
    file.write_text(json.dumps(entry), encoding="utf-8")

    def texts(field: Any) -> list[str]:
        return [one.text for one in documents(str(file), field=field)]

    assert texts("question") == [LONG]
    assert texts(["question", "answer"]) == [f"{LONG}\nZwölf."]
    assert texts("turns") == ["One.\nTwo."]
    for field in ("text", "id"):
        with pytest.raises(
            ValueError,
            match=rf"jsonl:1: no text in the field '{field}' .*question, answer, turns, id",
        ):
            texts(field)


def test_one_text_file_has_both_sides_of_the_split(tmp_path: Path) -> None:
    """It is cut at empty lines, and nothing is lost."""
    speech = "".join(f"SPEAKER {number}:\n{LONG}\n\n" for number in range(1200))
    file = tmp_path / "plays.txt"
    file.write_text(speech)
    found = documents(str(file))
    assert "".join(one.text for one in found) == speech
    assert all(one.text.endswith("\n\n") for one in found)
    assert 0 < sum(one.held_out(0.03) for one in found) < len(found) / 2


def test_pieces() -> None:
    assert pieces("ab\n\ncd\n\nef\n", 3) == ["ab\n\n", "cd\n\n", "ef\n"]
    assert pieces("ab\ncd\nef\ngh", 3) == ["ab\ncd\n", "ef\ngh"]
    assert pieces("", 3) == []


def test_too_few_documents_for_a_split_say_what_to_change(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("short")
    config = settings(tmp_path, tmp_path / "out", "drafter=none", "text.held_out=0.01")
    with pytest.raises(
        ValueError, match=r"1 documents split into 1 .* 0 held out; .* text\.held_out, 0\.01"
    ):
        recipes.text(config, None)


def test_windows_of_a_step_are_its_own() -> None:
    import numpy as np

    stream = Stream(np.arange(1000), 1000)
    again = [stream.windows(10, 4, seed=1, step=step) for step in (3, 40, 3)]
    assert (again[0] == again[2]).all()
    assert not (again[0] == again[1]).all()
