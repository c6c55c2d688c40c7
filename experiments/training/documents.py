"""Texts to train on: the standard library's source, a folder, one text file, or JSON lines.

Source code is cleaned, other texts are taken as they are. What is left out is counted and told.
"""

import gzip
import json
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(stderr=True)

CODE = (".c", ".cc", ".cpp", ".cs", ".cu", ".go", ".h", ".hpp", ".java", ".js", ".jsx", ".kt")
CODE += (".php", ".py", ".pyi", ".rb", ".rs", ".ts", ".tsx")
LONGEST_LINE = 200  # characters; longer lines of source code are mostly generated
PIECE = 4000  # characters of a piece of a file that is the only one


@dataclass(frozen=True)
class Document:
    """One text with the name that decides on which side of the split it falls."""

    name: str
    text: str

    def held_out(self, share: float) -> bool:
        return zlib.crc32(self.name.encode()) % 10_000 < share * 10_000


def documents(
    source: str,
    patterns: Iterable[str] = ("*.py",),
    exclude: Iterable[str] = (),
    field: str | Sequence[str] = "text",
) -> list[Document]:
    """The documents of `source`: "stdlib", a folder, one text file, or a file of JSON lines.

    patterns and exclude are for folders: names of files, and paths below the folder. field is for
    JSON lines: where the text is, as a string or a list of strings; several fields are joined by
    line ends. A file that is the only one is cut at empty lines, so that a part can be held out.

    Source code loses lines of more than 200 characters, and files that are more than a tenth
    non-ASCII are left out. So are files that are not UTF-8, and empty texts. Raises ValueError if
    nothing is left, and for JSON lines without the field.
    """
    found, left_out = [], Counter[str]()
    fields = [field] if isinstance(field, str) else list(field)
    for document in _all_of(source, list(patterns), list(exclude), fields, left_out):
        if document.text.strip():
            found.append(document)
        else:
            left_out["empty texts"] += 1
    told = ", ".join(f"{count:,} {what}" for what, count in left_out.items()) or "nothing"
    if not found:
        raise ValueError(f"no text to train on in {source}; left out: {told}")
    console.print(f"text: {len(found):,} documents of {source}; left out: {told}")
    return found


def _all_of(
    source: str, patterns: list[str], exclude: list[str], fields: list[str], left_out: Counter[str]
) -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib")) if source == "stdlib" else Path(source).expanduser()
    if root.is_file():
        whole = list(_from_file(root, root.name, fields, left_out))
        if len(whole) == 1 and not _is_json_lines(root):
            parts = enumerate(pieces(whole[0].text), 1)
            whole = [Document(f"{root.name}:{number}", part) for number, part in parts]
        yield from whole
        return
    if not root.exists():
        kinds = "'stdlib', a folder, a text file or a file of JSON lines"
        raise ValueError(f"text source {source!r} does not exist; give {kinds}")
    if source == "stdlib":
        exclude = [*exclude, "site-packages/*"]
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        wanted = any(fnmatch(path.name, pattern) for pattern in patterns)
        if wanted and not any(fnmatch(name, pattern) for pattern in exclude):
            yield from _from_file(path, name, fields, left_out)
        elif source != "stdlib":
            left_out["files of other names"] += 1


def _from_file(
    path: Path, name: str, fields: list[str], left_out: Counter[str]
) -> Iterator[Document]:
    try:
        packed = path.suffix == ".gz"
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        left_out["files that are not UTF-8"] += 1
        return
    except (OSError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if _is_json_lines(path):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield Document(f"{name}:{number}", _text_of(line, fields, f"{path}:{number}"))
    elif path.suffix not in CODE:
        yield Document(name, text)
    elif sum(character > "\x7f" for character in text) > len(text) / 10:
        left_out["source files that are for more than a tenth not ASCII"] += 1
    else:
        overlong = sum(len(line) > LONGEST_LINE for line in _lines(text))
        if overlong:
            left_out[f"lines of source code over {LONGEST_LINE} characters"] += overlong
        yield Document(name, clean(text))


def _is_json_lines(path: Path) -> bool:
    return ".jsonl" in path.suffixes


def _text_of(line: str, fields: list[str], where: str) -> str:
    """What one of the JSON lines holds in these fields."""
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    found: list[str] = []
    for key in fields:
        held = entry.get(key)
        parts = [held] if isinstance(held, str) else held
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError(
                f"{where}: no text in the field {key!r} (there are: {', '.join(entry)}); name the "
                "field that holds it: text.field=NAME, or text.field=[NAME,NAME]"
            )
        found += parts
    return "\n".join(found)


def _lines(text: str) -> list[str]:
    """Of source code: tabs are spaces, and nothing trails."""
    return [line.rstrip() for line in text.expandtabs(4).splitlines()]


def clean(text: str) -> str:
    """Source code with spaces for tabs, no trailing blanks, no overlong lines, and at most two
    empty lines in a row."""
    kept = "\n".join(line for line in _lines(text) if len(line) <= LONGEST_LINE)
    return re.sub(r"\n{4,}", "\n\n\n", kept).strip("\n") + "\n"


def pieces(text: str, least: int = PIECE) -> list[str]:
    """The text, cut after the first empty line past `least` characters of a piece, or where there
    is none after the first line past twice as many. Joined they are the text again."""
    found, piece, size = [], [], 0
    for line in re.findall(r"[^\n]*\n|[^\n]+$", text):
        piece.append(line)
        size += len(line)
        if size >= 2 * least or (size >= least and line == "\n"):
            found.append("".join(piece))
            piece, size = [], 0
    return [*found, "".join(piece)] if piece else found
