"""Every option with its default and its meaning, read from conf/, from the programs' dataclasses
and from the docstrings of plug-ins. Nothing is imported: files are parsed.

A meaning is, in this order: the line of the docstring that begins with the option's name, the
comment beside the option, the same key of a YAML beside it, or `COMMON`.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from specdec.registry import CONF

ROOT = Path(__file__).resolve().parent.parent.parent
SHAPE = ROOT / "specdec/drafting/shape.py"

ENTRY = re.compile(r"^(\w+(?:, \w+)*)(?: {2,})(\S.*)$")
PAIR = re.compile(r"^( *)([\w.]+):(?: +(.*?))??(?:\s+#\s*(.*))?$")

COMMON = {  # what programs share
    "exclude": "patterns of files that are left out",
    "source": "where the text comes from",
    "drafter": "the drafter, a group",
    "greedy": "of the greedy check",
    "target": "the target: a bundled name, a local folder or a hub id",
    "draft": "the draft model, likewise",
    "dtype": "that models are loaded in; null: the checkpoint's",
    "device": "cpu, cuda, cuda:1 ...; null: CUDA if there is one",
    "max_new_tokens": "tokens that each prompt may add",
    "temperature": "of sampling; 0 is greedy",
    "temperatures": "the temperatures that are measured",
    "top_k": "sample from the k most probable tokens; null: from all",
    "top_p": "sample from the smallest set of tokens with this probability; null: from all",
    "prompts": "how many prompts",
    "limit": "at most so many prompts",
    "repeats": "how often everything is repeated",
    "seed": "of all random draws",
    "threads": "of torch; null: as many as make the target's passes fastest",
    "progress": "show a progress bar",
    "output": "the folder or file that is written",
    "folder": "the folder that is written",
    "sweep": "latest | all | the name of a sweep's folder",
    "allow_lossy": "permit rules that do not keep the target's law",
    "verifier": "the rule; `auto` takes the strongest lossless one",
}


@dataclass(frozen=True)
class Option:
    key: str
    default: str  # as YAML has it
    meaning: str
    note: str = ""  # on the default


@dataclass(frozen=True)
class Described:
    """A YAML of conf/: what its head says, and its keys."""

    name: str
    text: str
    commands: tuple[str, ...]
    options: tuple[Option, ...]
    values: Mapping[str, Any]


# ---------------------------------------------------------------------------------------- YAML


def plain(value: Any) -> str:
    """A value as one writes it on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | dict):
        text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
        return text.strip()
    return str(value)


def read_yaml(path: Path) -> Described:
    """A YAML with its comments. Keys of mappings over several lines are joined by dots."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = [line for line in lines[: _first_key(lines)] if line.startswith("#")]
    said = [line[1:].removeprefix(" ") for line in head if "@package" not in line]
    commands, sentences = _commands(said)
    values = yaml.safe_load(text) or {}
    options, path_to = list[Option](), list[tuple[int, str]]()
    for line in lines[_first_key(lines) :]:
        found = PAIR.match(line)
        if not found:
            continue
        indent, key, shown, comment = len(found[1]), found[2], found[3], found[4]
        path_to = [*(each for each in path_to if each[0] < indent), (indent, key)]
        keys = [name for _, name in path_to]
        if keys[0] in ("defaults", "hydra") or key == "_target_":
            continue
        if not shown and not comment and isinstance(_value(values, keys), dict):
            continue  # its keys follow, each with its own line
        whole = _value(values, keys)
        default = "" if isinstance(whole, dict) and not shown else plain(whole)
        options.append(Option(".".join(keys), default, comment or ""))
    options = _without_children(options, values)
    return Described(path.stem, " ".join(sentences), tuple(commands), tuple(options), values)


def _without_children(options: list[Option], values: Any) -> list[Option]:
    """A mapping whose comment speaks for all its keys is one option."""
    said = {option.key for option in options if option.meaning}
    kept = [
        option for option in options if option.meaning or option.key.rpartition(".")[0] not in said
    ]
    return [
        option
        if option.default or any(other.key.startswith(f"{option.key}.") for other in kept)
        else replace(option, default=plain(_value(values, option.key.split("."))))
        for option in kept
    ]


def _first_key(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if line and line[0] != "#"), len(lines))


def _value(values: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _commands(said: list[str]) -> tuple[list[str], list[str]]:
    """Lines of a head that are commands, joined where they go on, and the others."""
    commands, sentences, open_command = list[str](), list[str](), False
    for line in said:
        if open_command or line.strip().startswith("python -m "):
            text = line.strip().removesuffix("\\").strip()
            commands += [] if open_command else [""]
            commands[-1] = f"{commands[-1]} {text}".strip()
            open_command = line.rstrip().endswith("\\")
        else:
            sentences.append(line.strip())
    return commands, sentences


# -------------------------------------------------------------------------------------- Python


def entries(docstring: str) -> dict[str, str]:
    """Lines of the form `name  meaning`, as docstrings list arguments; further lines are indented.
    A meaning that is itself such a list keeps its lines."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in docstring.splitlines():
        if entry := ENTRY.match(line):
            names = entry[1].split(", ")
            found.update({name: [entry[2].strip()] for name in names})
        elif names and line.startswith("  "):
            for name in names:
                found[name].append(line.strip())
        else:
            names = []
    return {name: _joined(lines) for name, lines in found.items()}


def _joined(lines: list[str]) -> str:
    if not ENTRY.match(lines[0]):
        return " ".join(lines)
    parts: list[str] = []
    for line in lines:
        if inner := ENTRY.match(line):
            parts.append(f"`{inner[1]}`: {inner[2]}")
        else:
            parts[-1] += f" {line}"
    return "; ".join(parts)


def classes(path: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def module_docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def comments(text: str) -> dict[int, str]:
    """The comment of each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def comment_of(first: int, last: int, noted: Mapping[int, str], lines: list[str]) -> str:
    """The comments of the field on these lines: within it, and right above it."""
    while lines[first - 2].strip().startswith("#"):
        first -= 1
    return " ".join(noted[line] for line in range(first, last + 1) if line in noted)


def fields(path: Path, name: str) -> list[Option]:
    """The fields of a dataclass, those of its bases in the same package first."""
    text = path.read_text(encoding="utf-8")
    lines, noted, node = text.splitlines(), comments(text), classes(path)[name]
    found: dict[str, Option] = {}
    for base in node.bases:
        inherited = ast.unparse(base)
        for place in (path, *sorted((ROOT / "experiments").glob("*/options.py"))):
            if inherited in classes(place):
                found |= {option.key: option for option in fields(place, inherited)}
                break
    for part in node.body:
        if not isinstance(part, ast.AnnAssign) or not isinstance(part.target, ast.Name):
            continue
        key, meaning = (
            part.target.id,
            comment_of(part.lineno, part.end_lineno or part.lineno, noted, lines),
        )
        if key in found and not meaning:
            meaning = found[key].meaning
        found[key] = Option(key, _default(part.value), meaning)
    return list(found.values())


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    text = ast.unparse(value)
    if text == "MISSING":
        return "required"
    if text.startswith("field(default_factory="):
        inner = text.removeprefix("field(default_factory=").removesuffix(")")
        inner = inner.removeprefix("lambda: ")
        text = {"list": "[]"}.get(inner, inner)
        if text[0].isupper():
            return ""  # a group of options
    try:
        return plain(ast.literal_eval(text))
    except ValueError:
        return text


# ------------------------------------------------------------------------------------- meanings


def filled(options: Iterable[Option], *sources: Mapping[str, str]) -> list[Option]:
    """Options without a meaning take it from the first source that has one."""
    return [
        option
        if option.meaning
        else replace(option, meaning=next((s[option.key] for s in sources if option.key in s), ""))
        for option in options
    ]


def plugin_file(described: Described) -> Path | None:
    """The file of the class that a YAML names; None for `auto`, which names none."""
    target = described.values.get("_target_")
    return ROOT / (str(target).rpartition(".")[0].replace(".", "/") + ".py") if target else None


def plugin(group: str, name: str) -> Described:
    """A drafter or a verifier. What its docstring says of a key is the meaning; a comment beside
    the key then says what the default means."""
    found = read_yaml(CONF / group / f"{name}.yaml")
    path = plugin_file(found)
    if path is None:
        return found
    node = classes(path)[str(found.values["_target_"]).rpartition(".")[2]]
    own = entries(ast.get_docstring(node) or "")
    shape = entries(ast.get_docstring(classes(SHAPE)["Shape"]) or "")
    options = []
    for option in found.options:
        meaning = own.get(option.key, "")
        if not meaning and option.key in shape and group == "drafter":
            meaning = shape[option.key]
        if meaning:
            repeats = option.meaning in meaning or option.meaning.startswith("of ")
            note = "" if repeats else option.meaning
            option = replace(option, meaning=meaning, note=note)
        options.append(option)
    return replace(found, options=tuple(options))


def beside(folder: Path) -> list[Described]:
    """The YAMLs of a folder; a key without a comment means what it means in another of them."""
    found = [read_yaml(path) for path in sorted(folder.glob("*.yaml"))]
    said = {option.key: option.meaning for one in found for option in one.options if option.meaning}
    return [replace(one, options=tuple(filled(one.options, said))) for one in found]


@dataclass(frozen=True)
class Program:
    """A program that takes key=value."""

    name: str  # experiments.doctor
    text: str  # its docstring
    options: tuple[Option, ...]


def programs() -> list[Program]:
    """Every program of experiments/ with options of its own."""
    found = []
    folder = ROOT / "experiments"
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/*.py")]):
        for name, node in classes(path).items():
            says = ast.get_docstring(node) or ""
            if not says.startswith("python -m experiments."):
                continue
            called, text = says.split()[2].rstrip(":"), module_docstring(path)
            options = filled(fields(path, name), entries(text), COMMON)
            found.append(Program(called, text, tuple(options)))
    return found
