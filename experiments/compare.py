"""Two studies side by side: runs of one name paired, differences paired by prompt with intervals, and what changed in the
configuration.

python -m experiments.compare STUDY_A STUDY_B
python -m experiments.compare demo other root=multirun sweep=latest
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from experiments.collect import markdown, printable
from experiments.measuring.intervals import Interval, difference_interval, ratio_interval
from experiments.report import frames
from experiments.report.knobs import flat, told_apart
from experiments.study import studies
from experiments.terminal import options

Result = dict[str, Any]
SAME = ("target", "drafter", "temperature", "batch")  # what two runs must share to be paired
TOLD_APART = ("verifier", "settings")  # where that is not enough
LEGEND = (
    "tau: all prompts pooled. difference: B - A per prompt, the median and its 95% bootstrap interval over the prompts that both "
    "runs decoded. speed-up: over the baseline that both runs share, each in its own process. ratio: B / A per prompt (or batch), "
    "likewise. A difference whose interval holds 0, or a ratio whose interval holds 1, is none."
)


@dataclass
class Compare:
    """python -m experiments.compare STUDY_A STUDY_B: paired differences between two studies."""

    root: str = "multirun"
    sweep: str = "latest"
    output: str = "outputs/compare"


def pairs(first: list[Result], second: list[Result]) -> tuple[list[tuple[Result, Result]], list[str]]:
    """Runs of the same target, drafter, temperature and batch; and the names of those that only one study has."""
    found, alone = [], []
    left = list(second)
    for result in first:
        same = [other for other in left if _key(other, SAME) == _key(result, SAME)]
        closer = [other for other in same if _key(other, TOLD_APART) == _key(result, TOLD_APART)] or same
        if closer:
            found.append((result, closer[0]))
            left.remove(closer[0])
        else:
            alone.append(f"only in A: {_name(result)}")
    return found, [*alone, *(f"only in B: {_name(other)}" for other in left)]


def _key(result: Result, names: tuple[str, ...]) -> tuple[Any, ...]:
    key = frames.key(result)
    return tuple(key[name] for name in names)


def _name(result: Result) -> str:
    key = frames.key(result)
    return f"{key['drafter']} on {key['target']}, {key['verifier']}, T = {key['temperature']:g}, batch {key['batch']}"


def differences(paired: list[tuple[Result, Result]]) -> pd.DataFrame:
    """One row per pair: tau and speed-up of both, the paired difference and the paired ratio."""
    rows = []
    for first, second in paired:
        a, b = first["ways"]["method"], second["ways"]["method"]
        key = frames.key(first)
        verifier = key["verifier"] if a["verifier"] == b["verifier"] else f"{a['verifier']} -> {b['verifier']}"
        row: dict[str, Any] = {name: key[name] for name in ("target", "drafter", "temperature")} | {
            "verifier": verifier
        }
        row |= {"tau_a": a["tau"], "tau_b": b["tau"], "tau_difference": _tau(a, b)}
        shared = [name for name in a["speedup"] if name in b["speedup"]]
        if shared:
            ours, theirs = (each["speedup"][shared[0]] for each in (a, b))
            row |= {"baseline": shared[0], "speedup_a": ours["median"], "speedup_b": theirs["median"]}
            if len(ours["per_batch"]) == len(theirs["per_batch"]):
                row["speedup_ratio"] = ratio_interval(theirs["per_batch"], ours["per_batch"])
        rows.append(row)
    return pd.DataFrame(rows)


def _tau(a: dict[str, Any], b: dict[str, Any]) -> Interval | None:
    """Paired by prompt and turn, over those that both have."""
    mine, theirs = ({(entry["prompt"], entry["turn"]): entry["tau"] for entry in each["per_prompt"]} for each in (a, b))
    both = sorted(mine.keys() & theirs.keys())
    return difference_interval([theirs[place] for place in both], [mine[place] for place in both]) if both else None


def changes(paired: list[tuple[Result, Result]]) -> list[str]:
    """What differs between the two sides of any pair: settings, versions, machine, commit."""
    found: dict[str, None] = {}
    for first, second in paired:
        ours, theirs = (_circumstances(each) for each in (first, second))
        for path in dict.fromkeys([*ours, *theirs]):
            before, after = ours.get(path, "-"), theirs.get(path, "-")
            if before != after:
                found[f"{path}: {before} -> {after}"] = None
    return list(found)


def _circumstances(result: Result) -> dict[str, Any]:
    told = {path: value for path, value in flat(result["config"]).items() if path not in ("study", "progress")}
    told |= flat(result["versions"], "versions") | flat(result["machine"], "machine") | {"threads": result["threads"]}
    return told | flat(result["git"] or {}, "git")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    shown = {}
    for name in table.columns:
        shown[name.replace("_", " ")] = [_text(value) for value in table[name]]
    return pd.DataFrame(shown)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> None:
    names = [argument for argument in sys.argv[1:] if "=" not in argument and not argument.startswith("-")]
    wanted = options.parse(Compare, [argument for argument in sys.argv[1:] if argument not in names])
    if len(names) != 2:
        sys.exit(f"two studies are compared: python -m experiments.compare STUDY_A STUDY_B; got {len(names)} names")
    try:
        both = [studies.read(name, wanted.root, wanted.sweep) for name in names]
    except ValueError as error:
        sys.exit(str(error))
    paired, alone = pairs(*(told_apart(study.results) for study in both))
    if not paired:
        sys.exit(
            "no run of one study has its like in the other: same target, drafter, temperature and batch\n"
            + "\n".join(alone)
        )
    text, changed = readable(differences(paired)), changes(paired)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(printable(text, f"A = {names[0]}, B = {names[1]}", console.width))
    console.print(LEGEND, style="dim")
    for line in ["changed:", *(changed or ["nothing"])]:
        console.print(line, markup=False)
    for line in alone:
        console.print(line, style="yellow", markup=False)
    folder = Path(wanted.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{names[0]}_{names[1]}.md"
    notes = [
        LEGEND,
        "",
        "Changed:",
        *(f"- {line}" for line in changed or ["nothing"]),
        *(f"- {line}" for line in alone),
    ]
    path.write_text(markdown(text) + "\n" + "\n".join(notes) + "\n", encoding="utf-8")
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
