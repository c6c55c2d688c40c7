"""The project as others meet it: the direction of imports in the checkout, and a wheel installed
somewhere else."""

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


def modules() -> dict[str, Path]:
    """Every module of ours by its name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def imported_modules(source: Path, known: set[str], at_once: bool) -> set[str]:
    """The modules of ours that a file imports: `at_once`, when it is imported itself; else also
    those that its functions import when they are called, and those that only type checkers read."""
    found = set()
    waiting: list[ast.AST] = [ast.parse(source.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if at_once and (later or for_types):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {node.module}
    return found & known


def test_no_module_imports_itself_in_a_circle():
    known = modules()
    waiting = {
        name: imported_modules(path, set(known), at_once=True) for name, path in known.items()
    }
    while free := [name for name, needs in waiting.items() if not needs & waiting.keys()]:
        for name in free:
            del waiting[name]
    assert not waiting, "each of these waits for another one of them"


# What lies in experiments/ from the bottom up: a room imports itself and those before it.
ROOMS = (
    "terminal",
    "system",
    "prompts",
    "certificates",
    "study",
    "measuring",
    "audits",
    "records",
    "report",
    "load_study",
    "benchmarks",
    "training",
    "checkups",
)
# what training still calls them
FORMER = {f"experiments.{name}" for name in ("logger", "program", "progress", "schema")}


def test_rooms_of_experiments_import_only_what_is_below_them():
    known = modules()
    top = {
        name
        for name in known
        if name.startswith("experiments.") and name.split(".")[1] not in ROOMS
    }
    assert {
        path.name for path in (ROOT / "experiments").iterdir() if (path / "__init__.py").exists()
    } == set(ROOMS)
    wrong = {}
    for name, path in known.items():
        room = name.split(".")[1] if name.startswith("experiments.") else None
        if room in ROOMS and path.name != "__main__.py":
            above = {f"experiments.{other}" for other in ROOMS[ROOMS.index(room) + 1 :]}
            needs = imported_modules(path, set(known), at_once=False) - FORMER
            forbidden = {
                need for need in needs if need in top or ".".join(need.split(".")[:2]) in above
            }
            wrong |= {name: sorted(forbidden)} if forbidden else {}
    assert not wrong


SERVES = (
    "engine",
    "handles",
    "requests",
    "tickets",
    "seats",
    "groups",
    "verdicts",
    "outcome",
    "output",
)
LOOP = {f"specdec.{name}" for name in ("generate", *SERVES)}


def test_what_the_loop_uses_does_not_know_the_loop():
    known = modules()
    wrong = {}
    for name, path in known.items():
        if name.split(".")[:2] in (
            ["specdec", room] for room in ("models", "drafting", "heads", "verifying")
        ):
            needs = imported_modules(path, set(known), at_once=False) & LOOP
            wrong |= {name: sorted(needs)} if needs else {}
    assert not wrong


def test_only_programs_lie_on_top_of_experiments():
    others = {
        f"experiments.{path.stem}"
        for path in (ROOT / "experiments").glob("*.py")
        if '\nif __name__ == "__main__":\n' not in path.read_text(encoding="utf-8")
    }
    assert others <= {"experiments.__init__", *FORMER}


def shipped(folder: Path) -> set[str]:
    """The files of our packages below `folder` that an installation needs."""
    suffixes = {
        ".py",
        ".yaml",
        ".json",
        ".jsonl",
        ".safetensors",
        ".md",
        ".typed",
        ".j2",
        ".css",
        ".js",
    }
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


def test_python_started_beside_the_clone_finds_the_package(tmp_path):
    """`pip install -e`, then Python in the folder that holds the clone, which is named specdec: a
    namespace package of that name is there, and empty."""
    clone, site = tmp_path / "specdec", tmp_path / "site"
    for package in PACKAGES:
        without = shutil.ignore_patterns("__pycache__", "demo")
        shutil.copytree(ROOT / package, clone / package, ignore=without)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    site.mkdir()
    build = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    run(sys.executable, "-c", build, site, cwd=clone)
    (wheel,) = site.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    program = "import sys, site; site.addsitedir(sys.argv[1]); import specdec"
    shown = f"{program}; print(specdec.__file__)"
    found = run(sys.executable, "-S", "-c", shown, site, cwd=tmp_path)
    assert Path(found.strip()) == clone / "specdec" / "__init__.py"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """An environment with this project installed from its wheel, and the libraries of the running
    one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    copy, environment = folder / "copy", folder / "environment"
    copy.mkdir()
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        copy,
        cwd=folder,
    )
    (wheel,) = folder.glob("*.whl")

    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    site = Path(
        run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
        ).strip()
    )
    libraries = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(libraries))
    return environment, site


def run(*command, cwd: Path) -> str:
    """What a command prints, run away from the checkout. Fails with everything it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_wheel_holds_every_file(elsewhere):
    assert shipped(elsewhere[1]) == shipped(ROOT)


@pytest.mark.slow
def test_wheel_is_what_imports(elsewhere, tmp_path):
    environment, site = elsewhere
    program = (
        f"import importlib\nfor name in {PACKAGES}: print(importlib.import_module(name).__file__)"
    )
    found = run(environment / "bin" / "python", "-c", program, cwd=tmp_path).split()
    assert [Path(path).parent for path in found] == [site / package for package in PACKAGES]


@pytest.mark.slow
def test_wheel_has_the_commands(elsewhere, tmp_path):
    programs = elsewhere[0] / "bin"
    assert "--drafter" in run(programs / "specdec", "--help", cwd=tmp_path)
    assert "drafter" in run(programs / "python", "-m", "experiments.run", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_wheel_decodes_with_the_bundled_models(elsewhere, tmp_path):
    command = (
        elsewhere[0] / "bin" / "specdec",
        "class Stack:",
        "--drafter",
        "small_model",
        "--max-new-tokens",
        "8",
    )
    assert "tau" in run(*command, cwd=tmp_path)


@pytest.mark.slow
def test_a_package_of_somebody_else_beside_the_wheel(elsewhere, tmp_path):
    """Installed too, it announces itself: decoding, Hydra and the laws know its plug-ins."""
    environment, site = elsewhere
    write(site, "theirs_installed", IN_ORDER)
    announce(site, "theirs_installed")
    python, specdec = environment / "bin" / "python", environment / "bin" / "specdec"
    assert "echo_far" in run(specdec, "--help", cwd=tmp_path)
    command = (
        specdec,
        "class Stack:",
        "--drafter",
        "echo",
        "--verifier",
        "mine",
        "--max-new-tokens",
        "8",
    )
    assert "[echo + mine," in run(*command, cwd=tmp_path)
    assert "echo_far" in run(python, "-m", "experiments.run", "--help", cwd=tmp_path)
    laws = ("-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "experiments.certificates.laws")
    said = run(python, *laws, "-k", "(echo and mine) or order", cwd=tmp_path)
    assert " passed" in said
    assert "failed" not in said
