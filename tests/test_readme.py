"""What the README shows runs as it stands there, and what its file tree names exists."""

import re
from pathlib import Path

import pytest

import specdec
from specdec import Enumerate
from specdec.models.table import TableModel

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_fifteen_lines(capsys: pytest.CaptureFixture[str]) -> None:
    example = next(block for block in BLOCKS if "specdec.generate(" in block)
    exec(compile(example, "README.md", "exec"), {})
    assert "tau" in capsys.readouterr().out


def test_the_example_drafter_is_lossless() -> None:
    example = next(block for block in BLOCKS if "class Repeat" in block)
    names: dict[str, type] = {"__name__": "drafters.repeat"}
    exec(compile(example, "README.md", "exec"), names)
    target = TableModel({(): [3, 1], (0,): [1, 2], (1,): [0, 1]})
    law: dict[tuple[int, ...], float] = {}
    for probability, out in Enumerate().runs(
        lambda chance: specdec.generate(
            target,
            [[0]],
            drafter=names["Repeat"](2),
            temperature=1.0,
            max_new_tokens=3,
            chance=chance,
        )
    ):
        tokens = tuple(out.tokens[0].tolist())
        law[tokens] = law.get(tokens, 0.0) + probability
    for tokens, probability in law.items():
        plain = 1.0
        for place in range(3):
            plain *= float(target.law(tokens[:place])[tokens[place]])
        assert probability == pytest.approx(plain, abs=1e-12)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)


def test_the_file_tree_names_files_that_exist() -> None:
    tree = next(
        block
        for block in re.findall(r"^```\w*\n(.*?)^```", README, re.S | re.M)
        if block.startswith("specdec/")
    )
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        path = ROOT / (name if not line.startswith(" ") else folder + name)
        assert path.exists(), path
    for name in re.findall(r"docs/[\w.]+", README):
        assert (ROOT / name).exists(), name
