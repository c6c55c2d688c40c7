"""What a report holds: sections of tables and figures, each where the study has the data for it."""

from pathlib import Path
from typing import Any

from experiments.report import acceptance, figures, frames, knobs, looks, prediction, tables
from experiments.report.definitions import DEFINITIONS
from experiments.report.looks import Drawn
from experiments.report.page import Section, render, write_figures, write_tables
from experiments.study.outcome import BIN
from experiments.study.result import Result
from experiments.study.studies import Study
from experiments.system.files import write_text

# change no number; classes are left out too: the commit has them
HIDDEN = ("study", "progress", "shards", "shard")


def sections(study: Study, profile: Path | None = None) -> list[Section]:
    """What the study has data for. Raises ValueError where no job has a result."""
    results = study.results
    if not results:
        raise ValueError(
            f"no job of {study.folder} has a result; `python -m experiments.collect` lists why"
        )
    turned_by = knobs.shortened(results)
    results = knobs.told_apart(turned_by)
    table, baselines, still = (
        frames.table(results),
        frames.baselines(results),
        tables.noise(results),
    )
    drafting = [result for result in results if result.method.per_depth]
    found = [Section("Results", {"results": tables.headline(results)})]
    if baselines:
        found[0].figures["speedups"] = figures.speedups(table, baselines, still)
        if len(drafting) > 1:
            found[0].figures["pareto"] = figures.pareto(table, baselines[0], still)
        turned = knobs.drawn(turned_by, baselines[0], still)
        if turned:
            found.append(Section("What the study varies", figures=turned))
    if drafting:
        found.append(_acceptance(drafting, table))
    found.append(_time(results, drafting, profile))
    decided = [result for result in drafting if result.method.expected]
    if decided:
        section = Section("What was expected", {"expected": tables.expected(decided)})
        section.figures["reliability"] = acceptance.reliability(frames.reliability(decided))
        found.append(section)
    banked = [result for result in results if result.method.balance]
    if banked:
        section = Section("What the bank did", {"bank": tables.banks(banked)})
        section.figures["balance"] = figures.balance(frames.balance(banked))
        found.append(section)
    if table["prompts"].max() > 1 and frames.by_category(results)["category"].nunique() > 1:
        parts = frames.by_category(results)
        drawn = {"per_category": figures.per_category(parts, baselines[0] if baselines else "none")}
        found.append(Section("Prompts", {"by_category": tables.category(results)}, drawn))
    found.append(_trust(study, results))
    found.append(Section("Setting", notes=setting(results)))
    found.append(Section("Definitions", terms=DEFINITIONS))
    return found


def _acceptance(drafting: list[Result], table: Any) -> Section:
    section = Section("Acceptance", {"definitions_of_tau": tables.definitions_of_tau(drafting)})
    section.figures["acceptance_heat_map"] = acceptance.heat_map(frames.acceptance(drafting))
    section.figures["acceptance_per_depth"] = acceptance.acceptance_per_depth(
        frames.per_depth(drafting)
    )
    section.figures["accepted_lengths"] = acceptance.accepted_lengths(frames.lengths(drafting))
    if table["temperature"].nunique() > 1:
        section.figures["tau_against_temperature"] = figures.tau_against_temperature(
            frames.table(drafting)
        )
    positions = frames.by_position(drafting)
    if positions["first"].nunique() > 1:
        section.figures["tau_by_position"] = figures.tau_by_position(positions, BIN)
    warm = tables.warmth(drafting)
    if warm is not None:
        section.tables["cold_and_warm"] = warm
    return section


def _time(results: list[Result], drafting: list[Result], profile: Path | None) -> Section:
    section = Section(
        "Time and cost", {"latency": tables.latency(results), "cost": tables.cost(results)}
    )
    section.figures["time_by_phase"] = figures.time_by_phase(frames.phases(results))
    predicted = prediction.predictions(drafting, prediction.read_profile(profile, results))
    if len(predicted):
        section.tables["predicted_and_measured"] = tables.prediction(predicted)
        if "speedup" in predicted:
            section.figures["predicted_and_measured"] = figures.predicted_and_measured(predicted)
    return section


def _trust(study: Study, results: list[Result]) -> Section:
    """What speaks for the results and against them."""
    section = Section("Checks")
    greedy = [found for result in results for found in result.divergence.values()]
    notes = []
    if greedy:
        compared, apart, faults = (
            sum(getattr(one, name) for one in greedy)
            for name in ("compared", "diverging", "faults")
        )
        notes.append(
            f"Greedy outputs against those of the baselines: {compared} compared, {apart} differ, "
            f"{faults} of them faults."
        )
    different = tables.divergence(results)
    if different is not None:
        section.tables["divergence"] = different
    measured = f"{len(results)} of {len(study.jobs)} jobs have a measurement."
    left_out = sorted({one.prompt for result in results for one in result.skipped})
    if left_out:
        notes.append(
            "Prompts left out of at least one run because they do not fit the target's context: "
            f"{len(left_out)} ({', '.join(map(str, left_out))})."
        )
    section.notes = [*notes, measured, *study.notes]
    return section


def setting(results: list[Result]) -> list[str]:
    """Machine, versions and what all runs have in common."""
    each = [knobs.flat(result.effective) for result in results]
    common = {
        name: value
        for name, value in each[0].items()
        if value is not None and all(name in one and one[name] == value for one in each)
    }
    machines = dict.fromkeys(
        f"{result.machine.processor}, cores: {result.machine.cores}, threads: {result.threads}, "
        f"{result.machine.system}"
        for result in results
    )
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in result.versions.items() if version)
        for result in results
    )
    commits = dict.fromkeys(str(result.git or "not a checkout") for result in results)
    shown = [
        f"{name}={value}"
        for name, value in common.items()
        if name not in HIDDEN and "._target_" not in name
    ]
    return [
        f"Machine: {'; '.join(machines)}.",
        f"Versions: {'; '.join(versions)}.",
        f"Code: {'; '.join(commits)}.",
        f"Common to all runs: {', '.join(shown)}.",
    ]


def write(study: Study, folder: Path, profile: Path | None = None) -> Path:
    """The page and everything beside it. Returns the page's path."""
    parts = sections(study, profile)
    drawn: dict[str, Drawn] = {
        name: figure for part in parts for name, figure in part.figures.items()
    }
    write_figures(drawn, folder / "figures")
    write_tables(
        {name: table for part in parts for name, table in part.tables.items()}, folder / "tables"
    )
    prompts = looks.span([result.prompts for result in study.results])
    lead = f"{len(study.results)} runs, {prompts} prompts each. Sweep {', '.join(study.sweeps)}."
    text = render(study.title, lead, parts, f"python -m experiments.report study={study.named}")
    write_text(folder / "index.html", text)
    return folder / "index.html"
