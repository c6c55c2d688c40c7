"""Reports, comparisons and predictions, from records whose answers are known."""

import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import compare, profile
from experiments.measuring.intervals import (
    difference_interval,
    holm,
    median_interval,
    pooled_interval,
    ratio_interval,
    sign_flip,
)
from experiments.report import comparison, frames, knobs
from experiments.report import contents as pages
from experiments.report.definitions import DEFINITIONS
from experiments.report.prediction import cost_model, expected_tokens, interpolated
from experiments.study import studies
from experiments.study.outcome import Balance, Interval, Speedup
from experiments.study.result import Result

SECTIONS = ("Results", "Acceptance", "Time and cost", "Checks", "Setting", "Definitions")


@pytest.fixture
def study(command) -> studies.Study:
    """Two drafters at two temperatures."""
    root = command(
        "-m",
        "study=small",
        "drafter=none,ngram",
        "sampling=greedy,cool",
        "baselines=[none,transformers]",
    )
    return studies.read("small", str(root / "multirun"))


def test_pooled_and_mean_tau_are_different_numbers():
    kept, rounds = [10, 2, 12], [2, 2, 4]
    micro = pooled_interval(kept, rounds)
    assert micro.median == pytest.approx(24 / 8)
    assert np.mean(np.divide(kept, rounds)) == pytest.approx(3.0 + 0.0)
    # the mean of the ratios is 5.25
    assert pooled_interval([10, 2], [1, 4]).median == pytest.approx(12 / 5)
    assert pooled_interval([10, 2], [1, 4]).low is None  # two values have no spread to speak of


def test_paired_intervals_are_of_the_pairs():
    first, second = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]
    assert ratio_interval(second, first) == Interval(2.0, 2.0, 2.0, 4)
    assert difference_interval(second, first).median == 2.5
    with pytest.raises(ValueError, match="paired by prompt: got 4 values and 3"):
        ratio_interval(first, second[:3])


def test_intervals_cover_what_they_promise():
    """95% intervals of the median of 20 skewed ratios, 300 times: the truth lies inside about 95
    times in 100."""
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        found = median_interval(random.lognormal(0.3, 0.5, 20))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= np.exp(0.3) <= found.high
    assert 0.91 <= inside / 300 <= 0.99


def test_closed_form_of_leviathan():
    assert expected_tokens(0.5, 1) == pytest.approx(1.5)
    assert expected_tokens(0.8, 4) == pytest.approx((1 - 0.8**5) / 0.2)
    assert expected_tokens(1.0, 3) == pytest.approx(4)


def test_forward_times_between_the_measured_ones():
    times = pd.DataFrame(
        [
            {"model": "m", "nodes": n, "batch": b, "context": 10, "seconds": n + 100 * b}
            for n in (1, 5, 9)
            for b in (1, 2)
        ]
    )
    assert interpolated(times, "m", 3, 1.5, 10) == pytest.approx(153)
    assert interpolated(times, "m", 90, 1, 99) == pytest.approx(109)  # the nearest edge


def changed(result: Result, **method: Any) -> Result:
    """A result whose method has other numbers."""
    return replace(result, ways={**result.ways, "method": replace(result.method, **method)})


def test_cost_model_divides_what_rounds_give_by_what_they_cost(study):
    result = next(each for each in study.results if each.method.drafter == "ngram")
    name = result.config.target.name
    times = pd.DataFrame(
        [
            {
                "model": name,
                "nodes": n,
                "batch": 1,
                "context": 10,
                "seconds": 1.0 if n == 1 else 2.0,
            }
            for n in (1, 2, 64)
        ]
    )
    result = changed(result, tau=3.0, nodes_per_round=4.0)
    assert cost_model(result, times) == pytest.approx(1.5)  # three tokens for the price of two
    assert cost_model(result, None) is None


def test_page_says_everything(study, tmp_path):
    page = pages.write(study, tmp_path / "report")
    text = page.read_text()
    assert "http://" not in text.replace("http://www.w3.org", "")  # self-contained
    assert "https://" not in text
    for title in SECTIONS:
        assert f">{title}</h2>" in text, title
    for word in DEFINITIONS:
        assert word in text
    assert "plain decoding against itself" in text
    figures, tables = page.parent / "figures", page.parent / "tables"
    drawn = {path.stem for path in figures.glob("*.png")}
    assert drawn == {path.stem for path in figures.glob("*.pdf")}
    assert {
        "speedups",
        "acceptance_heat_map",
        "accepted_lengths",
        "time_by_phase",
        "tau_against_temperature",
    } <= drawn
    assert {"results"} <= {path.stem for path in tables.glob("*.csv")}
    for path in tables.glob("*.tex"):
        assert "\\toprule" in path.read_text()
    shown = pd.read_csv(tables / "results.csv")
    assert len(shown) >= 4
    assert "n = " in text


def test_cold_and_warm_stand_side_by_side(study):
    """Only runs whose drafter learns across prompts have two states; a report without such runs has
    no table of them."""
    assert "cold_and_warm" not in {name for part in pages.sections(study) for name in part.tables}
    learns = []
    for result in (each for each in study.results if each.method.drafter == "ngram"):
        fast, slow = (
            {"none": Speedup(median=m, low=m - 0.5, high=m + 0.5, n=4, per_batch=[m] * 4)}
            for m in (2.0, 1.25)
        )
        result = changed(result, tau=3.0, tau_interval=Interval(3.0, 2.5, 3.5, 4), speedup=fast)
        cold = replace(result.method, tau=1.5, speedup=slow)
        learns.append(replace(result, learns=True, ways={**result.ways, "cold": cold}))
    others = [each for each in study.results if each.method.drafter != "ngram"]
    jobs = [
        studies.Job(Path(str(n)), [], result, "") for n, result in enumerate([*others, *learns])
    ]
    parts = pages.sections(studies.Study(study.folder, study.sweeps, [], jobs))
    (told,) = (part.tables["cold_and_warm"] for part in parts if "cold_and_warm" in part.tables)
    assert list(told.text["state"]) == ["warm", "cold"] * len(learns)
    assert list(told.text["τ"]) == ["3.00", "1.50"] * len(learns)
    assert list(told.raw["speedup_none"]) == [2.0, 1.25] * len(learns)
    assert list(told.raw["speedup_none_low"]) == [1.5, 0.75] * len(learns)


def test_what_the_bank_did(study):
    """Its balance over the rounds, of runs under no_harm; without such runs there is no section."""
    assert "What the bank did" not in {part.title for part in pages.sections(study)}
    first, *others = (one for one in study.results if one.method.drafter == "ngram")
    line = Balance(rounds=40, plain_rounds=6, trials=2, at=[0, 20, 40], seconds=[0.0, -0.25, 1.5])
    given = [changed(first, balance=line), *others]
    jobs = [studies.Job(Path(str(n)), [], result, "") for n, result in enumerate(given)]
    parts = pages.sections(studies.Study(study.folder, study.sweeps, [], jobs))
    (section,) = (part for part in parts if part.title == "What the bank did")
    shown = section.tables["bank"].text.iloc[0]
    assert (shown["rounds"], shown["of these plain"]) == (40, 6)
    assert (shown["s gained"], shown["at the lowest"]) == ("1.50", "-0.25")
    (axis,) = section.figures["balance"].figure.axes
    (drawn,) = (one for one in axis.lines if len(one.get_xdata()) == 3)
    assert list(drawn.get_ydata()) == [0.0, -0.25, 1.5]


def test_tau_of_the_table_is_that_of_the_rounds(study):
    table = frames.table(study.results).set_index("run")
    rounds = study.rounds()
    own = rounds[rounds["way"] == "method"].groupby("run")
    for run, part in own:
        assert table.loc[run, "tau"] == pytest.approx(part["kept"].sum() / len(part))


def shifted(result: Result, by: float, times: float) -> Result:
    """Every prompt's tau higher by so much, every ratio higher by that factor."""
    speedup = {
        name: replace(ratio, per_batch=[times * value for value in ratio.per_batch])
        for name, ratio in result.method.speedup.items()
    }
    entries = [replace(entry, tau=entry.tau + by) for entry in result.method.per_prompt]
    return changed(result, speedup=speedup, per_prompt=entries)


def test_comparison_pairs_runs_and_names_what_changed(study):
    second = [
        replace(shifted(each, 1, 2), config=replace(each.config, seed=7)) for each in study.results
    ]
    dropped = second.pop()
    paired, alone = comparison.between(study.results, second)
    assert len(paired) == len(study.results) - 1
    assert alone == [f"only in A: {comparison.name(dropped)}"]
    table = comparison.differences(paired)
    assert all(ratio.median == pytest.approx(2) for ratio in table["speedup_ratio"])
    assert all(found.median == pytest.approx(1) for found in table["tau_difference"])
    assert comparison.changes(paired) == ["seed: 0 -> 7"]


def test_methods_of_one_study_are_paired(study, monkeypatch, tmp_path, capsys):
    """Those that decode the same prompts alike; p is adjusted for all tests of the table
    together."""
    pairs = comparison.within(study.results)
    assert [(a.config.label, b.config.label) for a, b in pairs] == [("none", "ngram")] * 2
    assert [a.config.sampling.temperature for a, _ in pairs] == [
        b.config.sampling.temperature for _, b in pairs
    ]
    elsewhere = replace(pairs[0][1].config.prompts, tokens=4)
    other = replace(pairs[0][1], config=replace(pairs[0][1].config, prompts=elsewhere))
    assert comparison.within([pairs[0][0], other]) == []
    table = comparison.differences([(one, shifted(one, 1, 2)) for one, _ in pairs])
    raw = 2 / 2**4  # four prompts, all differences of one sign: the smallest p that there is
    assert list(table["tau_p"]) == list(table["speedup_p"]) == [pytest.approx(4 * raw)] * 2
    monkeypatch.chdir(tmp_path)
    compare.main(compare.Compare(["small"]))
    written = (tmp_path / "outputs" / "compare" / "small.md").read_text()
    assert "none -> ngram" in written
    assert "Holm" in capsys.readouterr().out
    assert "Changed" not in written


def test_families_of_tests():
    # Holm's step-down, by hand
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert sign_flip([1.0, 2.0, 3.0]) == pytest.approx(2 / 2**3)
    assert sign_flip([0.0, 0.0, 0.0]) == 1


def test_comparison_needs_one_study_or_two():
    with pytest.raises(ValueError, match=r"one study or two are compared: .* got 3 names"):
        compare.main(compare.Compare(["a", "b", "c"]))


def test_profile_measures_every_size(tiny):
    wanted = profile.Profile(str(tiny), None, nodes=[1, 4], batches=[1, 2], contexts=[8], repeats=1)
    times = pd.DataFrame(profile.measure(wanted))
    assert len(times) == 4
    assert (times["seconds"] > 0).all()
    assert len(profile.draw(times, "here").figure.axes) == 1
    with pytest.raises(ValueError, match="pass the 128 positions"):
        profile.measure(profile.Profile(str(tiny), None, nodes=[1], contexts=[4000]))


@pytest.mark.slow
def test_ten_thousand_runs_are_collected(study, tmp_path):
    """Prints how long it took; `-s` shows it. Timings are not asserted."""
    text = (study.jobs[0].folder / "result.json").read_text()
    sweep = tmp_path / "many" / "big" / "sweep"
    for number in range(10_000):
        folder = sweep / str(number)
        (folder / ".hydra").mkdir(parents=True)
        (folder / "result.json").write_text(text)
        (folder / "started.json").write_text("{}")
    began = time.perf_counter()
    found = studies.read("big", str(tmp_path / "many"))
    assert len(frames.table(found.results)) == 10_000
    print(f"10,000 runs in {time.perf_counter() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 500])
def test_page_in_a_browser(study, tmp_path, width):
    """Headless Chromium lays it out: every section is there, every picture has loaded, nothing is
    wider than the window."""
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    page = pages.write(study, tmp_path / "report")
    probe = """<script>addEventListener("load", () => {
      const found = {
        wide: document.documentElement.scrollWidth,
        sections: [...document.querySelectorAll("h2")].map(h => h.textContent),
        broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
        images: document.images.length};
      const note = document.createElement("pre");
      note.id = "found";
      note.textContent = JSON.stringify(found);
      document.body.append(note); });</script>"""
    watched = tmp_path / "watched.html"
    watched.write_text(page.read_text().replace("</body>", probe + "</body>"))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}/browser"]
    command = [
        browser,
        *flags,
        f"--window-size={width},900",
        "--virtual-time-budget=8000",
        "--dump-dom",
        f"file://{watched}",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    found = json.loads(shown.partition('<pre id="found">')[2].partition("</pre>")[0])
    assert set(SECTIONS) <= set(found["sections"])
    assert found["images"] >= 5
    assert found["broken"] == 0
    assert found["wide"] <= width
    assert Path(browser).exists()


def test_runs_that_share_a_name_are_told_apart_by_what_varies(study):
    one = next(each for each in study.results if each.method.drafter == "ngram")

    def result(run: str, tokens: int | None, label: str = "ngram") -> Result:
        prompts = replace(one.config.prompts, tokens=tokens)
        return replace(one, run=run, config=replace(one.config, label=label, prompts=prompts))

    results = [result("0", 32), result("1", 96), result("2", 96, label="ngram tree")]
    labels = ["ngram, tokens=32", "ngram, tokens=96", "ngram tree"]
    assert [each.config.label for each in knobs.told_apart(results)] == labels
    assert results[0].config.label == "ngram"
    assert (
        knobs.told_apart([result("0", 32), result("1", 32, label="other")])[0].config.label
        == "ngram"
    )
