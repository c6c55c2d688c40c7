"""outputs.jsonl: the tokens that a run's method was given and put out, and the text of these, a
line a prompt and turn (keep_texts=true)."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from experiments.measuring.play import Played
from experiments.measuring.ways import METHOD
from experiments.study.folder import OUTPUTS
from experiments.system.files import write_text
from specdec import TransformersLM
from specdec.models.vocabulary import tokenizer_digest


@dataclass(frozen=True)
class Output:
    """Of one prompt in one turn."""

    category: str
    given: list[int]  # token ids
    tokens: list[int]
    prompt: int = 0
    turn: int = 0
    tokenizer: str | None = None  # its digest; None: ids without a tokenizer
    text: str | None = None  # of the tokens


def write_outputs(path: Path, played: Iterable[Played], target: TransformersLM) -> None:
    lines, tokenizer = [], tokenizer_digest(target)
    for one in played:
        rows = zip(one.prompts, one.given[METHOD], one.samples[METHOD].tokens, strict=True)
        for prompt, given, tokens in rows:
            entry: dict[str, Any] = {"prompt": prompt.index, "turn": one.turn}
            entry |= {"category": prompt.category, "tokenizer": tokenizer}
            entry |= {"given": list(given), "tokens": tokens}
            if target.tokenizer is not None:
                entry["text"] = target.tokenizer.decode(tokens)
            lines.append(json.dumps(entry, ensure_ascii=False))
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_outputs(place: str | Path) -> Iterator[Output]:
    """The lines of a file, or of every outputs.jsonl below a folder: a run, a sweep, a study.
    Raises ValueError, with file and line, for what is none."""
    path = Path(place).expanduser()
    files = sorted(path.rglob(OUTPUTS)) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise ValueError(f"no {OUTPUTS} at {path}; runs with keep_texts=true write it")
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                yield _adapter.validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise ValueError(
                    f"{file}, line {number}, is no output of a run: {where} {first['msg']}"
                ) from None


_adapter: TypeAdapter[Output] = TypeAdapter(Output)
