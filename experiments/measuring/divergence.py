"""Where greedy outputs of a run part from a baseline's: token index, both tokens, the margin between them, tie or fault."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from experiments.certificates.greedy import Divergence, Judge, first_difference
from experiments.measuring.play import Played
from specdec import TransformersLM


def divergence(played: Sequence[Played], target: TransformersLM, baseline: str, judged: bool = True) -> dict[str, Any]:
    """Counts, and one entry per prompt and turn that differs. What follows a difference, later turns included, is not
    comparable. `judged`: whether the choice is the largest logit, so that a margin means something."""
    compared, cases = 0, []
    for one in played:
        ours, theirs = one.samples["method"].tokens, one.samples[baseline].tokens
        rows = zip(one.prompts, one.given["method"], one.given[baseline], ours, theirs, strict=True)
        for prompt, given, to_baseline, a, b in rows:
            if list(given) != list(to_baseline):
                continue
            compared += 1
            index = first_difference(a, b)
            if index is not None:
                cases.append((prompt.index, one.turn, list(given), a, b, index))
    found: list[tuple[int, Divergence]] = []
    rounding = None
    if cases and judged:
        judge = Judge(target, [[*given, *b] for _, _, given, _, b, _ in cases])
        rounding = judge.rounding
        found = [(turn, judge(number, given, a, b, index)) for number, turn, given, a, b, index in cases]
    elif cases:
        for number, turn, _, a, b, index in cases:
            tokens = (row[index] if index < len(row) else None for row in (a, b))
            found.append((turn, Divergence(number, index, *tokens, None, "unjudged")))
    return {
        "compared": compared,
        "diverging": len(found),
        "ties": sum(one.kind == "tie" for _, one in found),
        "faults": sum(one.kind == "fault" for _, one in found),
        "rounding": rounding,
        "found": [{"turn": turn, **asdict(one)} for turn, one in found],
    }
