"""What a way to decode a batch of prompts is, and ours. theirs.py has transformers' own."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import specdec
from experiments.measuring.memory import Peak
from specdec.metrics import Report

METHOD, AGAIN, COLD = (
    "method",
    "again",
    "cold",
)  # again: the first baseline; cold: the method, forgetting between prompts


@dataclass(frozen=True)
class Sample:
    """A batch of prompts, decoded in one way."""

    tokens: list[list[int]]  # what was added, per prompt
    wall_seconds: float  # the whole call, prefill and all
    target_seconds: float | None = None  # inside the target's forward passes; ours only, as are the next two
    draft_seconds: float | None = None  # inside the draft model's
    report: Report | None = None
    peak: Peak | None = None  # of memory, during the call


class Way(Protocol):
    @property
    def target(self) -> specdec.TransformersLM: ...

    def __call__(self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int) -> Sample: ...


@dataclass(frozen=True)
class Ours:
    """specdec.generate with one drafter."""

    target: specdec.TransformersLM
    drafter: specdec.Drafter
    options: Mapping[str, Any] = field(default_factory=dict)  # of specdec.generate: verifier, sampling, seed ...
    cold: bool = False  # the drafter forgets earlier prompts before each call

    def __call__(self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int) -> Sample:
        if self.cold:
            self.drafter.forget()
        began = time.perf_counter()
        out = specdec.generate(
            self.target,
            prompts,
            drafter=self.drafter,
            request_ids=request_ids,
            max_new_tokens=max_new_tokens,
            **self.options,
        )
        wall = time.perf_counter() - began
        draft_seconds = getattr(getattr(self.drafter, "model", None), "forward_seconds", 0.0)
        tokens = [row.tolist() for row in out.tokens]
        return Sample(tokens, wall, self.target.forward_seconds, draft_seconds, out.report)


@cache
def load(name: str, **settings: Any) -> specdec.TransformersLM:
    """`specdec.load`, once per process and settings: the jobs of a sweep share their models."""
    return specdec.load(name, **settings)
