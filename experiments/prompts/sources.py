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


def deepspec(
    path: str, field: str | None, category: str | None, subset: str | None = None
) -> Found:
    """DeepSpec's `eval_datasets` (2607.05147): a folder with a file of JSON lines per data set,
    of whose entries it asks the first of the `turns`. subset: one of the files, "gsm8k"; null: all.
    The category is the file's name."""
    place = Path(path).expanduser()
    files = sorted(place.glob("*.jsonl"))
    if subset is not None:
        files = [file for file in files if file.stem == subset]
    if not files:
        wanted = "*.jsonl" if subset is None else f"{subset}.jsonl"
        there = ", ".join(file.stem for file in sorted(place.glob("*.jsonl"))) or "none"
        raise ValueError(
            f"no {wanted} in {place}, which should be the folder eval_datasets of a copy of "
            f"DeepSpec; data sets there: {there}"
        )
    for file in files:
        for turns, _ in _lines(file, field or "turns", category, file.stem):
            yield turns[:1], file.stem


# what SPEED-Bench's files hold in place of texts that it may not hand on
NOT_FILLED_IN = "FULL BENCHMARK DATA SHOULD BE FETCHED"


def speed_bench(
    path: str, field: str | None, category: str | None, subset: str | None = None
) -> Found:
    """A copy of SPEED-Bench (2604.09557): parquet files or JSON lines with `turns` and `category`,
    in a folder per subset, "qualitative", "throughput_1k" ...; or one such file. Raises ValueError
    for rows whose texts have yet to be fetched from their sources."""
    place = Path(path).expanduser()
    inside = place if subset is None else place / subset
    kinds = (".parquet", *LINES)
    found = [place] if place.is_file() else sorted(inside.rglob("*"))
    files = [file for file in found if file.name.endswith(kinds)]
    if not files:
        raise ValueError(
            f"no parquet files and no JSON lines below {inside}, which should be a subset of a "
            "copy of SPEED-Bench, such as prompts.path=SPEED-Bench prompts.subset=qualitative"
        )
    for file in files:
        rows = _table(file) if file.suffix == ".parquet" else _lines(file, field, category, "all")
        for number, (turns, kind) in enumerate(rows, 1):
            if any(NOT_FILLED_IN in turn for turn in turns):
                raise ValueError(
                    f"{file}, row {number}: its text has yet to be fetched from its source; run "
                    "the prepare_data.py of NVIDIA's specdec_bench over the data set, and give "
                    "what it writes"
                )
            yield turns, kind


def _table(file: Path) -> Found:
    import pandas as pd

    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no whole parquet file: {error}") from None
    for number, entry in enumerate(frame.to_dict("records"), 1):
        plain = {
            key: list(value) if hasattr(value, "__len__") and not isinstance(value, str) else value
            for key, value in entry.items()
        }
        where = f"{file}, row {number}"
        yield turns_of(plain, None, where), category_of(plain, "category")


SOURCES: dict[str, Callable[..., Found]] = {
    "jsonl": lines,
    "text": paragraphs,
    "folder": folder,
    "datasets": data_set,
    "deepspec": deepspec,
    "speed_bench": speed_bench,
}
OWN = {  # keys that not all sources take
    "datasets": ("subset", "split"),
    "deepspec": ("subset",),
    "speed_bench": ("subset",),
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
