"""What the README and the pages in docs/ show runs as it stands there: Python, YAML, commands, and
the files that they name."""

import importlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from inspect import getmembers, isclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hydra import compose, initialize_config_dir
from pages import all_pages

import specdec
from experiments.certificates import suite
from experiments.doctor import Doctor
from experiments.records import lookups
from experiments.replay import is_about_outputs
from experiments.terminal import search_path
from experiments.terminal.options import parse
from specdec import Enumerate, registry
from specdec.__main__ import drafter_choice, parser
from specdec.models.table import TableModel
from specdec.plugins import check_names, find

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
# Pages whose Python is a file, a part of a program, or a program of its own. The blocks of every
# other page are one program, which tests/test_docs.py runs.
IN_PARTS = {
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "audit",
            "compiled",
            "drafters",
            "heads",
            "own_drafter",
            "own_rule",
            "trace",
            "transformers_intersection_drafting",
        )
    ),
}
GENERATED = {ROOT / "docs" / page for page in all_pages()}  # by docs/_site/, for the site alone
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
# "`mine/rules.py`:" or "Add it to `mine/drafters.py`:", and the block below that
FILE = re.compile(r"`(mine/[\w./]+)`[^`]*\n\n```\w+\n(.*?)^```", re.S | re.M)
HYDRA = {
    "run": "",
    "certify": "",
    "train": "train",
    "record": "",
    "replay": "",
}  # programs, and their folder in conf/


def blocks(page: str, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(PAGES[page]) if kind == language]


def commands(program: str) -> list[str]:
    """Every command line of a page that begins so, in a block or in a sentence."""
    found = []
    for page in PAGES.values():
        lines = [text for kind, text in FENCE.findall(page) if kind in ("", "sh")]
        shown = "\n".join(lines).replace("\\\n", "").splitlines()
        inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", page))
        found += [line.strip() for line in [*shown, *inline] if line.strip().startswith(program)]
    return list(dict.fromkeys(found))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package that the pages write, in the working folder."""
    for page in PAGES.values():
        for name, text in FILE.findall(page):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{text}\n\n")
    (tmp_path / "mine" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SPECDEC_ALLOW", "mine")
    yield tmp_path
    for module in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[module]


PROGRAMS = [
    (page, number)
    for page in sorted(IN_PARTS)
    for number, text in enumerate(blocks(page, "python"))
    if text.startswith("import specdec\n")
]


@pytest.mark.parametrize(("page", "number"), PROGRAMS)
def test_python_runs(page, number, capsys):
    exec(compile(blocks(page, "python")[number], page, "exec"), {})
    assert "tau" in capsys.readouterr().out


def test_the_stream_of_the_readme_is_no_loop(capsys):
    (example,) = blocks("README.md", "python")
    whole = example.partition("for event")
    exec(compile(whole[0], "README.md", "exec"), names := {})
    capsys.readouterr()
    exec(compile("".join(whole[1:]), "README.md", "exec"), names)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) <= 12
    assert max(map(lines.count, lines)) <= 3


TARGET = TableModel({(): [3, 1], (0,): [1, 2], (1,): [0, 1]})
DRAFT = TableModel({(): [1, 1], (0,): [2, 1], (1,): [1, 3]})
PAIRS = [
    ("repeat", "auto"),
    ("frequent", "auto"),
    ("frequent", "first_child"),
    ({"name": "small_model", "depth": 2, "branching": [2, 1]}, "first_child"),
    ({"name": "small_model", "depth": 2, "branching": 2, "draw": "topk"}, "first_child"),
]


@pytest.mark.parametrize(("drafter", "rule"), PAIRS)
def test_plugins_of_the_pages_are_lossless(mine, drafter, rule):
    law: dict[tuple[int, ...], float] = {}
    wanted = drafter if isinstance(drafter, str) else {**drafter, "model": DRAFT}
    for probability, out in Enumerate().runs(
        lambda chance: specdec.generate(
            TARGET,
            [[0]],
            drafter=wanted,
            verifier=rule,
            temperature=1.0,
            max_new_tokens=3,
            chance=chance,
        )
    ):
        tokens = tuple(out.tokens[0].tolist())
        law[tokens] = law.get(tokens, 0.0) + probability
    assert len(law) > 2
    for tokens, probability in law.items():
        plain = 1.0
        for before in range(3):
            plain *= float(TARGET.law(tokens[:before])[tokens[before]])
        assert probability == pytest.approx(plain, abs=1e-12)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)


def test_plugins_of_the_pages_meet_the_suite_of_laws(mine):
    mine_alone = {name for _, name in suite.plugins() if not registry.is_ours("drafter", name)}
    assert {"repeat", "frequent"} <= mine_alone
    greedy = specdec.generate(
        TARGET, [[0]], drafter="frequent", verifier="first_child", max_new_tokens=4
    )
    plain = specdec.generate(TARGET, [[0]], drafter="none", max_new_tokens=4)
    assert greedy.tokens[0].tolist() == plain.tokens[0].tolist()


# -------------------------------------------------------------------------------- command lines


def options_of(program: ModuleType) -> type:
    """The dataclass of a program's options."""
    (found,) = (
        one
        for _, one in getmembers(program, isclass)
        if is_dataclass(one)
        and one.__module__ == program.__name__
        and str(one.__doc__).startswith("python -m experiments.")
    )
    return found


def jobs(overrides: list[str]) -> list[list[str]]:
    """Of a sweep: enough jobs to have every value of `key=1,2,3` once."""
    keys = [override.partition("=")[0] for override in overrides]
    values = [re.split(r",(?![^\[{]*[\]}])", one.partition("=")[2]) for one in overrides]
    return [
        [f"{key}={each[min(n, len(each) - 1)]}" for key, each in zip(keys, values, strict=True)]
        for n in range(max(map(len, values), default=1))
    ]


@pytest.mark.parametrize("line", commands("python -m experiments."))
def test_commands_name_programs_and_options_that_there_are(line, mine):
    """Composed and parsed, not run."""
    if "launcher=ray" in line:
        pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs specdec[ray]")
    _, _, name, *arguments = shlex.split(line, comments=True)
    inner = ".__main__" if (ROOT / name.replace(".", "/")).is_dir() else ""
    program = importlib.import_module(f"{name}{inner}")
    short = name.removeprefix("experiments.")
    if not arguments or "--help" in arguments:
        return
    if short == "replay" and is_about_outputs(arguments):
        parse(lookups.Replay, arguments)
        return
    if short not in HYDRA:
        parse(options_of(program), arguments)
        return
    if "--config-dir" in arguments:
        place = arguments.index("--config-dir")
        folder = mine / arguments[place + 1]
        arguments[place : place + 2] = [f"hydra.searchpath=[file://{folder}]"]
    overrides = [argument for argument in arguments if argument != "-m"]
    search_path.register()
    with initialize_config_dir(str(registry.CONF / HYDRA[short]), version_base="1.3"):
        for job in jobs(overrides) if "-m" in arguments else [overrides]:
            compose(short, job)


@pytest.mark.parametrize("line", commands("specdec "))
def test_commands_of_the_shell_name_options_that_there_are(line, mine):
    _, *arguments = shlex.split(line)
    if arguments[0] == "doctor":
        parse(Doctor, arguments[1:])
        return
    options = parser().parse_args(arguments)
    found = find("drafter", drafter_choice(options.drafter))
    check_names(found.name, found.make, found.arguments)


@pytest.mark.parametrize("line", commands("python -m pytest"))
def test_commands_of_pytest_name_modules_that_there_are(line):
    _, _, _, *arguments = shlex.split(line)
    assert importlib.util.find_spec(arguments[arguments.index("--pyargs") + 1])


def test_targets_of_make_are_there():
    makefile = (ROOT / "Makefile").read_text()
    named = {name for page in PAGES.values() for name in re.findall(r"(?:^|`)make ([a-z-]+)", page)}
    named |= set(re.findall(r"^make ([a-z-]+)", PAGES["README.md"], re.M))
    assert {"demo", "test"} <= named
    assert not [name for name in named if f"\n{name}:" not in makefile]


# ------------------------------------------------------------------------------ files and form


@pytest.mark.parametrize("page", PAGES)
def test_yaml_is_yaml_and_python_is_python(page):
    for text in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)
    for text in blocks(page, "python"):
        compile(text, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", PAGES[page]):
        assert (folder / link).exists() or (folder / link).resolve() in GENERATED, link
    named = re.findall(
        r"`((?:specdec|drafters|verifiers|conf|experiments|tests|docs)/[\w./]*)`", PAGES[page]
    )
    for name in named:
        assert (ROOT / name).exists() or name.isupper() or "NAME" in name, name


def test_the_file_tree_names_files_that_exist():
    tree = next(text for text in blocks("docs/architecture.md", "") if text.startswith("specdec/"))
    folder, shown = "", set()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        path = ROOT / (name if not line.startswith(" ") else folder + name)
        assert path.exists(), path
        shown.add(path)
    for path in (ROOT / "specdec").iterdir():
        assert path in shown or path.name in ("py.typed", "__pycache__"), path


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_no_longer_than_a_screen(page):
    """Tables aside."""
    lines = PAGES[page].splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_every_plugin_is_in_the_readmes_tables():
    for group in ("drafter", "verifier"):
        for path in (registry.CONF / group).glob("*.yaml"):
            assert f"`{path.stem}`" in PAGES["README.md"], path


def test_every_program_is_named_somewhere():
    """All but those that compare two checkouts or write the demo's prompts, for who works here."""
    text = "\n".join(PAGES.values())
    programs = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    missing = {name for name in programs if name not in text}
    assert missing <= {"compare_checkouts", "demo_prompts"}, os.linesep.join(missing)
