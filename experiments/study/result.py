"""What a run leaves: a result, or why there is none. With outcome.py the one place that says what
result.json and failed.json hold."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from experiments.certificates.law import Law as Law
from experiments.study.outcome import STRICT, Outcome
from experiments.study.schema import Settings
from experiments.system.files import read_json, write_json
from experiments.system.surroundings import Surroundings

SCHEMA_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which run of which study this is."""

    study: str
    run: str
    overrides: list[str]
    choices: dict[str, str | None]  # the option of each group of the configuration


@dataclass(frozen=True, kw_only=True)
class Failure(Identity):
    """failed.json."""

    error: str
    traceback: str


@dataclass(frozen=True, kw_only=True)
class Record(Identity, Surroundings):
    """What any result.json begins with."""

    __pydantic_config__: ClassVar[Any] = STRICT
    schema_version: int = SCHEMA_VERSION
    config: Settings  # as it was given


@dataclass(frozen=True, kw_only=True)
class NotApplicable(Record):
    """The drafter and the rule do not go together."""

    status: Literal["not_applicable"] = "not_applicable"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A prompt that does not fit the target's context."""

    prompt: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Result(Record, Outcome):
    """A run that was measured."""

    status: Literal["ok"] = "ok"
    effective: Settings  # the values that the run had, where `config` left them open
    certificate: Law
    skipped: list[Skipped]


def write(path: Path, record: Record | Failure) -> None:
    write_json(path, asdict(record))


def read(path: Path) -> Result | NotApplicable:
    """A result.json. Raises ValueError, with the file's name, for one that is broken or of another
    schema version."""
    return from_json(read_json(path), str(path))


def from_json(content: Any, where: str) -> Result | NotApplicable:
    from pydantic import ValidationError

    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if isinstance(content, Mapping) and content.get("kind") == "load":
        raise ValueError(
            f"{where} is of a load study; draw its page with python -m experiments.report "
            f"study={content.get('study')}"
        )
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{where} has schema version {version} and this code reads {SCHEMA_VERSION}: run it "
            "again, or read it with the version of the code that wrote it (its git commit is in "
            "the file)"
        )
    kind = NotApplicable if content.get("status") == "not_applicable" else Result
    try:
        return _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{where} is no result: {place}: {first['msg']} ({error.error_count()} such errors)"
        ) from None


@cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
