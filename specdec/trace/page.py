"""A traced run as one self-contained HTML page."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from specdec.measuring.clock import PHASES, PREFILL
from specdec.output import Output
from specdec.trace.pieces import Kept, labels, rounds_of, words


@dataclass(frozen=True)
class TracePage:
    """A page that needs nothing from anywhere: no network, no other file."""

    html: str = field(repr=False)

    @classmethod
    def of(cls, output: Output) -> "TracePage":
        """Raises ValueError for a run that was not traced."""
        return cls(rendered(contents(output)))

    def save(self, path: str | Path) -> None:
        """Write it as UTF-8."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        """In notebooks: the page in a frame."""
        frame = 'width="100%" height="760" style="border:1px solid #8888"'
        return f'<iframe srcdoc="{escape(self.html)}" {frame}></iframe>'


def rendered(data: dict[str, Any]) -> str:
    """data: as `contents` gives it."""
    parts = {name: files("specdec.trace").joinpath(name).read_text("utf-8") for name in PARTS}
    template = Environment(autoescape=True).from_string(parts["page.html.j2"])
    # No text of a token may end the element that holds the data.
    safe = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return template.render(
        title=data["title"],
        data=Markup(safe),
        style=Markup(parts["page.css"]),
        script=Markup(parts["page.js"]),
    )


PARTS = ("page.html.j2", "page.css", "page.js")


def contents(output: Output) -> dict[str, Any]:
    """What the page shows, as plain values. Tokens of trees are ids, `labels` has their texts."""
    if any(step.nodes is None for step in output.steps):
        raise ValueError(
            "this output has no trace: tokens, p and q of the nodes are kept only when asked for; "
            "call generate(..., trace=True)"
        )
    report = output.report
    shapes: dict[tuple[int, ...], int] = {}
    ids: set[int] = set()
    texts = []
    for prompt, ended in enumerate(output.finish_reasons):
        start = output.prompts[prompt]
        texts.append(
            {
                "prompt": "".join(words(output.tokenizer, [], start)),
                "words": words(output.tokenizer, start, output.tokens[prompt].tolist()),
                "ended": ended,
                "rounds": [_round(kept, shapes, ids) for kept in rounds_of(output, prompt)],
            }
        )
    label: Callable[[int], str] = labels(output.tokenizer)
    return {
        "title": f"{report.drafter} + {report.verifier}" + ("" if report.lossless else " (lossy)"),
        "report": {
            "tau": _short(report.tau),
            "acceptance rate": _short(report.acceptance_rate),
            "tokens": report.num_tokens,
            "target calls": report.target_calls,
        },
        "phases": [PREFILL, *PHASES],
        "shapes": [list(shape) for shape in shapes],
        "labels": {token: label(token) for token in sorted(ids)},
        "texts": texts,
    }


def _round(kept: Kept, shapes: dict[tuple[int, ...], int], ids: set[int]) -> dict[str, Any]:
    step, row = kept.step, kept.row
    nodes, parents = step.nodes, step.parents[row]
    assert nodes is not None
    size = int(np.flatnonzero(parents >= 0).max(initial=0)) + 1
    shape = tuple(parents[:size].tolist())
    found: dict[str, Any] = {
        "number": step.number,
        "rows": int(step.live.sum()),
        "start": kept.start,
        "depths": kept.depths,
        "shape": shapes.setdefault(shape, len(shapes)),
        "path": step.path[row][: int(step.num_accepted[row])].tolist(),
        "ms": [_short(1000 * step.seconds.get(phase, 0.0)) for phase in (PREFILL, *PHASES)],
    }
    for name, values in nodes._asdict().items():
        column = values[row, :size].tolist()
        if values.dtype == float:
            column = [_short(value) for value in column]
            column = None if all(value is None for value in column) else column
        found[name] = column
    ids.update(found["tokens"], (token for token in found["drawn"] if token >= 0))
    return found


def _short(value: float | None) -> float | int | None:
    """Four digits are read, and kept."""
    if value is None or math.isnan(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() else short
