"""What `--help` prints: every key with its default and its meaning."""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from inspect import getsourcefile
from pathlib import Path
from typing import Any, get_type_hints

from experiments.terminal.meanings import (
    COMMON,
    PAIR,
    Option,
    beside,
    entries,
    fields,
    filled,
    module_docstring,
    plain,
    plugin,
    read_yaml,
)
from specdec.registry import CONF

WIDTH = 100
KEYS = "== Config =="  # Hydra's heading of what it prints in YAML


def options_of(schema: type) -> list[Option]:
    """The fields of a dataclass, with meanings."""
    path = Path(str(getsourcefile(schema)))
    return filled(fields(path, schema.__name__), entries(module_docstring(path)), COMMON)


def listed(options: Iterable[Option], defaults: Mapping[str, Any]) -> str:
    """Keys of a small program, a line or more each. defaults: of the keys that there
    are, "..." for one that must be given."""
    meanings = {option.key: option.meaning for option in options}
    lines = ["options, as key=value:"]
    for key, default in defaults.items():
        head = f"  {key}={default if default == '...' else plain(default)}"
        text = meanings.get(key, "")
        gap = "  " if len(head) > 34 else " " * (36 - len(head))
        lines += textwrap.wrap(f"{head}{gap}{text}", WIDTH, subsequent_indent=" " * 38)
    return "\n".join(lines)


# ------------------------------------------------------------------------------- of configurations


def meanings_of(schema: type, prefix: str = "") -> dict[str, str]:
    """Keys, joined by dots, of a dataclass and of those that are its fields."""
    found = {f"{prefix}{option.key}": option.meaning for option in options_of(schema)}
    for key, kind in get_type_hints(schema).items():
        if isinstance(kind, type) and is_dataclass(kind):
            found.pop(f"{prefix}{key}")  # its keys follow
            found |= meanings_of(kind, f"{prefix}{key}.")
    return found


def meanings_of_training() -> dict[str, str]:
    """Keys of conf/train, whose meanings are comments."""
    found = {one.key: one.meaning for one in filled(read_yaml(CONF / "train/train.yaml").options)}
    for group in ("drafter", "text"):
        for one in beside(CONF / "train" / group):
            for option in filled(one.options, COMMON):
                found.setdefault(f"{group}.{option.key}", option.meaning)
    return found


def of_plugins(text: str) -> dict[str, str]:
    """Keys of the drafter and the verifier that the printed configuration has."""
    found: dict[str, str] = {}
    for group in ("drafter", "verifier"):
        for path in (CONF / group).glob("*.yaml"):
            one = plugin(group, path.stem)
            target = one.values.get("_target_")
            if target is None or f"  _target_: {target}\n" in text:
                for option in one.options:
                    found.setdefault(f"{group}.{option.key}", option.meaning)
    return found


def annotated(text: str, meanings: Mapping[str, str]) -> str:
    """The same help, each key of the configuration with its meaning as a comment: behind it, or
    above it where the line would be long."""
    if KEYS not in text:
        return text
    head, heading, body = text.partition(KEYS)
    lines, path_to = list[str](), list[tuple[int, str]]()
    for line in body.splitlines():
        if pair := PAIR.match(line):
            indent = len(pair[1])
            path_to = [*(each for each in path_to if each[0] < indent), (indent, pair[2])]
            meaning = meanings.get(".".join(key for _, key in path_to), "")
            if meaning and len(line) + len(meaning) + 4 > WIDTH:
                start = f"{pair[1]}# "
                lines += textwrap.wrap(
                    meaning, WIDTH, initial_indent=start, subsequent_indent=start
                )
            elif meaning:
                line = f"{line}  # {meaning}"
        lines.append(line)
    return head + heading + "\n".join(lines) + "\n"


def explained(text: str, schema: type | None) -> str:
    """The help of a program that takes a Hydra configuration. schema: its dataclass; None: its
    configuration is conf/train."""
    own: dict[str, Any] = meanings_of_training() if schema is None else meanings_of(schema)
    return annotated(text, of_plugins(text) | own)
