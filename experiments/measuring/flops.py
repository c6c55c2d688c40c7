"""Floating-point operations of drafting and of scoring, counted by torch over a few rounds (matrix
products and attention)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from experiments.measuring.ways import Ours
from experiments.study.outcome import Operations

TOKENS = 24  # counting is slow, and rounds resemble one another


def per_token(way: Ours, prompts: Sequence[Sequence[int]], request_ids: Sequence[int]) -> Operations | None:
    """Operations per kept token of the drafter (`draft`) and of the target (`target`), the first
    round left out, in which drafters read the prompt. None where there is no second round."""
    draft: list[int] = []
    target: list[int] = []
    with _counted(way.drafter, "propose", draft), _counted(way.target, "score", target):
        sample = way(prompts, request_ids, TOKENS)
    assert sample.report is not None
    kept = sum(int(step.kept.sum()) for step in sample.report.steps[1:])
    return Operations(draft=sum(draft[1:]) / kept, target=sum(target[1:]) / kept) if kept else None


@contextmanager
def _counted(thing: Any, name: str, found: list[int]) -> Iterator[None]:
    """While inside, every call of the method `name` appends its operations to `found`."""
    method = getattr(thing, name)

    def call(*arguments: Any, **options: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            out = method(*arguments, **options)
        found.append(counter.get_total_flops())
        return out

    setattr(thing, name, call)
    try:
        yield
    finally:
        delattr(thing, name)
