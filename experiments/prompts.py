"""Prompts from files: JSON lines or paragraphs of text; all lines are checked before anything runs."""

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import specdec

BUNDLED = Path(specdec.__file__).parent / "demo" / "prompts.jsonl"


@dataclass(frozen=True)
class Prompt:
    index: int  # its number in the file: it keys the prompt's random draws
    text: str
    category: str


def read(
    format: str,
    path: str,
    field: str = "prompt",
    category: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
) -> list[Prompt]:
    """format: "jsonl" (the text of each line in `field`, its kind in `category`) or "text" (separated by blank lines).
    limit: that many, taken in turn from each category. seed: shuffle before that.

    Raises ValueError, with file and line, for a line that is no prompt; then nothing has run.
    """
    place = BUNDLED if path == "demo" else Path(path).expanduser()
    if not place.is_file():
        raise ValueError(f"no file of prompts at {place}")
    if limit is not None and limit < 1:
        raise ValueError(f"prompts.limit must be >= 1, or null for all, got {limit}")
    text = place.read_text(encoding="utf-8")
    if format == "jsonl":
        found = [
            _from_json(index, line, field, category, f"{place}, line {number}")
            for index, (number, line) in enumerate(
                (number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()
            )
        ]
    elif format == "text":
        paragraphs = (part.strip("\n") for part in text.split("\n\n"))
        found = [Prompt(index, part, "text") for index, part in enumerate(filter(None, paragraphs))]
    else:
        raise ValueError(f"prompts.format must be 'jsonl' or 'text', got {format!r}")
    if not found:
        raise ValueError(f"{place} holds no prompts")
    if seed is not None:
        random.Random(seed).shuffle(found)
    return found if limit is None else _in_turn(found)[:limit]


def _from_json(index: int, line: str, field: str, category: str | None, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(entry, dict) or not isinstance(entry.get(field), str) or not entry[field]:
        keys = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"{where}: {field!r} must hold a text that is not empty (found: {keys}); set prompts.field")
    kind = str(entry.get(category, "all")) if category else "all"
    return Prompt(index, entry[field], kind)


def _in_turn(prompts: list[Prompt]) -> list[Prompt]:
    """One of each category, then the second of each, and so on."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for prompt in prompts:
        turns.append(seen[prompt.category])
        seen[prompt.category] += 1
    return [prompt for _, prompt in sorted(zip(turns, prompts, strict=True), key=lambda pair: pair[0])]
