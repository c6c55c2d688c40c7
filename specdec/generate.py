"""The loop: propose, score, verify, commit. `generate` runs it to the end, `stream` hands out what each round adds.

It names no drafter, no verifier and no model family.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import LongTensor

from specdec.emission import Emission, TextStream
from specdec.interfaces import Last, OnHost, Scores, State, Verifier
from specdec.load import Loadable
from specdec.metrics import Clock, Report, Step
from specdec.pairing import name_of, pair
from specdec.reading import Reading
from specdec.requests import Prompts, Request, prepare, right_padded
from specdec.sampling import Laws
from specdec.tree import TokenTree


@dataclass(frozen=True)
class Event:
    """What one round added to one row."""

    row: int
    tokens: list[int]
    text: str | None  # whole characters only; None for a target without a tokenizer
    num_accepted: int  # how many of the tokens were drafted; the last one beyond them is the target's own
    finish_reason: str | None


@dataclass(frozen=True)
class Output:
    """What `generate` returns."""

    texts: list[str] | None
    tokens: list[LongTensor]
    finish_reasons: list[str]
    steps: list[Step]
    report: Report


def generate(target: Loadable, prompts: Prompts, *, progress: bool = False, **options: Any) -> Output:
    """Decode prompts speculatively. Lossless verifiers give exactly the law of plain sampling from the target.

    target: whatever `load` takes or returns. prompts: str, list of str, token ids, list of token ids (ragged is fine).
    options: drafter="ngram", verifier="auto", max_new_tokens=128, temperature=0.0, top_k=None, top_p=None, min_p=None,
    repetition_penalty=1.0, logits_processors=(), stop=(), ignore_eos=False, seed=0, request_ids=None, chance=None,
    allow_lossy=False. `tokens` end with EOS or with the token that completes a stop string; `texts` end before it.

    Raises ValueError for bad input before anything is computed, and for a drafter or model that breaks its contract.
    """
    run = Run(prepare(target, prompts, **options))
    run.finish(progress)
    texts = None
    if run.emissions[0].text is not None:
        for emission in run.emissions:
            emission.fresh_text()
        texts = [emission.text.text[: emission.text.end] for emission in run.emissions if emission.text]
    tokens = [torch.tensor(emission.tokens, dtype=torch.long) for emission in run.emissions]
    reasons = [str(emission.finish_reason) for emission in run.emissions]
    return Output(texts, tokens, reasons, run.steps, run.report)  # type: ignore[arg-type]


def stream(target: Loadable, prompts: Prompts, **options: Any) -> Iterator[Event]:
    """As `generate`, but yields an Event per live row and round as soon as it is decided."""
    run = Run(prepare(target, prompts, **options))
    for step in run.rounds():
        yield from run.events(step)


class Run:
    """One call of generate, from prefill to the last row's end."""

    def __init__(self, request: Request) -> None:
        self.request, self.target, self.drafter = request, request.target, request.drafter
        self.clock = Clock(self.target.device)
        self.steps: list[Step] = []
        tokenizer = getattr(self.target, "tokenizer", None)
        self.emissions = [
            Emission(
                request.max_new_tokens,
                request.eos_ids,
                TextStream(tokenizer, prompt, request.stop) if tokenizer is not None else None,
            )
            for prompt in request.prompts
        ]
        self.verifier: Verifier | None = None
        self.prefill_seconds = self.first_token_seconds = 0.0
        self.began, self.ended = time.perf_counter(), 0.0
        self.finished = [0.0] * len(request.prompts)
        self.cache_bytes: dict[str, int] = {}

    @torch.inference_mode()
    def rounds(self) -> Iterator[Step]:
        target, drafter, clock = self.target, self.drafter, self.clock
        state = self._prefill()
        while any(state.on_host.live):
            began = clock.now()
            draws = self.request.chance.round(state)
            with clock("draft"):
                trees = drafter.propose(state, draws)
                self._check_size(trees)
            with clock("score"):
                scores = target.score(trees, taps=drafter.taps)
            with clock("verify"):
                laws = Laws(scores.logits, trees, state)
                reading = Reading(self.verifier.verify(trees, laws, draws), trees, laws, state)  # type: ignore[union-attr]
                self._check(reading, state)
            with clock("commit"):
                target.keep(reading.verdict.path, reading.keep)
                state, kept = self._commit(state, trees, scores, reading)
            yield self._step(reading, kept, clock.now() - began)
        self.ended = time.perf_counter()

    def finish(self, progress: bool = False) -> None:
        """All rounds."""
        with _bar(self, progress) as advance:
            for step in self.rounds():
                advance(int(step.kept.sum()))

    def _prefill(self) -> State:
        """Open the cache, score prompt[:-1], let the drafter begin, and settle who verifies."""
        request, target, device = self.request, self.target, self.target.device
        prompts = request.prompts
        lengths = [len(prompt) for prompt in prompts]
        tokens = right_padded(prompts, max(lengths) + request.max_new_tokens, device)
        target.open(len(prompts), request.slots)
        self.drafter.meet(target)
        before, taps = self.clock.now(), None
        if max(lengths) > 1:
            counts = torch.tensor(lengths) - 1
            taps = target.read(tokens[:, : max(lengths) - 1], counts, self.drafter.taps).taps
        state = State(
            OnHost(lengths, [True] * len(prompts), [request.max_new_tokens] * len(prompts)),
            tokens,
            torch.tensor(request.request_ids, device=device),
            request.sampling,
            Last(None, None, taps),
        )
        self.drafter.begin(target, state)
        self.verifier = pair(
            self.drafter, request.verifier, request.sampling, request.chance, target.vocabulary, request.allow_lossy
        )
        self.prefill_seconds = self.clock.now() - before
        self.cache_bytes = {"target": target.cache_bytes, "drafter": getattr(self.drafter, "cache_bytes", 0)}
        return state

    def _check_size(self, trees: TokenTree) -> None:
        if trees.num_nodes > self.drafter.max_nodes:
            raise ValueError(
                f"drafter {name_of(self.drafter)!r} returned a tree of {trees.num_nodes} nodes but declares "
                f"max_nodes={self.drafter.max_nodes} (root included)"
            )
        if trees.law is not self.drafter.law and trees.num_nodes > 1:
            raise ValueError(
                f"drafter {name_of(self.drafter)!r} declares siblings {self.drafter.law.name} but returned a "
                f"{trees.law.name} tree; the rule of acceptance was chosen for the former"
            )

    def _check(self, reading: "Reading", state: State) -> None:
        """Faults of content, read together with the verdict; only live rows count."""
        for row in np.flatnonzero(state.on_host.live):
            where = f"row {row} (request {self.request.request_ids[row]})"
            if reading.tree_faults[row]:
                raise ValueError(
                    f"malformed tree of drafter {name_of(self.drafter)!r} in {where}: {reading.tree_faults[row]}"
                )
            if reading.faulty[row]:
                raise ValueError(
                    f"the target's logits for prompt {row} (request {self.request.request_ids[row]}), after position "
                    f"{state.on_host.lengths[row] - 1}, are NaN or leave no token possible (a row of -inf); "
                    "check the model's dtype and the logits processors"
                )

    def _commit(self, state: State, trees: TokenTree, scores: Scores, reading: "Reading") -> tuple[State, np.ndarray]:
        """Append what was accepted, cut where a row ends, and freeze rows that are over."""
        host = state.on_host
        rows: list[int] = []
        columns: list[int] = []
        values: list[int] = []
        lengths, live, room = list(host.lengths), list(host.live), list(host.room)
        kept = np.zeros(len(live), dtype=np.int64)
        for row in np.flatnonzero(host.live).tolist():
            emission = self.emissions[row]
            added = emission.add(reading.tokens[row])
            rows += [row] * len(added)
            columns += range(lengths[row], lengths[row] + len(added))
            values += added
            lengths[row] += len(added)
            room[row] -= len(added)
            live[row] = emission.finish_reason is None
            kept[row] = len(added)
        device = state.tokens.device
        place = torch.tensor([rows, columns, values], device=device)
        state.tokens[place[0], place[1]] = place[2]
        taps = None
        if scores.taps is not None:
            on_path = torch.cat([torch.zeros(len(live), 1, dtype=torch.long), reading.verdict.path.clamp(min=0)], 1).to(
                device
            )
            taps = scores.taps[torch.arange(len(live), device=device)[:, None], on_path]
        last = Last(trees, reading.verdict, taps)
        after = OnHost(lengths, live, room)
        return State(after, state.tokens, state.request_ids, state.sampling, last), kept

    def _step(self, reading: "Reading", kept: np.ndarray, seconds: float) -> Step:
        phases = self.clock.take()
        phases["other"] = max(0.0, seconds - sum(phases.values()))
        now = time.perf_counter() - self.began
        if not self.steps:
            self.first_token_seconds = now
        for row in np.flatnonzero(reading.live):
            self.finished[row] = now
        verdict = reading.verdict
        step = Step(
            len(self.steps),
            reading.live,
            reading.parents.astype(np.int16),
            verdict.path.numpy().astype(np.int16),
            verdict.num_accepted.numpy(),
            kept,
            phases,
            reading.counts,
        )
        self.steps.append(step)
        return step

    def events(self, step: Step) -> Iterator[Event]:
        for row in np.flatnonzero(step.live).tolist():
            emission, added = self.emissions[row], int(step.kept[row])
            accepted = min(int(step.num_accepted[row]), added)
            yield Event(row, emission.tokens[-added:], emission.fresh_text(), accepted, emission.finish_reason)

    @cached_property
    def report(self) -> Report:
        assert self.verifier is not None
        return Report(
            self.steps,
            self.prefill_seconds,
            self.ended - self.began,
            self.first_token_seconds,
            self.cache_bytes,
            name_of(self.drafter),
            name_of(self.verifier),
            self.verifier.lossless,
            getattr(self.target, "extra_layers", 0),
            tuple(self.finished),
        )


@contextmanager
def _bar(run: Run, progress: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar over tokens, on standard error; or nothing."""
    if not progress:
        yield lambda tokens: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("tokens", total=run.request.max_new_tokens * len(run.emissions))
        yield lambda tokens: bar.advance(task, tokens)
