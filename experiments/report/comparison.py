"""Runs in pairs: of two studies, or the methods of one; differences paired by prompt, and what
changed in the configuration."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.measuring.intervals import (
    FEWEST,
    difference_interval,
    holm,
    ratio_interval,
    sign_flip,
)
from experiments.report import frames
from experiments.report.knobs import flat
from experiments.study.outcome import OurResult
from experiments.study.result import Result

Pair = tuple[Result, Result]
# what two runs of two studies must share to be paired
SAME = ("target", "drafter", "temperature", "batch")
TOLD_APART = ("verifier", "settings")  # where that is not enough
DECODED_ALIKE = ("target", "temperature", "batch")  # what two methods of one study must share
LEGEND = (
    "tau: all prompts pooled. difference: B - A per prompt, the median and its 95% bootstrap "
    "interval over the prompts that both runs decoded. speed-up: over the baseline that both runs "
    "share, each in its own process. ratio: B / A per prompt (or batch), likewise. Where the "
    "interval of a difference holds 0, or that of a ratio 1, none is shown. p: of no difference, a "
    "sign-flip test over the same pairs, adjusted for all tests of this table (Holm)."
)


def between(first: Sequence[Result], second: Sequence[Result]) -> tuple[list[Pair], list[str]]:
    """Runs of the same target, drafter, temperature and batch in two studies; and the names of
    those that only one has."""
    found, alone = [], []
    left = list(second)
    for result in first:
        same = [other for other in left if _key(other, SAME) == _key(result, SAME)]
        closer = [
            other for other in same if _key(other, TOLD_APART) == _key(result, TOLD_APART)
        ] or same
        if closer:
            found.append((result, closer[0]))
            left.remove(closer[0])
        else:
            alone.append(f"only in A: {name(result)}")
    return found, [*alone, *(f"only in B: {name(other)}" for other in left)]


def within(results: Sequence[Result]) -> list[Pair]:
    """Every two runs of one study that decode the same prompts alike (target, temperature, batch,
    length)."""

    def asked(result: Result) -> tuple[Any, ...]:
        return _key(result, DECODED_ALIKE), result.config.prompts, result.config.max_new_tokens

    return [
        (one, other)
        for one, other in itertools.combinations(results, 2)
        if asked(one) == asked(other)
    ]


def _key(result: Result, names: tuple[str, ...]) -> tuple[Any, ...]:
    key = frames.key(result)
    return tuple(key[name] for name in names)


def name(result: Result) -> str:
    key = frames.key(result)
    pair = f"{key['drafter']} on {key['target']}, {key['verifier']}"
    return f"{pair}, T = {key['temperature']:g}, batch {key['batch']}"


def differences(pairs: Sequence[Pair]) -> pd.DataFrame:
    """One row per pair: tau and speed-up of both, the paired difference and the paired ratio, each
    with its adjusted p."""
    rows, tests = [], []
    for first, second in pairs:
        a, b = first.method, second.method
        row: dict[str, Any] = _names(first, second) | {"tau_a": a.tau, "tau_b": b.tau}
        taus = _taus(a, b)
        if taus:
            row |= {"tau_difference": difference_interval(*taus), "tau_p": None}
            tests.append((row, "tau_p", np.subtract(*taus)))
        shared = [baseline for baseline in a.speedup if baseline in b.speedup]
        if shared:
            ours, theirs = (way.speedup[shared[0]] for way in (a, b))
            row |= {"baseline": shared[0], "speedup_a": ours.median, "speedup_b": theirs.median}
            if len(ours.per_batch) == len(theirs.per_batch):
                row |= {
                    "speedup_ratio": ratio_interval(theirs.per_batch, ours.per_batch),
                    "speedup_p": None,
                }
                tests.append(
                    (row, "speedup_p", np.log(np.divide(theirs.per_batch, ours.per_batch)))
                )
        rows.append(row)
    tests = [test for test in tests if len(test[2]) >= FEWEST]
    for (row, column, _), p_value in zip(
        tests, holm([sign_flip(values.tolist()) for *_, values in tests]), strict=True
    ):
        row[column] = p_value
    return pd.DataFrame(rows, columns=list(dict.fromkeys(column for row in rows for column in row)))


def _names(first: Result, second: Result) -> dict[str, Any]:
    """What the two have in common, and what not as "A -> B"."""
    one, other = frames.key(first), frames.key(second)
    return {
        column: one[column] if one[column] == other[column] else f"{one[column]} -> {other[column]}"
        for column in ("target", "drafter", "temperature", "verifier")
    }


def _taus(a: OurResult, b: OurResult) -> tuple[list[float], list[float]] | None:
    """Of B and of A, paired by prompt and turn, over those that both have."""
    mine, theirs = (
        {(entry.prompt, entry.turn): entry.tau for entry in way.per_prompt} for way in (a, b)
    )
    both = sorted(mine.keys() & theirs.keys())
    return ([theirs[place] for place in both], [mine[place] for place in both]) if both else None


def changes(pairs: Sequence[Pair]) -> list[str]:
    """What differs between the two sides of any pair: settings, versions, machine, commit."""
    found: dict[str, None] = {}
    for first, second in pairs:
        ours, theirs = (_circumstances(each) for each in (first, second))
        for path in dict.fromkeys([*ours, *theirs]):
            before, after = ours.get(path, "-"), theirs.get(path, "-")
            if before != after:
                found[f"{path}: {before} -> {after}"] = None
    return list(found)


def _circumstances(result: Result) -> dict[str, Any]:
    found = {
        path: value
        for path, value in flat(result.config).items()
        if path not in ("study", "progress")
    }
    found |= (
        flat(result.versions, "versions")
        | flat(result.machine, "machine")
        | {"threads": result.threads}
    )
    return found | flat(result.git or {}, "git")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The same as text. Columns: "T", "tau a", "tau difference" ..."""
    text = {column: [_text(column, value) for value in table[column]] for column in table}
    return pd.DataFrame(text).rename(
        columns=lambda name: "T" if name == "temperature" else name.replace("_", " ")
    )


def _text(column: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2g}" if column.endswith("_p") or column == "temperature" else f"{value:.2f}"
