"""What a way to decode a batch of prompts is, and ours. theirs.py has transformers' own."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

import specdec
from experiments.measuring.memory import Peak
from specdec.generate import Run
from specdec.measuring.report import Report
from specdec.requests import prepare

METHOD = "method"
AGAIN = "again"  # the first baseline once more
COLD = "cold"  # the method, its drafter forgetting between prompts


@dataclass(frozen=True)
class Sample:
    """A batch of prompts, decoded in one way."""

    tokens: list[list[int]]  # what was added, per prompt
    wall_seconds: float  # the whole call, prefill and all, but for compiling
    # inside the target's forward passes; ours only, as are the next two
    target_seconds: float | None = None
    draft_seconds: float | None = None  # inside the drafter's
    report: Report | None = None
    peak: Peak | None = None  # of memory, during the call


class Way(Protocol):
    @property
    def target(self) -> specdec.TransformersLM: ...

    def __call__(
        self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int
    ) -> Sample: ...


@dataclass(frozen=True)
class Ours:
    """specdec.generate with one drafter."""

    target: specdec.TransformersLM
    drafter: specdec.Drafter
    # of specdec.generate: verifier, sampling, seed ...
    options: Mapping[str, Any] = field(default_factory=dict)
    cold: bool = False  # the drafter forgets earlier prompts before each call

    def at(self, temperature: float) -> "Ours":
        return replace(self, options={**self.options, "temperature": temperature})

    def __call__(
        self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int
    ) -> Sample:
        if self.cold:
            self.drafter.forget()
        began = time.perf_counter()
        run = self.run(prompts, request_ids, max_new_tokens)
        run.finish()
        out = run.output()
        wall = time.perf_counter() - began - out.report.compile_seconds
        tokens, inside = [row.tolist() for row in out.tokens], out.report.forward_seconds
        return Sample(tokens, wall, inside["target"], inside["drafter"], out.report)

    def run(
        self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int
    ) -> Run:
        """The same call, not begun."""
        asked = prepare(
            self.target,
            prompts,
            drafter=self.drafter,
            request_ids=request_ids,
            max_new_tokens=max_new_tokens,
            **self.options,
        )
        return Run(*asked)


@cache
def load(name: str, **settings: Any) -> specdec.TransformersLM:
    """`specdec.load`, once per process and settings: the jobs of a sweep share their models."""
    return specdec.load(name, **settings)
