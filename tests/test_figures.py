"""Figures as a reader meets them: in a paper, in a column of a page, on a telephone; and what their
captions and labels say."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from experiments import compare_verifiers, search_layers
from experiments.report import acceptance, knobs, looks, tables
from experiments.report import contents as pages
from experiments.report.looks import Drawn
from experiments.study import studies
from tests.conftest import TEXT

SHOWN, LEAST = 400, 8  # pixels: how wide a figure is shown, and how high its text is at least


@pytest.fixture
def study(command) -> studies.Study:
    """Two drafters at two temperatures, both with one setting of their own."""
    root = command(
        "-m",
        "study=small",
        "drafter=ngram",
        "drafter.length=3",
        "drafter.tree=false,true",
        "sampling=greedy,cool",
    )
    return studies.read("small", str(root / "multirun"))


def figures_of(study: studies.Study) -> dict[str, Drawn]:
    return {name: drawn for part in pages.sections(study) for name, drawn in part.figures.items()}


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """What is really drawn: ticks outside of the axes are texts of the figure too."""
    texts: list[Text] = []
    plain = RendererAgg.draw_text

    def draw_text(self: Any, *arguments: Any, mtext: Text | None = None, **options: Any) -> None:
        if mtext is not None:
            texts.append(mtext)
        plain(self, *arguments, mtext=mtext, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RendererAgg, "draw_text", draw_text)
        FigureCanvasAgg(figure).draw()
    return texts


def faults(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Texts that are cut by the edge of the figure, overlap, or are too small when it is shown."""
    scale = SHOWN / (72 * figure.get_size_inches()[0])
    boxes: list[tuple[str, Bbox]] = []
    for text in drawn_texts(figure, monkeypatch):
        if text.get_fontsize() * scale < LEAST - 0.3:
            yield f"{text.get_text()!r} is {text.get_fontsize() * scale:.1f} pixels high"
        box, paper = text.get_window_extent(), figure.bbox
        boxes.append((text.get_text(), box))
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= paper.x1 + 1 and box.y1 <= paper.y1 + 1
        if not inside:
            yield f"{text.get_text()!r} is cut"
    for (one, its_box), (other, other_box) in itertools.combinations(boxes, 2):
        shared = Bbox.intersection(its_box, other_box)
        if shared is not None and shared.width > 2 and shared.height > 2:
            yield f"{one!r} and {other!r} overlap"


def many(study: studies.Study) -> studies.Study:
    """Twenty-one runs at three temperatures, with the names that methods have."""
    names = [f"small_model branching=4,2,2,{number}" for number in range(7)]
    jobs = []
    for name, temperature in itertools.product(names, (0.0, 0.6, 1.0)):
        one = study.results[len(jobs) % len(study.results)]
        sampling = replace(one.config.sampling, temperature=temperature)
        config = replace(one.config, label=name, sampling=sampling)
        result = replace(one, run=str(len(jobs)), config=config)
        jobs.append(studies.Job(Path(str(len(jobs))), [], result, ""))
    return studies.Study(study.folder, study.sweeps, [], jobs)


def test_every_text_is_whole_and_legible(study, monkeypatch):
    for some in (study, many(study)):
        drawn = figures_of(some)
        assert len(drawn) >= 6
        wrong = {name: list(faults(each.figure, monkeypatch)) for name, each in drawn.items()}
        assert not {name: found for name, found in wrong.items() if found}


def test_panels_that_share_an_axis_have_numbers_on_each(monkeypatch):
    figure, axes = looks.panels(2, 2, 2.0, sharex=True, sharey=True)
    FigureCanvasAgg(figure).draw()
    for axis in axes:
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            assert any(label.get_visible() and label.get_text() for label in labels)


@pytest.mark.parametrize("panels", [1, 2])
def test_fonts_in_pdf_files_are_truetype(tmp_path: Path, panels):
    """Type 3 fonts are refused by many conferences. The setting is read when a file is written."""
    figure, axes = looks.panels(1, panels, 2.0)
    axes[0].set_xlabel("τ (tokens per round)")
    looks.save(figure, tmp_path / "figure.pdf")
    content = (tmp_path / "figure.pdf").read_bytes()
    assert b"/Type3" not in content
    assert b"/CIDFontType2" in content  # Type 42: TrueType, embedded


def test_heat_maps_are_as_deep_as_their_own_run():
    """Beside a chain of 16 a tree of 2 levels fills its panel."""

    def cells(run: str, depths: int, ranks: int) -> list[dict[str, Any]]:
        return [
            {
                "run": run,
                "drafter": run,
                "target": "t",
                "verifier": "naive",
                "temperature": 0.0,
                "batch": 1,
                "depth": depth,
                "rank": rank,
                "offered": 40,
                "reached": 40,
                "accepted": 20,
            }
            for depth, rank in itertools.product(range(1, depths + 1), range(ranks))
        ]

    drawn = acceptance.heat_map(pd.DataFrame(cells("deep", 16, 1) + cells("wide", 2, 3)))
    images = [axis.images[0].get_array() for axis in drawn.figure.axes if axis.images][:2]
    assert [image.shape for image in images] == [(16, 1), (2, 3)]
    assert not any(np.ma.getmaskarray(image).any() or np.isnan(image).any() for image in images)


def test_names_and_captions_say_what_this_study_has(study):
    """Settings that all runs share are no part of their names; captions speak of columns that are
    there: a study without baselines has no ratio, one without a profile no such prediction."""
    labels = {str(each.config.label) for each in study.results}
    assert labels == {"ngram length=3", "ngram length=3 tree=true"}
    shown = {str(each.config.label) for each in knobs.shortened(study.results)}
    assert shown == {"ngram", "ngram tree=true"}
    parts = {part.title: part for part in pages.sections(study)}
    assert not any("length=3" in name for name in parts["Results"].tables["results"].text["method"])
    assert any("drafter.length=3" in note for note in parts["Setting"].notes)
    alone = [
        replace(each, ways={"method": replace(each.method, speedup={})}) for each in study.results
    ]
    assert "per token of the baseline" in tables.headline(study.results).caption
    assert "per token of the baseline" not in tables.headline(alone).caption
    assert "Plain decoding" not in tables.latency(alone).caption
    told = parts["Time and cost"].tables["predicted_and_measured"]
    assert "from the profile" not in told.text
    assert "profile" not in told.caption


# --------------------------------------------------------------------------- programs of their own

RULES = [f"rule_{number}" for number in range(11)]


def exact() -> pd.DataFrame:
    rows = [
        {"tables": "ties", "drafts": drafts, "rule": rule, "accepted": 1.0}
        for drafts, rule in itertools.product(compare_verifiers.SHAPES, [*RULES, "bound"])
    ]
    return pd.DataFrame(rows)


def measured() -> pd.DataFrame:
    rows = [
        {"temperature": t, "drafts": drafts, "rule": rule, "tau": 2.0, "low": 1.5, "high": 2.5}
        for t, drafts, rule in itertools.product((0.3, 1.0), ("chain", "hub"), RULES)
    ]
    return pd.DataFrame(rows)


def test_every_rule_has_a_colour_of_its_own_and_its_interval(monkeypatch):
    figure = compare_verifiers.draw(exact(), measured())
    assert not list(faults(figure, monkeypatch))
    colours = {bar.get_facecolor() for bar in figure.axes[0].patches}
    assert len(colours) == len(RULES)
    for axis in figure.axes[1:]:
        assert len(axis.containers) == 2 * len(RULES)
        for point in axis.containers:
            ((low, high),) = point.lines[2][0].get_segments()
            assert (low[1], high[1]) == (1.5, 2.5)


def test_rules_without_a_real_pair_are_drawn_too(monkeypatch):
    assert not list(faults(compare_verifiers.draw(exact(), None), monkeypatch))


def test_the_printed_table_is_whole():
    shown = compare_verifiers._pivot(exact(), ["tables", "drafts"], "accepted", 4)
    assert all(rule in shown.splitlines()[0] for rule in RULES)
    assert "..." not in shown


def test_a_search_that_finds_nothing_says_so(tiny, tmp_path, monkeypatch):
    """Whatever is left out costs more than it saves: nothing is written."""
    from experiments.training import calibration

    def of_no_use(found: Any, *_: Any) -> list[calibration.Skip]:
        whole = calibration.Skip(agreement=(1.0, 1.0), node=1.0)
        return [whole, calibration.Skip(frozenset({0}), agreement=(0.1, 0.1))]

    monkeypatch.setattr(calibration, "search", of_no_use)
    output, text = tmp_path / "skip.yaml", tmp_path / "text.txt"
    text.write_text(f"{TEXT}\n" * 40)
    sizes = {"depth": 2, "places": 2, "batch": 2, "context": 4}
    wanted = search_layers.Search(str(tiny), str(text), output=str(output), **sizes)
    with pytest.raises(ValueError, match=r"nothing found: no part of .* is written"):
        search_layers.main(wanted)
    assert not output.exists()
