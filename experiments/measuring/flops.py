"""Floating-point operations of drafting and of scoring, counted by torch over a few rounds (matrix
products and attention)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.measuring.ways import Ours
from experiments.study.outcome import Operations
from specdec.measuring.clock import Clock

TOKENS = 24  # counting is slow, and rounds resemble one another


class Counter(Clock):
    """A clock that counts operations by phase, too."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.found: dict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        with FlopCounterMode(display=False) as counter, super().__call__(phase):
            yield
        self.found[phase] += counter.get_total_flops()


def per_token(
    way: Ours, prompts: Sequence[Sequence[int]], request_ids: Sequence[int]
) -> Operations:
    """Operations per kept token of the drafter (`draft`) and of the target (`target`), without the
    prefill."""
    run = way.run(prompts, request_ids, TOKENS)
    run.recorder.clock = counter = Counter(way.target.device)
    kept = sum(int(step.kept.sum()) for step in run.rounds())
    return Operations(draft=counter.found["draft"] / kept, target=counter.found["score"] / kept)
