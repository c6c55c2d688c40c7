"""The documentation site: its examples run and print what the pages show, every key of conf/ has a
meaning, every page is in the navigation, and links lead somewhere."""

import contextlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import GROUPS, NESTED, SCHEMA, all_pages
from trees import FENCE, drawn, nodes, parse

import specdec
from experiments.measuring.rounds import COLUMNS
from experiments.terminal.meanings import (
    COMMON,
    CONF,
    Option,
    beside,
    fields,
    filled,
    plugin,
    programs,
    read_yaml,
)
from tests.test_readme import IN_PARTS, PAGES, ROOT

DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
GENERATED = all_pages()
ROUNDS = "docs/reference/rounds.md"
# a block of Python, and what it prints if the page shows it
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.S | re.M)


def run(page: str) -> dict[str, Any]:
    """Run the blocks of a page as one program. Returns its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for code, shown in EXAMPLE.findall(PAGES[page]):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, page, "exec"), names)
        if shown:
            assert said.getvalue() == shown
    return names


WITH_CODE = [
    page for page in PAGES if page not in IN_PARTS and page != ROUNDS and "```python" in PAGES[page]
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_examples_run_and_print_what_is_shown(page):
    run(page)


def test_columns_of_rounds_parquet_are_documented():
    """All of them, in order, with their types."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGES[ROUNDS], re.M)
    assert [name for name, _ in rows] == COLUMNS
    frame = run(ROUNDS)["frame"]
    assert [str(kind) for kind in frame.dtypes] == [kind for _, kind in rows]


# ----------------------------------------------------------------------------------------- keys


def keys_of_yamls() -> dict[str, list[Option]]:
    """Page of the reference -> every key that it must explain."""
    found = {
        f"reference/{group}s.md": [
            option
            for path in sorted((CONF / group).glob("*.yaml"))
            for option in plugin(group, path.stem).options
        ]
        for group in ("drafter", "verifier")
    }
    recipes = [*beside(CONF / "train/drafter"), *beside(CONF / "train/text")]
    recipes.append(read_yaml(CONF / "train/train.yaml"))
    found["reference/train.md"] = [
        option for one in recipes for option in filled(one.options, COMMON)
    ]
    found["reference/run.md"] = [
        option for option in fields(SCHEMA, "Command") if option.key not in NESTED
    ]
    for name in filter(None, (name for _, name in NESTED.values())):
        found["reference/run.md"] += fields(SCHEMA, name)
    found["reference/programs.md"] = [option for one in programs() for option in one.options]
    return found


@pytest.mark.parametrize(("page", "options"), keys_of_yamls().items())
def test_every_key_has_a_meaning(page, options):
    assert options
    for option in options:
        assert option.meaning, option.key
        row = rf"^\| `(?:\w+\.)?{re.escape(option.key)}` \| .* \| .+ \|$"
        assert re.search(row, GENERATED[page], re.M), option.key


@pytest.mark.parametrize("group", ["drafter", "verifier"])
def test_every_key_that_a_yaml_has_is_read(group):
    """The reader parses lines; YAML's own parser says which keys there are."""
    for path in sorted((CONF / group).glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = {option.key.partition(".")[0] for option in plugin(group, path.stem).options}
        assert keys == set(values) - {"_target_"}, path


def test_every_option_of_every_group_is_on_its_page():
    for group in GROUPS:
        for path in sorted((CONF / group).glob("*.yaml")):
            assert f"### {group}={path.stem}\n" in GENERATED["reference/groups.md"]
            assert read_yaml(path).text, path


# ---------------------------------------------------------------------------------------- pages


def listed(nav: Any) -> list[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in listed(part)]


def test_every_page_is_in_the_navigation():
    written = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    named = listed(SITE["nav"])
    assert len(named) == len(set(named))
    assert set(named) == written | set(GENERATED)
    assert not written & set(GENERATED)


def test_every_public_name_is_in_the_reference():
    pages = PAGES["docs/reference/api.md"] + PAGES["docs/reference/contracts.md"]
    shown = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)$", pages, re.M)}
    assert set(specdec.__all__) - {"__version__"} <= shown


@pytest.mark.parametrize("function", [specdec.generate, specdec.stream])
def test_every_argument_is_in_the_table(function):
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.*) \|$", PAGES["docs/reference/api.md"], re.M)
    named = [
        name
        for names, meaning in rows
        for name in re.findall(r"\w+", names)
        if function is specdec.generate or not meaning.endswith("of `generate` alone")
    ]
    assert named == list(inspect.signature(function).parameters)


def test_links_of_generated_pages_lead_somewhere():
    for page, text in GENERATED.items():
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
            path = (DOCS / page).parent.joinpath(link).resolve()
            assert path.exists() or path.relative_to(DOCS).as_posix() in GENERATED, (page, link)


def test_the_site_fetches_nothing():
    assert SITE["theme"]["font"] is False
    for page in (DOCS / "_site").glob("*.css"):
        assert "http" not in page.read_text(encoding="utf-8")


def test_trees_are_drawn():
    found = [block for text in PAGES.values() for block in FENCE.findall(text)]
    assert found
    for block in found:
        caption, root = parse(block)
        assert caption
        figure = drawn(block)
        assert figure.count("<rect") == len(nodes(root))
        assert "\n\n" not in figure  # Markdown ends an HTML block there


@pytest.mark.parametrize("block", ["", "a\nb\n", "a\n   b\n", "a\n    b\n", "  a\n"])
def test_what_is_no_tree_is_refused(block):
    with pytest.raises(ValueError, match="tree"):
        parse(block)


def test_comments_and_docstrings_are_read(tmp_path: Path):
    (tmp_path / "one.yaml").write_text(
        "# What it does.\n# python -m experiments.run a=1 \\\n#   b=2\n"
        "key: 3   # meaning\nnested:\n  inner: [1, 2]  # of it\nwhole:  # all\n  x: 1\n"
    )
    one = read_yaml(tmp_path / "one.yaml")
    assert one.text == "What it does."
    assert one.commands == ("python -m experiments.run a=1 b=2",)
    assert [(o.key, o.default, o.meaning) for o in one.options] == [
        ("key", "3", "meaning"),
        ("nested.inner", "[1, 2]", "of it"),
        ("whole", "{x: 1}", "all"),
    ]
