"""The loop: seat, propose, score, verify, commit. `generate` runs it to the end, `stream` yields
what each round adds.

It names no drafter, no verifier and no model family.
"""

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from specdec.chance import Chance
from specdec.errors import misspelt_arguments_are_named, switch
from specdec.grammar import GrammarChoice
from specdec.interfaces import LanguageModel, Session
from specdec.measuring.recorder import Recorder
from specdec.measuring.report import Report, Step
from specdec.models.load import Loadable
from specdec.outcome import Inspector
from specdec.output import Event, Output, Texts, progress_bar
from specdec.pairing import name_of, pair
from specdec.probs import Laws
from specdec.requests import Call, DrafterChoice, NoHarmChoice, Prompts, VerifierChoice, prepare
from specdec.sampling import Processor
from specdec.seats import Seats
from specdec.trace.watch import Traced


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
    run = Run(prepare(**options))
    run.finish(progress)
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
    return Run(prepare(**locals())).stream()


class Run:
    """One call of generate, from the first prompt's seat to the last one's end."""

    def __init__(self, call: Call) -> None:
        self.call, vocabulary = call, call.target.vocabulary
        self.drafter = copy.copy(call.drafter)  # shares settings and weights, has its own memory
        self.drafter.begin(call.target, call.seats, call.sampling)
        self.verifier = pair(
            self.drafter, call.verifier, call.sampling, call.chance, vocabulary, call.allow_lossy
        )
        self.names = name_of(call.drafter), name_of(self.verifier)
        self.inspector = Inspector(self.drafter, self.verifier, self.names, vocabulary)
        self.judge = Traced(self.verifier) if call.trace else self.verifier
        self.texts = Texts(call)
        self.recorder = Recorder(call.target.device, len(call.requests))

    @torch.inference_mode()
    def rounds(self) -> Generator[Step, None, None]:
        call, drafter, judge = self.call, self.drafter, self.judge
        inspector, clock = self.inspector, self.recorder.clock
        with self._memory() as target:
            seats = Seats(call, target, drafter, self.texts, self.recorder)
            state = seats.empty()
            while seats.waiting or any(state.on_host.live):
                clock.begin_round()
                state = seats.fill(state)  # a free seat takes the next prompt
                draws = call.chance.round(state)
                with clock("draft"):
                    trees = inspector.admitted(drafter.propose(state, draws), state)
                with clock("score"):
                    scores = target.score(trees, taps=drafter.taps)
                with clock("verify"):
                    p = Laws(scores.logits, trees, state)
                    verdict = judge.verify(trees, p, draws)
                    outcome = inspector.read(verdict, trees, p, state)
                with clock("commit"):
                    target.keep(outcome.verdict.path, outcome.keep)
                    state, kept = seats.commit(state, trees, outcome, scores)
                decided = drafter.decision, drafter.chosen
                yield self.recorder.step(outcome, kept, seats.numbers, *decided)

    @contextmanager
    def _memory(self) -> Iterator[Session]:
        """The target's memory of this run. It and the drafter's are freed when the run ends, fails,
        or its generator is closed."""
        call, opened = self.call, self.drafter.opened
        with ExitStack() as stack:
            for one in opened:
                stack.callback(one.close)
            slots = call.longest + self.drafter.max_nodes
            target = stack.enter_context(call.target.open(call.seats, slots))
            self.recorder.watch((target, *opened))
            stack.callback(self.recorder.end, target, opened)
            yield target

    def stream(self) -> Iterator[Event]:
        """What each round added."""
        for step in self.rounds():
            yield from self.texts.events(step)

    def finish(self, progress: bool = False) -> None:
        """Run all rounds, or until Ctrl-C if a prompt is finished by then."""
        rounds = self.rounds()
        most = self.call.max_new_tokens * len(self.call.requests)
        with progress_bar(most, progress) as advance:
            try:
                for step in rounds:
                    advance(int(step.kept.sum()))
            except KeyboardInterrupt:
                rounds.close()
                if not self.texts.some_are_over:
                    raise

    def output(self) -> Output:
        texts, tokens, reasons = self.texts.all()
        prompts = [request.prompt for request in self.call.requests]
        tokenizer = self.call.target.tokenizer
        steps = self.recorder.steps
        return Output(texts, tokens, reasons, steps, self.report, prompts, tokenizer)

    @property
    def report(self) -> Report:
        deeper = self.call.target.extra_layers
        account = self.drafter.account()
        return self.recorder.report(*self.names, self.verifier.lossless, deeper, account)
