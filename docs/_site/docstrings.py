"""For mkdocstrings: argument lists of docstrings become Markdown lists, and the comment beside a
field becomes its description."""

import re
from pathlib import Path
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

from experiments.terminal.meanings import ENTRY, comment_of, comments


class Comments(Extension):  # type: ignore[misc]  # mypy sees no griffe
    """Both are done when an object has been read."""

    def __init__(self) -> None:
        self._noted: dict[Path, tuple[list[str], dict[int, str]]] = {}

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if isinstance(obj, Attribute) and obj.docstring is None:
            self._describe(obj)
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)

    def _describe(self, field: Attribute) -> None:
        path = field.filepath
        if not isinstance(path, Path) or field.lineno is None:
            return
        if path not in self._noted:
            text = path.read_text(encoding="utf-8")
            self._noted[path] = text.splitlines(), comments(text)
        lines, noted = self._noted[path]
        last = field.endlineno or field.lineno
        if said := comment_of(field.lineno, last, noted, lines):
            field.docstring = Docstring(said[0].upper() + said[1:], parent=field)


def listed(text: str) -> str:
    """`name  meaning` lines as a list; other lines stay."""
    out: list[str] = []
    inside = False
    for line in text.splitlines():
        entry = ENTRY.match(line)
        if entry:
            out += [] if inside or not out or not out[-1] else [""]
            names = ", ".join(f"`{name}`" for name in entry[1].split(", "))
            out.append(f"- {names}: {re.sub(' {2,}', ' ', entry[2])}")
        elif inside and line.startswith("  "):
            out.append("  " + re.sub(" {2,}", " ", line.strip()))
        else:
            out += [""] if inside and line else []
            out.append(line)
        inside = bool(entry) or (inside and line.startswith("  "))
    return "\n".join(out)
