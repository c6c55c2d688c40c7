"""Which drafter and shape is the fastest for a target, prompts and this machine: measured.

    python -m experiments.tune target=demo prompts=demo budget=5min
    python -m experiments.tune target=FOLDER prompts=mine.jsonl draft=FOLDER temperatures=[0.6]

Writes OUTPUT (a drafter's YAML, for `generate(drafter="tuned.yaml")`), and beside it a page that
says why and a JSON file with all numbers. Candidates that the target refuses are left out. Each
is decoded in turn with plain decoding, prompt by prompt; the better half goes on, to more prompts
(successive halving). A third of the prompts is kept apart: on them the choice is measured once
more, and if it is not faster than plain decoding there, `none` is written.
"""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.measuring.halving import Tally
    from experiments.measuring.ways import Ours

KEPT_APART = 3  # every third prompt
HALVING = 0.7  # of the budget; the rest is for the prompts that are kept apart


@dataclass
class Tune:
    """python -m experiments.tune: the fastest drafter and shape for a target, prompts and this
    machine."""

    target: str = "demo"
    prompts: str = "demo"  # JSON lines
    draft: str | None = "demo-draft"  # the draft model of small_model; null: none
    # drafters with bundled heads that are tried
    heads: list[str] = field(default_factory=lambda: ["eagle", "eagle3", "medusa"])
    budget: str = "5min"  # 90s, 5min
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6, 1.0])  # taken in turn
    max_new_tokens: int = 96
    limit: int | None = 24  # prompts
    dtype: str | None = None
    seed: int = 0
    threads: int | None = None
    output: str = "tuned.yaml"


def seconds_of(budget: str) -> float:
    """Raises ValueError for what is no time."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)\s*", str(budget))
    if not found or float(found[1]) <= 0:
        raise ValueError(f"budget must be a time such as 90s or 5min, got {budget!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2][0]]


def candidates(wanted: Tune) -> dict[str, dict[str, Any]]:
    """By title: a drafter's settings."""
    lookups: list[dict[str, Any]] = [
        {"name": "ngram"},
        {"name": "ngram", "length": 5},
        {"name": "suffix"},
        {"name": "suffix", "nodes": 8},
        {"name": "suffix", "factor": 1.0, "offset": 0.0, "min_prob": 0.1},
        {"name": "recycle"},
        {"name": "layer_skip"},
        {"name": "early_exit"},
        {"name": "auto"},
    ]
    small: dict[str, Any] = {"name": "small_model", "model": wanted.draft}
    models = [
        *({**small, "depth": depth} for depth in (2, 3, 4, 6)),
        {**small, "depth": 4, "draw": "ranked", "branching": 4, "nodes": 12},
        {
            "name": "portfolio",
            "members": [{"name": "ngram"}, {"name": "suffix"}, {**small, "depth": 4}],
        },
    ]
    heads = [
        settings
        for name in wanted.heads
        for settings in (
            [{"name": name}]
            if name == "medusa"
            else [{"name": name}, {"name": name, "depth": 3, "nodes": 8}]
        )
    ]
    found = [*lookups, *(models if wanted.draft else []), *heads]
    return {title(each): each for each in found}


def title(settings: Mapping[str, Any]) -> str:
    inner = [title(each) for each in settings.get("members", ())]
    rest = [f"{k}={v}" for k, v in settings.items() if k not in ("name", "model", "members")]
    return " ".join([settings["name"], *rest, *(["of " + ", ".join(inner)] if inner else [])])


def usable(wanted: Tune, target: Any) -> "tuple[dict[str, Ours], dict[str, str]]":
    """The candidates that the target takes, and why it does not take the others."""
    from experiments.measuring.lineup import make_drafter
    from experiments.measuring.ways import Ours
    from experiments.study.schema import Target

    found: dict[str, Ours] = {}
    refused: dict[str, str] = {}
    about = Target(wanted.target, dtype=wanted.dtype)
    for name, settings in {"none": {"name": "none"}, **candidates(wanted)}.items():
        try:
            drafter = make_drafter(settings, about)
            Ours(target, drafter).run([[0, 0]], [0], 1)  # refuses what does not go together
            found[name] = Ours(target, drafter, {"seed": wanted.seed})
        except (ValueError, OSError) as reason:
            refused[name] = str(reason)
            print(f"tune: {name} is left out: {reason}", file=sys.stderr)
    return found, refused


def parts(prompts: int) -> tuple[list[int], list[int]]:
    """Numbers of the prompts that are tuned on, and of those that judge the choice."""
    apart = range(KEPT_APART - 1, prompts, KEPT_APART)
    return [number for number in range(prompts) if number not in apart], list(apart)


def in_turn(prompts: int, temperatures: Sequence[float]) -> dict[int, float]:
    """The temperature of each prompt. Both parts have all of them."""
    return {
        number: temperatures[place % len(temperatures)]
        for part in parts(prompts)
        for place, number in enumerate(part)
    }


def main(wanted: Tune) -> None:
    from math import exp

    from experiments import prompts
    from experiments.measuring.halving import Tally, halve, measured
    from experiments.measuring.intervals import median_interval
    from experiments.measuring.play import Play
    from experiments.measuring.ways import Sample, load
    from experiments.system.libraries import quiet_transformers, set_threads

    seconds, began = seconds_of(wanted.budget), time.perf_counter()
    quiet_transformers()
    set_threads(wanted.threads)
    target = load(wanted.target, dtype=wanted.dtype)
    set_threads(wanted.threads, target)
    read = prompts.read("jsonl", wanted.prompts, category="category", limit=wanted.limit)
    if len(read) < KEPT_APART:
        raise ValueError(
            f"{wanted.prompts} has {len(read)} prompts; at least {KEPT_APART} are needed, since "
            "every third judges the choice"
        )
    play = Play(read, target, None, 1, wanted.max_new_tokens)
    given = play.all()
    ways, refused = usable(wanted, target)
    tuning, apart = parts(len(given))
    temperature = in_turn(len(given), wanted.temperatures)

    def decode(way: str, prompt: int) -> Sample:
        return ways[way].at(temperature[prompt])(*given[prompt], wanted.max_new_tokens)

    for way in ways:  # what is slow once
        ways[way](*given[0], 8)
    names = [way for way in ways if way != "none"]
    left, tallies = halve(names, tuning, decode, HALVING * seconds - (time.perf_counter() - began))
    judged = {left[0]: Tally()}
    for number in apart:
        if time.perf_counter() - began > seconds and judged[left[0]].gains:
            break
        measured([left[0]], [number], decode, judged)
    interval = median_interval([exp(gain) for gain in judged[left[0]].gains.values()])
    pays = interval.median > 1
    winner = left[0] if pays else "none"
    write(wanted, winner, left, tallies, judged[left[0]], interval, refused)


def write(
    wanted: Tune,
    winner: str,
    left: "list[str]",
    tallies: "dict[str, Tally]",
    judged: "Tally",
    interval: Any,
    refused: Mapping[str, str],
) -> None:
    import yaml

    from experiments.report.page import render
    from experiments.system.files import write_json, write_text
    from experiments.system.surroundings import surroundings
    from specdec.registry import described

    settings = {"none": {"name": "none"}, **candidates(wanted)}[winner]
    path = Path(wanted.output)
    best, spread = tallies[left[0]], interval.text(unit="x")
    said = (
        f"{left[0]}: predicted {best.predicted:.2f}x, measured on {len(best.gains)} prompts "
        f"{best.speed_up:.2f}x, on {len(judged.gains)} that were kept apart {spread}, "
        "against plain decoding"
    )
    if winner == "none":
        said += "; it does not pay there, so plain decoding is what is written"
    plain = {**described("drafter", settings["name"]), **settings}
    plain.pop("name")
    head = (
        f"# python -m experiments.tune target={wanted.target} prompts={wanted.prompts}\n# {said}\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, head + yaml.safe_dump(dict(plain), sort_keys=False))
    numbers = {
        "chosen": winner,
        "drafter": settings,
        "predicted": best.predicted,
        "measured": asdict(interval),
        "candidates": {
            name: {**asdict(tally), "speed_up": tally.speed_up, "predicted": tally.predicted}
            for name, tally in tallies.items()
        },
        "left_out": dict(refused),
        "config": asdict(wanted),
        **asdict(surroundings()),
    }
    write_json(path.with_suffix(".json"), numbers)
    command = f"python -m experiments.tune target={wanted.target} prompts={wanted.prompts}"
    page = render("tuned", said, sections(tallies, refused), command)
    write_text(path.with_suffix(".html"), page)
    print(f"{said}\n{path}, {path.with_suffix('.html')}, {path.with_suffix('.json')}")


def sections(tallies: "dict[str, Tally]", refused: Mapping[str, str]) -> "list[Any]":
    """Of the page: all candidates, and where each lies between cost and tau."""
    import pandas as pd

    from experiments.report.looks import Drawn, panels
    from experiments.report.page import Section
    from experiments.report.tables import Told

    order = sorted(tallies, key=lambda name: (-len(tallies[name].gains), -tallies[name].score))
    raw = pd.DataFrame(
        {
            "method": order,
            "prompts": [len(tallies[name].gains) for name in order],
            "tau": [_mean(tallies[name].tau) for name in order],
            "needs": [_mean(tallies[name].relative) for name in order],
            "predicted": [tallies[name].predicted for name in order],
            "measured": [tallies[name].speed_up for name in order],
        }
    )
    text = raw.copy()
    for name in ("tau", "needs", "predicted", "measured"):
        text[name] = [f"{value:.2f}" for value in raw[name]]
    caption = (
        "needs: a round's time in plain rounds, the tau from which drafts pay. Predicted: tau / "
        "needs. Measured: the geometric mean over prompts. A candidate that decoded few prompts "
        "was left behind early."
    )
    figure, (axes,) = panels(1, 1, 3.2)
    axes.scatter(raw["needs"], raw["tau"])
    for _, row in raw.iterrows():
        axes.annotate(row["method"], (row["needs"], row["tau"]), fontsize=6)
    most = float(max(raw["needs"].max(), raw["tau"].max()))
    axes.plot([1, most], [1, most], linewidth=0.8)
    axes.set_xlabel("a round's time, in plain rounds")
    axes.set_ylabel("tau")
    drawn = Drawn(
        figure, "Cost and tau", "Above the line a candidate is faster than plain decoding."
    )
    notes = [f"{name} was left out: {reason}" for name, reason in refused.items()]
    table = Told("Candidates", text, raw, caption)
    return [Section("Candidates", {"candidates": table}, {"cost-tau": drawn}, notes)]


def _mean(values: "list[float]") -> float:
    return sum(values) / max(1, len(values))


if __name__ == "__main__":
    start(main, Tune)
