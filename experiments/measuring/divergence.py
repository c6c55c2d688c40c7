"""Where greedy outputs of a run part from a baseline's: token index, both tokens, the margin
between them, tie or fault."""

from collections.abc import Sequence
from dataclasses import asdict

from experiments.certificates.greedy import Divergence, Judge, first_difference
from experiments.measuring.play import Played
from experiments.measuring.ways import METHOD
from experiments.study.outcome import Divergences, Diverging
from specdec import TransformersLM


def divergences(
    played: Sequence[Played], target: TransformersLM, baseline: str, judged: bool = True
) -> Divergences:
    """One entry per prompt and turn that differs. What follows a difference, later turns included,
    is not comparable. `judged`: whether the choice is the largest logit, so that a margin means
    something."""
    compared, cases = 0, []
    for one in played:
        ours, theirs = one.samples[METHOD].tokens, one.samples[baseline].tokens
        rows = zip(one.prompts, one.given[METHOD], one.given[baseline], ours, theirs, strict=True)
        for prompt, given, to_baseline, a, b in rows:
            if list(given) != list(to_baseline):
                continue
            compared += 1
            index = first_difference(a, b)
            if index is not None:
                cases.append((prompt.index, one.turn, list(given), a, b, index))
    found: list[Diverging] = []
    rounding = None
    if cases and judged:
        judge = Judge(target, [[*given, *b] for _, _, given, _, b, _ in cases])
        rounding = judge.rounding
        for number, turn, given, a, b, index in cases:
            found.append(Diverging(turn=turn, **asdict(judge(number, given, a, b, index))))
    else:
        for number, turn, _, a, b, index in cases:
            tokens = [row[index] if index < len(row) else None for row in (a, b)]
            found.append(
                Diverging(turn=turn, **asdict(Divergence(number, index, *tokens, None, "unjudged")))
            )
    return Divergences(
        compared=compared,
        diverging=len(found),
        ties=sum(one.kind == "tie" for one in found),
        faults=sum(one.kind == "fault" for one in found),
        rounding=rounding,
        found=found,
    )
