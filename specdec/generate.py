"""The loop: seat, propose, score, verify, commit. `generate` runs it to the end, `stream` yields
what each round adds.

It names no drafter, no verifier and no model family.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import numpy as np
import torch

from specdec.chance import Chance
from specdec.errors import misspelt_arguments_are_named, switch
from specdec.grammar import GrammarChoice
from specdec.groups import Groups
from specdec.interfaces import LanguageModel
from specdec.measuring.recorder import Recorder
from specdec.measuring.report import Report, Step
from specdec.models.load import Loadable
from specdec.output import Event, Output, progress_bar
from specdec.requests import (
    Call,
    DrafterChoice,
    NoHarmChoice,
    Prompts,
    Request,
    VerifierChoice,
    prepare,
)
from specdec.sampling import Processor
from specdec.seats import Seats
from specdec.tickets import Line, Ticket


@misspelt_arguments_are_named
def generate(
    target: Loadable | LanguageModel,
    prompts: Prompts,
    *,
    drafter: DrafterChoice = "ngram",
    verifier: VerifierChoice = "auto",
    no_harm: NoHarmChoice = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    logits_processors: Sequence[Processor] = (),
    grammar: GrammarChoice | Sequence[GrammarChoice] = None,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    seed: int | None = None,
    request_ids: Sequence[int] | None = None,
    chance: Chance | None = None,
    allow_lossy: bool = False,
    seats: int | None = None,
    trace: bool = False,
    progress: bool = False,
) -> Output:
    """Decode prompts speculatively. Lossless verifiers give exactly the law of plain sampling from
    the target.

    target: whatever `load` takes or returns. prompts: str, list of str, token ids, list of token
    ids (ragged is fine). drafter, verifier: a name, {"name": ..., argument: value}, or an object.
    no_harm: leave the drafter out of rounds where it makes decoding slower; True, or settings such
    as {"slack": 0.02, "debt": 0.2}, see `specdec.drafting.bank`. seats: how many prompts decode at
    the same time (None: all); when a row ends, its seat takes the next prompt. grammar: what the
    text has to be, a JSON schema or a `Grammar`, or one of them or None per prompt. seed (None: 0)
    and request_ids (None: 0, 1, ...) key each prompt's chance: its tokens depend on neither its
    neighbours nor its seat. chance: another kind of chance, with its own seed. `tokens` end with
    EOS or with the token that completes a stop string; `texts` end before it. trace: keep every
    node's token, p, q and coin for `Output.trace`, which takes time in every round. Ctrl-C ends the
    run and returns what is finished.

    Raises ValueError for bad input before anything is computed, and later if a drafter, verifier or
    model breaks its contract.
    """
    options = dict(locals())
    progress = switch("progress", options.pop("progress"))
    run = Run(*prepare(**options))
    try:
        run.finish(progress)
    except KeyboardInterrupt:
        if not any(ticket.over for ticket in run.tickets):
            raise
    return run.output()


@misspelt_arguments_are_named
def stream(
    target: Loadable | LanguageModel,
    prompts: Prompts,
    *,
    drafter: DrafterChoice = "ngram",
    verifier: VerifierChoice = "auto",
    no_harm: NoHarmChoice = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    logits_processors: Sequence[Processor] = (),
    grammar: GrammarChoice | Sequence[GrammarChoice] = None,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    seed: int | None = None,
    request_ids: Sequence[int] | None = None,
    chance: Chance | None = None,
    allow_lossy: bool = False,
    seats: int | None = None,
) -> Iterator[Event]:
    """Like `generate`, but an iterator that yields one Event per live row and round, as soon as it
    is decided. Bad input is refused at the call, before the first event."""
    return Run(*prepare(**locals())).stream()


class Run:
    """Requests on their way through the seats: those of one call, or those that an engine is given
    meanwhile."""

    def __init__(
        self, call: Call, requests: Sequence[Request] = (), keeps_steps: bool = True
    ) -> None:
        self.call, self.groups, self.waiting = call, Groups(call), Line()
        self.recorder = Recorder(call.target.device, keeps_steps)
        self.tickets = [self.ticket(request, number) for number, request in enumerate(requests)]
        for ticket in self.tickets:
            self.waiting.join(ticket)

    def ticket(self, request: Request, number: int) -> Ticket:
        """Raises ValueError where the drafter or the rule refuses what is asked for."""
        return Ticket(number, request, self.groups.of(request), self.call.target.tokenizer)

    def rounds(self) -> Generator[Step, None, None]:
        with self.memory() as seats:
            while self.waiting or seats.taken:
                if step := self.round(seats):
                    yield step

    @torch.inference_mode()
    def round(self, seats: Seats) -> Step | None:
        """None: nobody decodes yet, because long prompts are being read."""
        target, groups, clock = seats.target, self.groups, self.recorder.clock
        clock.begin_round()
        seats.fill()  # a free seat takes the next prompt; those of one sampling are a group
        if not groups.live:
            return None
        with clock("draft"):
            trees = groups.propose()
        with clock("score"):
            scores = target.score(trees, taps=groups.taps)
        with clock("verify"):
            outcome = groups.verify(scores)
        with clock("commit"):
            target.keep(outcome.verdict.path, outcome.keep)
            kept = seats.commit(outcome, scores)
        return self.recorder.step(outcome, kept, seats.numbers, *groups.decided)

    @contextmanager
    def memory(self) -> Iterator[Seats]:
        """Seats, with the target's memory. It and the drafters' are freed when the run ends, fails,
        or its generator is closed."""
        call, groups, recorder = self.call, self.groups, self.recorder
        with ExitStack() as stack:
            stack.callback(groups.close)
            slots = call.slots + groups.max_nodes if call.slots else 0
            target = stack.enter_context(call.target.open(call.seats, slots))
            groups.watch = lambda opened: recorder.watch((target, *opened))
            groups.watch(groups.opened)
            stack.callback(lambda: recorder.end(target, groups.opened))
            yield Seats(call, target, groups, self.waiting, recorder)

    def events(self, step: Step) -> Iterator[Event]:
        """What a round added."""
        for row in np.flatnonzero(step.live).tolist():
            ticket = self.tickets[step.prompts[row]]
            yield ticket.event(int(step.kept[row]), int(step.num_accepted[row]))

    def stream(self) -> Iterator[Event]:
        """What each round added."""
        for step in self.rounds():
            yield from self.events(step)

    def finish(self, progress: bool = False) -> None:
        """Run all rounds. After Ctrl-C, what was decoded before can still be read."""
        most = sum(ticket.request.max_new_tokens for ticket in self.tickets)
        with progress_bar(most, progress) as advance, closing(self.rounds()) as rounds:
            for step in rounds:
                advance(int(step.kept.sum()))

    def output(self) -> Output:
        emissions = [ticket.emission for ticket in self.tickets]
        texts = [text for one in emissions if (text := one.whole_text()) is not None]
        return Output(
            texts if len(texts) == len(emissions) else None,
            [torch.tensor(one.tokens, dtype=torch.long) for one in emissions],
            [one.finish_reason or "interrupted" for one in emissions],
            self.recorder.steps,
            self.report,
            [ticket.request.prompt for ticket in self.tickets],
            self.call.target.tokenizer,
        )

    @property
    def report(self) -> Report:
        return self.report_of(len(self.tickets))

    def report_of(self, prompts: int) -> Report:
        """Of the rounds so far, over so many prompts."""
        groups, deeper = self.groups, self.call.target.extra_layers
        names, lossless, account = groups.names, groups.lossless, groups.account
        return self.recorder.report(prompts, *names, lossless, deeper, account)
