"""Reports, comparisons and predictions, from records whose answers are known."""

import copy
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import compare, profile
from experiments.measuring.intervals import difference_interval, median_interval, pooled_interval, ratio_interval
from experiments.report import contents as pages
from experiments.report import frames, knobs
from experiments.report.definitions import DEFINITIONS
from experiments.report.prediction import cost_model, expected_tokens, interpolated
from experiments.study import studies

SECTIONS = ("Results", "Acceptance", "Time and cost", "Checks", "Setting", "Definitions")


@pytest.fixture
def study(command) -> studies.Study:
    """Two drafters at two temperatures."""
    root = command("-m", "study=small", "drafter=none,ngram", "sampling=greedy,cool", "baselines=[none,transformers]")
    return studies.read("small", str(root / "multirun"))


def test_pooled_and_mean_tau_are_different_numbers():
    kept, rounds = [10, 2, 12], [2, 2, 4]
    micro = pooled_interval(kept, rounds)
    assert micro.median == pytest.approx(24 / 8)
    assert np.mean(np.divide(kept, rounds)) == pytest.approx(3.0 + 0.0)
    assert pooled_interval([10, 2], [1, 4]).median == pytest.approx(12 / 5)  # the mean of the ratios is 5.25
    assert pooled_interval([10, 2], [1, 4]).low is None  # two values have no spread to speak of


def test_paired_intervals_are_of_the_pairs():
    first, second = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]
    assert ratio_interval(second, first) == (2.0, 2.0, 2.0, 4)
    assert difference_interval(second, first).median == 2.5
    with pytest.raises(ValueError, match="paired by prompt: got 4 values and 3"):
        ratio_interval(first, second[:3])


def test_intervals_cover_what_they_promise():
    """95% intervals of the median of 20 skewed ratios, 300 times: the truth lies inside about 95 times in 100."""
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


def test_cost_model_divides_what_rounds_give_by_what_they_cost(study):
    result = copy.deepcopy(next(each for each in study.results if each["ways"]["method"]["drafter"] == "ngram"))
    name = result["config"]["target"]["name"]
    times = pd.DataFrame(
        [{"model": name, "nodes": n, "batch": 1, "context": 10, "seconds": 1.0 if n == 1 else 2.0} for n in (1, 2, 64)]
    )
    result["ways"]["method"] |= {"tau": 3.0, "nodes_per_round": 4.0}
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
    assert {"speedups", "acceptance_heat_map", "accepted_lengths", "time_by_phase", "tau_against_temperature"} <= drawn
    assert {"results"} <= {path.stem for path in tables.glob("*.csv")}
    for path in tables.glob("*.tex"):
        assert "\\toprule" in path.read_text()
    shown = pd.read_csv(tables / "results.csv")
    assert len(shown) >= 4
    assert "n = " in text


def test_cold_and_warm_stand_side_by_side(study):
    """Only runs whose drafter learns across prompts have two states; a report without such runs has no table of them."""
    assert "cold_and_warm" not in {name for part in pages.sections(study) for name in part.tables}
    learns = [copy.deepcopy(each) for each in study.results if each["ways"]["method"]["drafter"] == "ngram"]
    for result in learns:
        own = {"tau": 3.0, "tau_interval": {"median": 3.0, "low": 2.5, "high": 3.5, "n": 4}}
        method = result["ways"]["method"] | own
        method["speedup"] = {"none": {"median": 2.0, "low": 1.5, "high": 2.5, "n": 4, "per_batch": [2.0] * 4}}
        cold = method | {"tau": 1.5, "speedup": {"none": {**method["speedup"]["none"], "median": 1.25, "low": 1.0}}}
        result |= {"learns": True, "ways": {**result["ways"], "method": method, "cold": cold}}
    others = [each for each in study.results if each["ways"]["method"]["drafter"] != "ngram"]
    jobs = [studies.Job(Path(str(n)), [], result, "") for n, result in enumerate([*others, *learns])]
    parts = pages.sections(studies.Study(study.folder, study.sweeps, [], jobs))
    (told,) = (part.tables["cold_and_warm"] for part in parts if "cold_and_warm" in part.tables)
    assert list(told.text["state"]) == ["warm", "cold"] * len(learns)
    assert list(told.text["τ"]) == ["3.00", "1.50"] * len(learns)
    assert list(told.raw["speedup_none"]) == [2.0, 1.25] * len(learns)
    assert list(told.raw["speedup_none_low"]) == [1.5, 1.0] * len(learns)


def test_tau_of_the_table_is_that_of_the_rounds(study):
    table = frames.table(study.results).set_index("run")
    rounds = study.rounds()
    own = rounds[rounds["way"] == "method"].groupby("run")
    for run, part in own:
        assert table.loc[run, "tau"] == pytest.approx(part["kept"].sum() / len(part))


def test_comparison_pairs_runs_and_names_what_changed(study):
    first, second = study.results, copy.deepcopy(study.results)
    for result in second:
        result["config"]["seed"] = 7
        for ratio in result["ways"]["method"]["speedup"].values():
            ratio["per_batch"] = [2 * value for value in ratio["per_batch"]]
        for entry in result["ways"]["method"]["per_prompt"]:
            entry["tau"] += 1
    dropped = second.pop()
    paired, alone = compare.pairs(first, second)
    assert len(paired) == len(first) - 1
    assert alone == [f"only in A: {compare._name(dropped)}"]
    table = compare.differences(paired)
    assert all(ratio.median == pytest.approx(2) for ratio in table["speedup_ratio"])
    assert all(found.median == pytest.approx(1) for found in table["tau_difference"])
    assert compare.changes(paired) == ["seed: 0 -> 7"]


def test_comparison_needs_two_studies(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", "one"])
    with pytest.raises(SystemExit, match="STUDY_A STUDY_B; got 1"):
        compare.main()


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
    (result, *_) = study.results
    text = json.dumps(result)
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
    """Headless Chromium lays it out: every section is there, every picture has loaded, nothing is wider than the window."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    page = pages.write(study, tmp_path / "report")
    probe = """<script>addEventListener("load", () => {
      const found = {wide: document.documentElement.scrollWidth, sections: [...document.querySelectorAll("h2")].map(h => h.textContent),
        broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length, images: document.images.length};
      const note = document.createElement("pre"); note.id = "found"; note.textContent = JSON.stringify(found);
      document.body.append(note); });</script>"""
    watched = tmp_path / "watched.html"
    watched.write_text(page.read_text().replace("</body>", probe + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
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


def test_runs_that_share_a_name_are_told_apart_by_what_varies():
    def result(run: str, tokens: int | None, label: str = "ngram", seed: int = 0) -> dict[str, Any]:
        drafter = {"_target_": "drafters.ngram.NGram", "length": 4}
        config = {
            "label": label,
            "study": "s",
            "seed": seed,
            "batch_size": 1,
            "drafter": drafter,
            "target": {"name": "demo", "extra_layers": 0},
            "sampling": {"temperature": 0.0},
            "prompts": {"path": "demo", "tokens": tokens},
        }
        return {"run": run, "config": config, "ways": {"method": {"lossless": True, "verifier": "greedy"}}}

    results = [result("0", 32), result("1", 96), result("2", 96, label="ngram tree")]
    assert [each["config"]["label"] for each in knobs.told_apart(results)] == [
        "ngram, tokens=32",
        "ngram, tokens=96",
        "ngram tree",
    ]
    assert results[0]["config"]["label"] == "ngram"
    assert knobs.told_apart([result("0", 32), result("1", 32, label="other")])[0]["config"]["label"] == "ngram"
