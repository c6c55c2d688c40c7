"""What a check found: a verdict, one plain sentence, and the numbers behind it."""

from dataclasses import asdict, dataclass, field
from typing import Any

GOOD, NOTE, WRONG = "good", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """`note` is worth knowing and breaks nothing. A check that does not apply is a note too, whose
    sentence is the reason."""

    verdict: str
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    applies: bool = True
    # set by `examine`
    check: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def good(sentence: str, **numbers: Any) -> Finding:
    return Finding(GOOD, sentence, numbers)


def note(sentence: str, **numbers: Any) -> Finding:
    return Finding(NOTE, sentence, numbers)


def wrong(sentence: str, **numbers: Any) -> Finding:
    return Finding(WRONG, sentence, numbers)


def does_not_apply(reason: str) -> Finding:
    return Finding(NOTE, f"Does not apply: {reason}.", applies=False)


def numbered(values: list[float], most: int = 6) -> str:
    """ "0.74, 0.70, 0.69", of a long list the first ones."""
    shown = ", ".join(f"{value:.2f}" for value in values[:most])
    return f"{shown} ..." if len(values) > most else shown
