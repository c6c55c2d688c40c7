"""What a check found: a verdict, one plain sentence, and the numbers behind it. And how findings
are printed."""

import json
import time
from collections.abc import Iterable, Mapping
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


def tell(findings: Iterable[Finding], about: Mapping[str, Any], as_json: bool) -> int:
    """Print every finding as soon as it is there, or all of them as one JSON object, behind what it
    is `about`. Returns how many are wrong."""
    began, told = time.perf_counter(), []
    for found in findings:
        told.append(found)
        if not as_json:
            show(found)
    count = sum(found.verdict == WRONG for found in told)
    seconds = time.perf_counter() - began
    if as_json:
        checks = [found.as_dict() for found in told]
        content = {**about, "wrong": count, "seconds": seconds, "checks": checks}
        print(json.dumps(content), flush=True)
    else:
        said = "Nothing is wrong" if count == 0 else f"{count} of {len(told)} checks are wrong"
        print(f"\n{said} ({seconds:.0f} s).", flush=True)
    return count


def show(found: Finding) -> None:
    """A check, its verdict and its sentence, wrapped beside them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {GOOD: "green", NOTE: "yellow", WRONG: "bold red"}
    table = Table.grid(padding=(0, 2))
    table.add_column(width=15)
    table.add_column(width=5)
    table.add_column(overflow="fold")
    table.add_row(
        found.check, Text(found.verdict, style=colours[found.verdict]), Text(found.sentence)
    )
    Console(highlight=False).print(table)
