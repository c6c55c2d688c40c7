"""Where prompts come from: each source yields (turns, category), and names the place of what it
cannot read."""

import gzip
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import specdec
from experiments.prompts.entry import category_of, turns_of

BUNDLED = Path(specdec.__file__).parent / "demo" / "prompts.jsonl"
LINES = (".jsonl", ".jsonl.gz")
INSTALL = 'pip install "specdec[datasets]"'

Found = Iterator[tuple[list[str], str]]


def paragraphs(path: str, field: str | None, category: str | None) -> Found:
    """A file of texts with blank lines between them."""
    place = _file(path)
    parts = (part.strip("\n") for part in text_of(place).split("\n\n"))
    return (([part], "text") for part in filter(None, parts))


def lines(path: str, field: str | None, category: str | None) -> Found:
    """A file of JSON objects or texts: one a line, or the whole file a list of them."""
    return _lines(BUNDLED if path == "demo" else _file(path), field, category, "all")


def folder(path: str, field: str | None, category: str | None) -> Found:
    """Every file below a folder, in the order of their names: the lines of JSON-lines files, and
    other files as one text each. Without a category of its own an entry has that of its subfolder
    or, for JSON lines, of its file."""
    place = Path(path).expanduser()
    if not place.is_dir():
        raise ValueError(f"no folder of prompts at {place}")
    for file in sorted(path for path in place.rglob("*") if path.is_file()):
        inside = file.relative_to(place)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if file.name.endswith(LINES):
            yield from _lines(file, field, category, file.name.partition(".")[0])
        elif text := text_of(file).strip("\n"):
            yield [text], inside.parts[0] if len(inside.parts) > 1 else "text"


def data_set(
    path: str, field: str | None, category: str | None, subset: str | None, split: str | None
) -> Found:
    """A data set of the Hugging Face hub, or a folder that `datasets` reads."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"prompts.format=datasets needs the package `datasets`: {INSTALL}"
        ) from None
    try:
        rows = datasets.load_dataset(path, subset, split=split or "test")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"datasets cannot load {path!r} (subset {subset}, split {split or 'test'}): {error}"
        ) from None
    for number, entry in enumerate(rows):
        yield turns_of(entry, field, f"{path}, row {number}"), category_of(entry, category)


SOURCES: dict[str, Callable[..., Found]] = {
    "jsonl": lines,
    "text": paragraphs,
    "folder": folder,
    "datasets": data_set,
}


def _lines(place: Path, field: str | None, category: str | None, otherwise: str) -> Found:
    content = _bytes(place)
    for entry, where in _list(content, place) or _each_line(content, place):
        yield turns_of(entry, field, where), category_of(entry, category, otherwise)


def _each_line(content: bytes, place: Path) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(
        content.split(b"\n"), 1
    ):  # JSON may hold the other line ends of Unicode
        if line.strip():
            yield _json(line, f"{place}, line {number}"), f"{place}, line {number}"


def _list(content: bytes, place: Path) -> list[tuple[Any, str]] | None:
    """The entries of a file that is one JSON list; None where it is none."""
    if not content.removeprefix(BOM_UTF8).lstrip().startswith(b"["):
        return None
    try:
        entries = json.loads(content.decode("utf-8-sig"))
    except ValueError:
        return None
    return [(entry, f"{place}, entry {number}") for number, entry in enumerate(entries, 1)]


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None


def _file(path: str) -> Path:
    place = Path(path).expanduser()
    if place.is_dir():
        raise ValueError(f"{place} is a folder, expected a file; for a folder use prompts=folder")
    if not place.is_file():
        raise ValueError(f"no file of prompts at {place}")
    return place


def _bytes(place: Path) -> bytes:
    if place.suffix != ".gz":
        return place.read_bytes()
    try:
        return gzip.decompress(place.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{place} is no whole gzip file: {error}") from None


def text_of(place: Path) -> str:
    """The text of a file. Raises ValueError for one that is not UTF-8."""
    content = _bytes(place)
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{place}, line {number}: not UTF-8 ({error})") from None
