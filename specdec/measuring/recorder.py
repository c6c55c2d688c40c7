"""What happens in a run, noted while it happens: steps, times, memory."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from specdec.grammar import Grammars
from specdec.interfaces import CompiledPass, Opened, OpenedCompiled, Session
from specdec.measuring.chosen import Chosen
from specdec.measuring.clock import Clock
from specdec.measuring.report import Nodes, Report, Served, Step
from specdec.outcome import Outcome
from specdec.pricing.decision import Decision

NEVER = Served(0.0, 0.0, 0.0)  # of a prompt that had no seat


class Recorder:
    """Of one run. keeps: steps are kept for the report."""

    def __init__(self, device: torch.device, keeps: bool = True) -> None:
        self.keeps, self.rounds = keeps, 0
        self.clock = Clock(device, self.compiling)
        self._opened: list[OpenedCompiled] = []
        self.steps: list[Step] = []
        self.served: dict[int, Served] = {}  # by the prompt's number
        self.cache_bytes: dict[str, int] = {}
        self.grammars: Grammars | None = None  # of the run's texts
        self.forward_seconds: dict[str, float] = {}
        self._began, self._ended = time.perf_counter(), 0.0

    def watch(self, opened: Sequence[Opened]) -> None:
        """The memories of the run, whose passes may be compiled."""
        self._opened = [one for one in opened if isinstance(one, OpenedCompiled)]

    @property
    def compiled(self) -> list[CompiledPass]:
        return [each for one in self._opened for each in one.compiled]

    def compiling(self) -> float:
        """Seconds so far. All other times leave them out."""
        return sum(each.seconds for one in self._opened for each in one.compiled)

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began - self.compiling()

    def admit(self, prompts: Sequence[int]) -> None:
        """These prompts get their seats now. Those that have lost one were admitted then."""
        now = self.now()
        for prompt in prompts:
            self.served.setdefault(prompt, Served(now, now, now))

    def step(
        self,
        outcome: Outcome,
        kept: np.ndarray,
        prompts: np.ndarray,
        decision: Decision | None = None,
        chosen: Chosen | None = None,
    ) -> Step:
        """A round is over. prompts (B,): whose text each row is."""
        now = self.now()
        prompts = np.where(outcome.live, prompts, -1)
        for prompt in prompts[outcome.live].tolist():
            one = self.served[prompt]
            first = now if one.first_token == one.admitted else one.first_token
            self.served[prompt] = Served(one.admitted, first, now)
        verdict = outcome.verdict
        step = Step(
            self.rounds,
            outcome.live,
            outcome.parents.astype(np.int16),
            verdict.path.astype(np.int16),
            verdict.num_accepted,
            kept,
            self.clock.take(),
            outcome.counts,
            prompts,
            Nodes(**outcome.notes) if outcome.notes else None,
            decision,
            chosen,
        )
        self.rounds += 1
        if self.keeps:
            self.steps.append(step)
        return step

    def end(self, target: Session, opened: Sequence[Opened]) -> None:
        """The run is over; its memory is about to be freed."""
        self._ended = self.now()
        self.cache_bytes = {"target": target.nbytes, "drafter": sum(one.nbytes for one in opened)}
        drafting = sum(one.forward_seconds for one in opened) + target.part_seconds
        self.forward_seconds = {"target": target.forward_seconds, "drafter": drafting}

    def report(
        self,
        prompts: int,
        drafter: str,
        verifier: str,
        lossless: bool,
        extra_layers: int,
        account: dict[str, dict[str, Any]],
    ) -> Report:
        """Of the rounds so far; prompts: how many there are."""
        return Report(
            list(self.steps),
            [self.served.get(prompt, NEVER) for prompt in range(prompts)],
            self._ended or self.now(),
            self.cache_bytes,
            self.forward_seconds,
            drafter,
            verifier,
            lossless,
            extra_layers,
            self.compiled,
            self.grammars.seconds if self.grammars else 0.0,
            account,
        )
