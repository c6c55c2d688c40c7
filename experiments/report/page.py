"""Sections of tables and figures -> one self-contained HTML page, and files beside it: CSV, LaTeX,
PNG and PDF."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader

from experiments.certificates.law import mark
from experiments.report.looks import STYLE, Drawn, save
from experiments.report.tables import Told
from experiments.system.files import write_text

WORDS = (
    "method",
    "target",
    "verifier",
    "law",
    "category",
    "state",
    "baseline",
    "kind",
    "what",
    "in A",
    "in B",
)


@dataclass
class Section:
    title: str
    tables: dict[str, Told] = field(default_factory=dict)  # by the name of their files
    figures: dict[str, Drawn] = field(default_factory=dict)
    notes: Sequence[str] = ()
    terms: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def render(title: str, lead: str, sections: Sequence[Section], command: str) -> str:
    """The page. Figures are SVG inside it; nothing is fetched from anywhere."""
    environment = Environment(
        loader=PackageLoader("experiments.report", "."), autoescape=True, trim_blocks=True
    )
    environment.filters["mark"] = mark
    tables, figures = iter(range(1, 10_000)), iter(range(1, 10_000))
    told = [
        {
            "id": section.id,
            "title": section.title,
            "tables": [_table(name, table, next(tables)) for name, table in section.tables.items()],
            "figures": [
                {
                    "id": name,
                    "title": drawn.title,
                    "caption": drawn.caption,
                    "number": next(figures),
                    "data": base64.b64encode(_svg(drawn)).decode(),
                }
                for name, drawn in section.figures.items()
            ],
            "notes": section.notes,
            "terms": section.terms,
        }
        for section in sections
    ]
    return environment.get_template("page.html.j2").render(
        study=title, lead=lead, sections=told, command=command
    )


def _table(name: str, told: Told, number: int) -> dict[str, Any]:
    columns = [{"name": column, "word": column in WORDS} for column in told.text.columns]
    rows = [list(zip(row, columns, strict=True)) for row in told.text.values.tolist()]
    return {
        "id": name,
        "title": told.title,
        "caption": told.caption,
        "number": number,
        "columns": columns,
        "rows": rows,
    }


def _svg(drawn: Drawn) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        drawn.figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def write_figures(figures: dict[str, Drawn], folder: Path) -> list[Path]:
    """NAME.png, NAME.pdf, and captions.md."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, drawn in figures.items():
        for suffix in ("png", "pdf"):
            paths.append(folder / f"{name}.{suffix}")
            save(drawn.figure, paths[-1])
    captions = "\n\n".join(
        f"**{name}: {drawn.title}.** {drawn.caption}" for name, drawn in figures.items()
    )
    write_text(folder / "captions.md", captions + "\n")
    return paths


def write_tables(tables: dict[str, Told], folder: Path) -> list[Path]:
    """NAME.csv with full numbers, NAME.tex for booktabs."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, told in tables.items():
        paths += [folder / f"{name}.csv", folder / f"{name}.tex"]
        write_text(paths[-2], told.raw.to_csv(index=False))
        write_text(paths[-1], latex(told, name))
    return paths


SYMBOLS = {
    "τ": r"$\tau$",
    "α": r"$\alpha$",
    "γ": r"$\gamma$",
    "×": r"$\times$",
    "−": "$-$",
    "–": "--",
    "→": r"$\to$",
}


def latex(told: Told, name: str) -> str:
    """A table environment; needs \\usepackage{booktabs}."""
    form = "".join("l" if column in WORDS else "r" for column in told.text.columns)
    text = told.text.to_latex(
        index=False,
        escape=True,
        column_format=form,
        caption=_escaped(f"{told.title}. {told.caption}"),
        label=f"tab:{name}",
        position="t",
    )
    for symbol, command in SYMBOLS.items():
        text = text.replace(symbol, command)
    return text


def _escaped(text: str) -> str:
    """Captions are not escaped by pandas."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
