"""Notebooks of docs/notebooks as pages: text, code, and what the code put out when it was run."""

import json
import re
from pathlib import Path
from typing import Any

from experiments.terminal.meanings import ROOT

FOLDER = ROOT / "docs/notebooks"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal


def page(path: Path) -> str:
    """A notebook as Markdown. What was written to standard error is left out."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    parts.insert(1, f"*This page is a notebook: [docs/notebooks/{path.name}]({path.name}).*")
    return "\n\n".join(parts) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [text.replace(".ipynb)", ".md)")]  # links to other notebooks
    shown = [_output(each) for each in cell["outputs"]]
    return [f"```python\n{text}\n```", *filter(None, shown)]


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        text = COLOURS.sub("", "".join(output["text"])).rstrip()
        return f"```text\n{text}\n```" if output["name"] == "stdout" and text else ""
    data = output.get("data", {})
    if "text/html" in data:
        # one block of HTML ends at an empty line
        html = "".join(data["text/html"])
        return (
            "<div>\n" + "\n".join(line for line in html.splitlines() if line.strip()) + "\n</div>"
        )
    return f"```text\n{''.join(data['text/plain'])}\n```" if "text/plain" in data else ""


def pages() -> dict[str, str]:
    """Path in docs/ -> Markdown."""
    return {f"notebooks/{path.stem}.md": page(path) for path in sorted(FOLDER.glob("*.ipynb"))}
