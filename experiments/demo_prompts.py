"""The demo prompts: beginnings cut from modules of the standard library that training has held out.

`python -m experiments.demo_prompts` writes specdec/demo/prompts.jsonl: eight prompts of each kind,
code, docstring prose, tables of data and tests. The file is shipped because interpreters differ;
the same interpreter writes the same file.

A prompt begins at the start of a statement. It ends inside its passage, on the last character of a
line or of a word, because a tokenizer that joins a blank to the following word would encode a
trailing blank differently.
"""

import ast
import json
import platform
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from zlib import crc32

from omegaconf import OmegaConf

from experiments.system.files import write_text
from experiments.terminal.options import start
from experiments.training.documents import Document, documents

ROOT = Path(__file__).parent.parent
PROMPTS = ROOT / "specdec" / "demo" / "prompts.jsonl"
PER_KIND = 8
SHORTEST, LONGEST = 200, 500  # characters of a prompt
Function = ast.FunctionDef | ast.AsyncFunctionDef
REST = 120  # at least this many characters of the passage come after the cut


@dataclass
class Demo:
    """python -m experiments.demo_prompts: write the bundled prompts anew. It takes no options."""


@dataclass(frozen=True)
class Passage:
    """A prompt of one kind, and its place in its module: text[start:cut]."""

    kind: str
    source: str
    start: int
    cut: int
    prompt: str

    @property
    def order(self) -> int:
        """Passages and modules are taken in the order of a hash, so nobody's taste chooses them."""
        return crc32(self.prompt.encode())

    def overlaps(self, other: "Passage") -> bool:
        return self.source == other.source and self.start < other.cut and other.start < self.cut


class Module:
    """One module: its text, its syntax tree, and the passages that it offers."""

    def __init__(self, document: Document):
        self.name, self.text = document.name, document.text
        self.lines = document.text.splitlines()
        self.tree = ast.parse(document.text)
        self.offsets = [0]
        for line in self.lines:
            self.offsets.append(self.offsets[-1] + len(line) + 1)
        self.is_test = bool(re.search(r"(^|/)(idle_)?tests?/", document.name))

    @cached_property
    def starts(self) -> list[int]:
        """Where statements of the module and definitions in classes begin, with decorators and the
        comment above."""
        found = list(self.tree.body)
        for owner in ast.walk(self.tree):
            if isinstance(owner, ast.ClassDef):
                found += [part for part in owner.body if isinstance(part, Function | ast.ClassDef)]
        offsets = set()
        for statement in found:
            line = min(
                part.lineno for part in [statement, *getattr(statement, "decorator_list", [])]
            )
            while line > 1 and self.lines[line - 2].lstrip().startswith("#"):
                line -= 1
            offsets.add(self.offsets[line - 1])
        return sorted(offsets)

    def end_of(self, line: int) -> int:
        """The offset just behind the last character of a line (lines count from 1, as in ast)."""
        return self.offsets[line] - 1

    def indent(self, offset: int) -> int:
        line = self.lines[self.text.count("\n", 0, offset)]
        return len(line) - len(line.lstrip())

    def passage(self, kind: str, begin: int, cut: int) -> Iterator[Passage]:
        """The passage that contains `begin` and is cut at `cut`, with as many whole statements
        before it as fit."""
        starts = [
            start
            for start in self.starts
            if start <= begin
            and SHORTEST <= cut - start <= LONGEST
            and self.indent(start) <= self.indent(begin)
        ]
        if starts:
            yield Passage(kind, self.name, starts[0], cut, self.text[starts[0] : cut])

    def passages(self) -> Iterator[Passage]:
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                yield from self.inside_function(node)
            if isinstance(node, Function | ast.ClassDef | ast.Module):
                yield from self.inside_docstring(node)
            if isinstance(node, ast.Dict | ast.List | ast.Tuple):
                yield from self.inside_table(node)

    def inside_function(self, node: Function) -> Iterator[Passage]:
        """Passages cut after a few statements of a body, where another begins. The kind is `tests`
        in test modules, else `code`."""
        if node.name.startswith("test") != self.is_test:
            return
        kind = "tests" if self.is_test else "code"
        begin, end = self.offsets[node.lineno - 1], self.end_of(node.end_lineno)
        body = node.body[1:] if ast.get_docstring(node) else node.body
        inner = [
            part for statement in body for part in ast.walk(statement) if isinstance(part, ast.stmt)
        ]
        for statement in sorted(inner, key=lambda part: part.lineno)[2:]:
            line = statement.lineno - 1
            while re.fullmatch(r"\s*(#.*)?", self.lines[line - 1]):
                line -= 1
            cut = self.end_of(line)
            if end - cut >= REST and cut - begin >= SHORTEST / 2:
                yield from self.passage(kind, begin, cut)

    def inside_docstring(self, node: Function | ast.ClassDef | ast.Module) -> Iterator[Passage]:
        """Passages cut within a line, in the middle of a paragraph of prose."""
        if not ast.get_docstring(node):
            return
        string = node.body[0]
        begin = self.offsets[(string if isinstance(node, ast.Module) else node).lineno - 1]
        paragraph: list[int] = []
        for line in range(string.lineno, string.end_lineno + 1):
            text = self.lines[line - 1]
            if re.fullmatch(r"\s*\"*[\w ,.;:'()-]{50,}", text):
                paragraph.append(line)
                continue
            if len(paragraph) >= 3:
                middle = paragraph[len(paragraph) // 2]
                words = [
                    match.end()
                    for match in re.finditer(r"[a-z]{3,}(?= [a-z])", self.lines[middle - 1])
                ]
                if words:
                    yield from self.passage(
                        "prose", begin, self.offsets[middle - 1] + words[len(words) // 2]
                    )
            paragraph = []

    def inside_table(self, node: ast.Dict | ast.List | ast.Tuple) -> Iterator[Passage]:
        """Passages cut in the middle of a literal with at least five lines of rows, at least half
        of whose leaves are constants."""
        rows = node.values if isinstance(node, ast.Dict) else node.elts
        lasts = sorted({row.end_lineno for row in rows} - {node.end_lineno})
        leaves = [
            isinstance(part, ast.Constant)
            for part in ast.walk(node)
            if isinstance(part, ast.Constant | ast.Name)
        ]
        if len(lasts) < 5 or sum(leaves) < len(leaves) / 2:
            return
        cut = self.end_of(lasts[len(lasts) // 2])
        yield from self.passage("table", self.offsets[node.lineno - 1], cut)


def choose(modules: list[Module]) -> list[Passage]:
    """PER_KIND passages of each kind that do not overlap, from as many different modules as
    possible. The rarest kinds choose first."""
    offered: dict[str, list[Passage]] = {kind: [] for kind in ("code", "prose", "table", "tests")}
    for module in modules:
        for passage in module.passages():
            offered[passage.kind].append(passage)
    chosen: dict[str, list[Passage]] = {kind: [] for kind in offered}
    taken: list[Passage] = []
    for kind in sorted(
        offered, key=lambda kind: len({passage.source for passage in offered[kind]})
    ):
        for _ in range(PER_KIND):
            uses = Counter(passage.source for passage in taken)
            here = Counter(passage.source for passage in chosen[kind])
            free = [
                passage
                for passage in offered[kind]
                if not any(passage.overlaps(other) for other in taken)
            ]
            if not free:
                raise ValueError(
                    f"this interpreter's held-out modules give {len(chosen[kind])} prompts of kind "
                    f"{kind!r}, not {PER_KIND}; use one that ships the whole standard library, "
                    "tests included"
                )
            best = min(
                free,
                key=lambda passage: (here[passage.source], uses[passage.source], passage.order),
            )
            chosen[kind].append(best)
            taken.append(best)
    return [
        passage
        for kind in offered
        for passage in sorted(chosen[kind], key=lambda passage: passage.source)
    ]


def parsed(document: Document) -> list[Module]:
    """The module, or nothing if the text is not valid Python for this version."""
    try:
        return [Module(document)]
    except SyntaxError:
        return []


def unseen() -> list[Module]:
    """The modules that training has held out."""
    recipe = OmegaConf.load(ROOT / "conf" / "train" / "text" / "stdlib.yaml")
    found = documents(recipe.source, recipe.patterns, recipe.exclude)
    held_out = [document for document in found if document.held_out(recipe.held_out)]
    return [module for document in held_out for module in parsed(document)]


def beginnings() -> list[Passage]:
    """Passages that overlap neither the demo prompts nor one another, each kind in turn, in the
    order of a hash: for what learns from other outputs."""
    taken: dict[str, list[Passage]] = defaultdict(list)  # by module
    modules = unseen()
    for passage in choose(modules):
        taken[passage.source].append(passage)
    offered = sorted(
        (passage for module in modules for passage in module.passages()),
        key=lambda passage: passage.order,
    )
    found: dict[str, list[Passage]] = defaultdict(list)  # by kind
    for passage in offered:
        near = taken[passage.source]
        if not any(passage.overlaps(other) for other in near):
            near.append(passage)
            found[passage.kind].append(passage)
    turns = zip_longest(*found.values())
    return [passage for turn in turns for passage in turn if passage is not None]


def main(_: Demo) -> None:
    passages = choose(unseen())
    python = platform.python_version()
    lines = [
        json.dumps(
            {
                "prompt": passage.prompt,
                "category": passage.kind,
                "source": passage.source,
                "python": python,
            }
        )
        for passage in passages
    ]
    write_text(PROMPTS, "\n".join(lines) + "\n")
    print(
        f"{len(lines)} prompts from {len({passage.source for passage in passages})} modules in "
        f"{PROMPTS}"
    )


if __name__ == "__main__":
    start(main, Demo)
