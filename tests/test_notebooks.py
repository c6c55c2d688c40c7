"""Notebooks: `make test-all` executes them (nbmake). Here: what is committed of them, and that each
is a page of the site."""

import json
import re

import pytest
from notebooks import FOLDER, page

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_outputs_and_is_small(path):
    """Made in order, in one go, and without noise of the machine that made them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert {each.get("name") for cell in code for each in cell["outputs"]} <= {"stdout", None}
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_page(path):
    text = page(path)
    assert text.startswith("# ")
    assert f"]({path.name})" in text
    code = "".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    compile(code, path.name, "exec")
    for block in re.findall(r"<div>\n.*?\n</div>", text, re.S):
        assert "\n\n" not in block  # Markdown would end the HTML there
