"""What a name or a `_target_` may make, and what is refused before anything of it is called."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import specdec
from specdec.plugins import build
from tests.models import lm

TOOLS = '''
from pathlib import Path
from typing import Self

from specdec import Drafter, TokenTree, Verifier
from specdec.plugins import build
from drafters.ngram import NGram
import shutil


class Echo(Drafter):
    """Proposes nothing."""

    def __init__(self, length: int = 2) -> None:
        self.length = length

    @classmethod
    def short(cls) -> Self:
        return cls(1)

    def propose(self, state, chance) -> TokenTree:
        return TokenTree.root(state.roots)


class Around(Echo):
    """Wraps another drafter."""

    def __init__(self, drafter) -> None:
        super().__init__()
        self.inner = build("drafter", drafter)


def harm(path: str) -> None:
    Path(path).write_text("called")


def harm_that_says_nothing(path: str):
    Path(path).write_text("called")


def harm_that_cannot_be_read(path: str) -> "Nowhere":
    Path(path).write_text("called")


def echo(length: int) -> "Echo":
    return Echo(length)


def liar() -> Drafter:
    return 5
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """package(tools=TEXT) makes an allowed package with these modules; its name."""
    name = f"made_for_{tmp_path.name}".replace("-", "_")

    def make(**modules: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        for module, text in modules.items():
            (tmp_path / name / f"{module}.py").write_text(text)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPECDEC_ALLOW", f"nothing_of_this_name, {name}")
    yield make
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_function_that_makes_no_drafter_is_not_called(package, tmp_path):
    """The same as a drafter, as a verifier, and inside of a drafter that builds another one."""
    tools, mark = f"{package(tools=TOOLS)}.tools", tmp_path / "mark"
    for name in (
        "harm",
        "harm_that_says_nothing",
        "harm_that_cannot_be_read",
        "Path.write_text",
        "shutil.rmtree",
    ):
        evil = {"_target_": f"{tools}.{name}", "path": str(mark)}
        around = {"_target_": f"{tools}.Around", "drafter": evil}
        for group, choice in (("drafter", evil), ("verifier", evil), ("drafter", around)):
            with pytest.raises(ValueError, match=rf"_target_ {tools}\.{name}"):
                build(group, choice)
    assert not mark.exists()


def test_a_yaml_that_names_such_a_function(package, tmp_path):
    name, mark = package(tools=TOOLS), tmp_path / "mark"
    for group in ("drafter", "verifier"):
        yaml = tmp_path / name / "conf" / group / "evil.yaml"
        yaml.parent.mkdir(parents=True)
        yaml.write_text(f"_target_: {name}.tools.harm\npath: {mark}\n")
        with pytest.raises(ValueError, match=rf"_target_ {name}\.tools\.harm makes a NoneType"):
            build(group, "evil")
    assert not mark.exists()


def test_our_own_functions_are_no_drafters_either(tmp_path):
    (tmp_path / "kept").write_text("of the user")
    settings = {"folder": str(tmp_path), "config": {}, "weights": {}}
    for name in (
        "specdec.heads.write_folder",
        "drafters.medusa.static_tree",
        "drafters.small_model.load",
    ):
        with pytest.raises(ValueError, match=f"_target_ {name}"):
            specdec.generate(
                lm("llama_gqa"), [1, 2], max_new_tokens=2, drafter={"_target_": name, **settings}
            )
    assert (tmp_path / "kept").read_text() == "of the user"


def test_a_class_of_another_kind_says_both_sides():
    with pytest.raises(
        ValueError,
        match=r"ngram\.NGram makes a NGram, which is no specdec\.Verifier.*Nothing was called",
    ):
        build("verifier", {"_target_": "drafters.ngram.NGram"})


def test_classes_and_functions_that_say_what_they_make(package):
    tools = f"{package(tools=TOOLS)}.tools"
    assert build("drafter", {"_target_": f"{tools}.Echo", "length": 7}).length == 7
    assert build("drafter", {"_target_": f"{tools}.echo", "length": 7}).length == 7
    assert build("drafter", {"_target_": f"{tools}.Echo.short"}).length == 1
    inner = build(
        "drafter", {"_target_": f"{tools}.Around", "drafter": {"name": "ngram", "length": 4}}
    ).inner
    assert inner.length == 4


def test_a_function_that_makes_something_else_than_it_says(package):
    with pytest.raises(
        ValueError, match=r"drafter liar is made as a int, which is no specdec\.Drafter"
    ):
        build("drafter", {"_target_": f"{package(tools=TOOLS)}.tools.liar"})


def test_a_module_that_fails_while_it_is_imported(package):
    name = package(broken="raise RuntimeError('half done')", lacking="import nothing_of_this_name")
    with pytest.raises(ValueError, match=r"broken\.X cannot be imported: RuntimeError: half done"):
        build("drafter", {"_target_": f"{name}.broken.X"})
    with pytest.raises(ValueError, match=r"lacking\.X cannot be imported: .*nothing_of_this_name"):
        build("drafter", {"_target_": f"{name}.lacking.X"})
