"""One entry of a data set -> its turns and its category.

An entry is a text, or an object. Keys that people use, the first that is there:
`turns` (Spec-Bench, MT-Bench), `prompt` (HumanEval, plain lists), `question` (GSM8K).
"""

from typing import Any

FIELDS = ("turns", "prompt", "question")


def turns_of(entry: Any, field: str | None, where: str) -> list[str]:
    """At least one text. Raises ValueError, beginning with `where`, for an entry that holds
    none."""
    if isinstance(entry, str) and entry:
        return [entry]
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where}: expected an object with one of {', '.join(FIELDS)}, or a text, got "
            f"{_short(entry)}"
        )
    key = field or next((key for key in FIELDS if key in entry), None)
    if key is None:
        raise ValueError(
            f"{where}: none of {', '.join(FIELDS)} (found: {', '.join(entry)}); set prompts.field"
        )
    if key not in entry:
        raise ValueError(
            f"{where}: {key!r} is not there (found: {', '.join(entry)}); set prompts.field"
        )
    held = entry[key]
    turns = [held] if isinstance(held, str) else held
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, str) and turn for turn in turns)
    ):
        raise ValueError(
            f"{where}: {key!r} must hold a text that is not empty, or a list of such turns, got "
            f"{_short(held)}; or set prompts.field"
        )
    return turns


def category_of(entry: Any, category: str | None, otherwise: str = "all") -> str:
    found = entry.get(category) if isinstance(entry, dict) and category is not None else None
    return otherwise if found is None else str(found)


def _short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
