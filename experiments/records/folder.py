"""The files of a record.

FOLDER/NAME/record.json          what was recorded, and how; `complete` once all of it is there
            texts-00000.parquet  a row per text of the batch
            trees-00000.parquet  a row per node of its trees
            laws-00000.safetensors  p and q at nodes with children; none at temperature 0

A batch's files are written whole, trees last: a batch with trees is there. After a kill the same
command goes on behind the last such batch.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.system.files import drafts, read_json, write_json, written

SCHEMA_VERSION = 1
RECORD = "record.json"
KIND = "drafted trees"
RECORD_ONE = "record with `python -m experiments.record output=FOLDER`"
TEXTS = ("prompt", "turn", "category", "given", "tokens")
TREES = {
    "tree": np.int32,  # number within the file
    "text": np.int32,  # row in the texts
    "position": np.int32,  # output tokens before the round
    "node": np.int16,
    "parent": np.int16,
    "depth": np.int16,
    "rank": np.int16,
    "token": np.int32,
    "p": np.float32,
    "q": np.float32,
    "value": np.float32,
    "law": np.int32,
}
LAWS = ("law_tokens", "law_p", "law_q", "rest_p", "rest_q")


class Text(NamedTuple):
    prompt: int
    turn: int
    category: str
    given: list[int]
    tokens: list[int]


@dataclass(frozen=True)
class Batch:
    """What one batch of prompts left: its texts, the columns of its nodes, its laws by name."""

    texts: Sequence[Text]
    nodes: Mapping[str, np.ndarray]
    laws: Mapping[str, np.ndarray]

    @property
    def trees(self) -> int:
        return int(self.nodes["tree"][-1]) + 1 if len(self.nodes["tree"]) else 0


class Files(NamedTuple):
    texts: Path
    trees: Path
    laws: Path


def files_of(folder: Path, number: int) -> Files:
    return Files(
        folder / f"texts-{number:05}.parquet",
        folder / f"trees-{number:05}.parquet",
        folder / f"laws-{number:05}.safetensors",
    )


# ---------------------------------------------------------------------------------------- writing


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Take a folder for a record of these settings: an empty one, or one that holds a part of the
    same record. Raises ValueError for any other."""
    place = folder / RECORD
    if place.exists():
        before = read_settings(folder, whole=False)
        if before["complete"]:
            raise ValueError(
                f"{folder} holds a whole record already; give another output, or another name, or "
                "delete it"
            )
        differing = sorted(
            key for key in settings if before["settings"].get(key) != _as_read(settings[key])
        )
        if differing:
            key = differing[0]
            raise ValueError(
                f"{folder} holds a part of another record: its {key} is "
                f"{before['settings'].get(key)!r}, this command's {settings[key]!r}. Repeat the "
                "command that began it, give another output or name, or delete the folder"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} is no empty folder and no record; give output=FOLDER a new or empty one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    head = {"schema_version": SCHEMA_VERSION, "kind": KIND, "complete": False}
    write_json(place, {**head, "settings": dict(settings)})


def _as_read(value: Any) -> Any:
    """A value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _as_read(each) for key, each in value.items()}
    return [_as_read(each) for each in value] if isinstance(value, list | tuple) else value


def finish(folder: Path, facts: Mapping[str, Any]) -> None:
    """All batches are there."""
    content = read_json(folder / RECORD)
    write_json(folder / RECORD, {**content, **facts, "complete": True})


def write(folder: Path, number: int, batch: Batch) -> None:
    import pyarrow as pa
    from pyarrow import parquet
    from safetensors.numpy import save_file

    files = files_of(folder, number)
    for each in files:
        for left in drafts(each):
            left.unlink(missing_ok=True)
    columns = {name: [getattr(text, name) for text in batch.texts] for name in TEXTS}
    if batch.laws:
        with written(files.laws) as draft:
            save_file(dict(batch.laws), draft, {"schema_version": str(SCHEMA_VERSION)})
    with written(files.texts) as draft:
        parquet.write_table(pa.table(columns), draft)
    with written(files.trees) as draft:
        parquet.write_table(pa.table(dict(batch.nodes)), draft, compression="zstd")


def check_space(folder: Path, size: int) -> None:
    """Raise ValueError where the disk has less room than a record may take."""
    here = next(each for each in (folder, *folder.resolve().parents) if each.exists())
    free = shutil.disk_usage(here).free
    if size > free:
        raise ValueError(
            f"the record may take {readable(size)}, and {here} has {readable(free)} free; give "
            "another output, fewer prompts, a larger `every`, a smaller `top` or smaller trees"
        )


def readable(size: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


# ---------------------------------------------------------------------------------------- reading


def is_record(folder: Path) -> bool:
    return bool(records_in(folder))


def records_in(folder: Path) -> list[Path]:
    """The folder itself, or those of its own folders that hold a record."""
    if (folder / RECORD).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{RECORD}")) if folder.is_dir() else []


def find(place: str, name: str | None) -> Path:
    """The record of one drafter. Raises ValueError where there is none, or more than one."""
    folder = Path(place).expanduser()
    found = records_in(folder)
    if not found:
        what = "holds no record of trees" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}; {RECORD_ONE}")
    named = [path for path in found if name in (None, path.name)]
    names = ", ".join(path.name for path in found)
    if not named:
        raise ValueError(f"{folder} has no record named {name!r}; there are: {names}")
    if len(named) > 1:
        raise ValueError(f"{folder} holds several records ({names}); choose one: drafter.name=NAME")
    return named[0]


def read_settings(folder: Path, whole: bool = True) -> dict[str, Any]:
    """record.json. Raises ValueError for another kind or version and, if `whole`, for a record that
    is not complete."""
    place = folder / RECORD
    content = read_json(place)
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{place} is no record of {KIND}; {RECORD_ONE}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{place} has schema version {version} and this code reads {SCHEMA_VERSION}: record "
            "again, or replay with the version of the code that recorded"
        )
    if whole and not content.get("complete"):
        raise ValueError(
            f"{folder} is half written: its recording was stopped. The command that began it goes "
            "on where it stopped"
        )
    return content


def read(folder: Path, number: int) -> Batch:
    """One batch. Raises ValueError for files that are missing or broken."""
    import pyarrow as pa
    from pyarrow import parquet
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    files = files_of(folder, number)
    try:
        texts = parquet.read_table(files.texts)
        table = parquet.read_table(files.trees)
        laws = load_file(files.laws) if files.laws.exists() else {}
        rows = zip(*(texts[name].to_pylist() for name in TEXTS), strict=True)
        nodes = {name: table[name].to_numpy() for name in TREES}
    except (OSError, KeyError, pa.ArrowInvalid, SafetensorError) as error:
        raise ValueError(
            f"batch {number} of {folder} cannot be read ({error}); copy the record again, or "
            "record again"
        ) from None
    used = int(nodes["law"].max(initial=-1)) + 1
    if set(laws) not in ({*LAWS}, set()) or (used and (not laws or len(laws["law_p"]) != used)):
        raise ValueError(
            f"{files.laws} does not fit {files.trees.name}: {used} laws are wanted; copy the "
            "record again, or record again"
        )
    return Batch([Text(*row) for row in rows], nodes, laws)


def batches(folder: Path, count: int) -> Iterator[Batch]:
    for number in range(count):
        yield read(folder, number)
