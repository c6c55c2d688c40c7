"""The project as others meet it: the direction of imports in the checkout, and a wheel installed somewhere else."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.strangers import IN_ORDER, announce, write

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("specdec", "drafters", "verifiers", "conf", "experiments")
MAY_IMPORT = {
    "specdec": {"specdec"},
    "drafters": {"specdec", "drafters"},
    "verifiers": {"specdec", "verifiers"},
    "conf": {"conf"},
    "experiments": set(PACKAGES),
}


def imported(source: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def shipped(folder: Path) -> set[str]:
    """The files of our packages below `folder` that an installation needs."""
    suffixes = {".py", ".yaml", ".json", ".jsonl", ".safetensors", ".jinja", ".md", ".typed"}
    return {
        path.relative_to(folder).as_posix()
        for package in PACKAGES
        for path in (folder / package).rglob("*")
        if path.suffix in suffixes
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_this_project(package):
    assert Path(importlib.import_module(package).__file__).parent == ROOT / package


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    ours = {*PACKAGES, "tests"}
    wrong = {
        path.relative_to(ROOT).as_posix(): sorted(forbidden)
        for path in (ROOT / package).rglob("*.py")
        if (forbidden := (imported(path) & ours) - MAY_IMPORT[package])
    }
    assert not wrong, f"{package} may import {sorted(MAY_IMPORT[package])} of ours"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """An environment with this project installed from its wheel, and the libraries of the running one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    copy, environment = folder / "copy", folder / "environment"
    copy.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, copy, cwd=folder)
    (wheel,) = folder.glob("*.whl")

    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    libraries = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(libraries))
    return environment, site


def run(*command, cwd: Path) -> str:
    """What a command prints, run away from the checkout. Fails with everything it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_wheel_holds_every_file(elsewhere):
    assert shipped(elsewhere[1]) == shipped(ROOT)


@pytest.mark.slow
def test_wheel_is_what_imports(elsewhere, tmp_path):
    environment, site = elsewhere
    program = f"import importlib\nfor name in {PACKAGES}: print(importlib.import_module(name).__file__)"
    found = run(environment / "bin" / "python", "-c", program, cwd=tmp_path).split()
    assert [Path(path).parent for path in found] == [site / package for package in PACKAGES]


@pytest.mark.slow
def test_wheel_has_the_commands(elsewhere, tmp_path):
    programs = elsewhere[0] / "bin"
    assert "--drafter" in run(programs / "specdec", "--help", cwd=tmp_path)
    assert "drafter" in run(programs / "python", "-m", "experiments.run", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_wheel_decodes_with_the_bundled_models(elsewhere, tmp_path):
    command = (elsewhere[0] / "bin" / "specdec", "class Stack:", "--drafter", "small_model", "--max-new-tokens", "8")
    assert "tau" in run(*command, cwd=tmp_path)


@pytest.mark.slow
def test_a_package_of_somebody_else_beside_the_wheel(elsewhere, tmp_path):
    """Installed too, it announces itself: decoding, Hydra and the laws know its plug-ins."""
    environment, site = elsewhere
    write(site, "theirs_installed", IN_ORDER)
    announce(site, "theirs_installed")
    python, specdec = environment / "bin" / "python", environment / "bin" / "specdec"
    assert "echo_far" in run(specdec, "--help", cwd=tmp_path)
    command = (specdec, "class Stack:", "--drafter", "echo", "--verifier", "mine", "--max-new-tokens", "8")
    assert "[echo + mine," in run(*command, cwd=tmp_path)
    assert "echo_far" in run(python, "-m", "experiments.run", "--help", cwd=tmp_path)
    laws = ("-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "experiments.certificates.laws")
    said = run(python, *laws, "-k", "(echo and mine) or order", cwd=tmp_path)
    assert " passed" in said
    assert "failed" not in said
