"""Many requests, which come and go while others decode.

    with specdec.Engine("demo", drafter="small_model", seats=8) as engine:
        first = engine.submit("def read_csv(", max_new_tokens=64)
        for event in engine:
            print(event.row, event.text)
        print(first.result().text)

It is the loop of `generate`, with requests that are submitted at any time. An engine belongs to one
thread. Rounds are run by `step`, and by whatever waits for tokens: iterating, and `result`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Literal, Self, Unpack, overload

import numpy as np
import torch

from specdec.budget import room
from specdec.chance import Chance
from specdec.drafting.banked import under_bank
from specdec.errors import integer, misspelt_arguments_are_named, switch
from specdec.generate import Run
from specdec.grammar import GrammarChoice
from specdec.handles import Handle, Work
from specdec.interfaces import LanguageModel, Session, kv_of
from specdec.measuring.report import Report, Step
from specdec.models.load import Loadable, load
from specdec.output import Event
from specdec.requests import (
    Call,
    DrafterChoice,
    NoHarmChoice,
    Prompt,
    Request,
    RequestOptions,
    VerifierChoice,
    asked,
    make_chance,
    make_drafter,
    plain,
)
from specdec.sampling import Processor
from specdec.seats import reach_of
from specdec.tickets import CANCELLED, Ticket


class Engine:
    """Decodes requests as they come. A context manager; closing it cancels what is not over and
    frees the memory.

    target, drafter, verifier, no_harm, allow_lossy: as in `generate`. seats: how many requests
    decode at the same time. memory: of the target, in bytes or as "2GiB"; None: it grows. In pages
    it is for draft models and heads too. kv: "paged", where requests of different lengths share the
    memory and equal prefixes are kept once, or "contiguous"; None: paged if `memory` is given.
    page: tokens of a page. prefill_chunk: how many tokens of prompts are read before a round; None:
    all. record: keep every round for `report`.
    """

    @misspelt_arguments_are_named
    def __init__(
        self,
        target: Loadable | LanguageModel,
        *,
        drafter: DrafterChoice = "ngram",
        verifier: VerifierChoice = "auto",
        no_harm: NoHarmChoice = None,
        seats: int = 16,
        memory: int | str | None = None,
        page: int = 16,
        kv: Literal["paged", "contiguous"] | None = None,
        prefill_chunk: int | None = 256,
        allow_lossy: bool = False,
        record: bool = False,
    ) -> None:
        model = target if isinstance(target, LanguageModel) else load(target)
        seats = integer("seats", seats, 1)
        if prefill_chunk is not None:
            prefill_chunk = integer("prefill_chunk (None: all at once)", prefill_chunk, 1)
        made = under_bank(make_drafter(drafter), no_harm, drafter)
        model, self._slots = room(model, kv, page, memory, seats, made)
        call = Call(
            model,
            made,
            verifier,
            seats,
            switch("allow_lossy", allow_lossy),
            prefill_chunk=prefill_chunk,
            goes_on=True,
        )
        self._run = Run(call, keeps_steps=switch("record", record))
        self._stack = ExitStack()
        with torch.inference_mode():
            self._seats = self._stack.enter_context(self._run.memory())
        self._submitted = 0
        self._handles: dict[int, Handle] = {}  # of requests that wait or decode
        self._listeners: dict[int, deque[Event]] = {}
        self._closed = False
        self.last_step: Step | None = None  # of the newest round, for measurements

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is not over and free the memory."""
        if self._closed:
            return
        self._closed = True
        for handle in list(self._handles.values()):
            handle.end(CANCELLED)
            self._finish(handle)
        self._stack.close()

    # --------------------------------------------------------------------------------- requests

    @overload
    def submit(
        self, prompt: Prompt, *, samples: None = None, **options: Unpack[RequestOptions]
    ) -> Handle: ...

    @overload
    def submit(
        self, prompt: Prompt, *, samples: int, **options: Unpack[RequestOptions]
    ) -> list[Handle]: ...

    @misspelt_arguments_are_named
    def submit(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        logits_processors: Sequence[Processor] = (),
        grammar: GrammarChoice = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        seed: int | None = None,
        request_id: int | None = None,
        chance: Chance | None = None,
        priority: int = 0,
        samples: int | None = None,
    ) -> Handle | list[Handle]:
        """A request waits for a seat from now on. Its options are those of `generate`, each
        request's own; requests of unlike sampling share the target's passes.

        request_id (None: the number of the request) keys its chance together with the seed.
        priority: the largest is served first, else who came first. samples: this many requests for
        one prompt, with ids that follow one another; a list of handles.

        Raises ValueError for what can never be served.
        """
        if self._closed:
            raise ValueError("this engine is closed; make another one")
        first = self._submitted if request_id is None else integer("request_id", request_id)
        count = 1 if samples is None else integer("samples", samples, 1)
        given = plain(prompt)
        several = isinstance(given, Sequence) and not isinstance(given, str)
        if several and any(isinstance(one, Sequence) for one in given):
            raise ValueError("submit takes one prompt; call it once for each")
        requests = asked(
            self._run.call.target,
            [given] * count,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            logits_processors=logits_processors,
            grammar=grammar,
            stop=stop,
            ignore_eos=ignore_eos,
            chance=None if chance is None else make_chance(seed, chance),
            request_ids=range(first, first + count),
            seed=0 if seed is None else seed,
            priority=priority,
        )
        handles = [self._admit(request) for request in requests]
        return handles[0] if samples is None else handles

    def _admit(self, request: Request) -> Handle:
        group = self._run.groups.of(request)
        self._check_size(request, reach_of(group))
        tokenizer = self._run.call.target.tokenizer
        work, now = Work(self.step, self._finish), self._run.recorder.now()
        handle = Handle(self._submitted, request, group, tokenizer, work, now)
        self._submitted += 1
        self._handles[handle.number] = handle
        self._run.waiting.join(handle)
        return handle

    def _check_size(self, request: Request, nodes: int) -> None:
        """Raises ValueError for a request that would not even fit alone."""
        most, target = request.longest - 2 + nodes, self._seats.pages
        asks = (
            f"a prompt of {len(request.prompt)} tokens with max_new_tokens="
            f"{request.max_new_tokens} and a tree of {nodes} nodes takes"
        )
        if target is not None and kv_of(self._run.call.target).pages is not None:
            pages = target.pages_for(most)
            if pages > target.pages:
                raise ValueError(
                    f"{asks} {pages} pages of {target.page} tokens, this engine's memory has "
                    f"{target.pages}; ask for less, or make an engine with more memory"
                )
        if self._slots is not None and most > self._slots:
            raise ValueError(
                f"{asks} {most} slots, this engine's memory has {self._slots} in each of its "
                f"{self._run.call.seats} seats; ask for less, or make an engine with more memory, "
                "fewer seats or kv='paged'"
            )

    # ----------------------------------------------------------------------------------- rounds

    @property
    def busy(self) -> bool:
        """Whether a request waits or decodes."""
        return bool(self._handles)

    def step(self) -> list[Event]:
        """One round: what it added to each text. Nothing where nobody waits or decodes, and while
        long prompts are read. If a drafter, a rule or the model breaks its contract, the engine
        closes and the error is raised."""
        if not self.busy:
            return []
        try:
            step = self._run.round(self._seats)
        except BaseException:
            self.close()
            raise
        if step is None:
            return []
        self.last_step = step
        events = []
        for row in np.flatnonzero(step.live).tolist():
            handle = self._handles[int(step.prompts[row])]
            event = handle.event(int(step.kept[row]), int(step.num_accepted[row]))
            self._tell(handle, event)
            events.append(event)
        for ticket in self._seats.ended:
            handle = self._handles[ticket.number]
            if ticket.error is not None:
                event = handle.event()
                self._tell(handle, event)
                events.append(event)
            self._forget(handle)
        return events

    def __iter__(self) -> Iterator[Event]:
        """Events of all requests, until none waits or decodes. Rounds that others run meanwhile
        are seen too."""
        events: deque[Event] = deque()
        self._listeners[id(events)] = events
        try:
            while events or self.busy:
                while events:
                    yield events.popleft()
                self.step()
        finally:
            del self._listeners[id(events)]

    def _tell(self, handle: Handle, event: Event) -> None:
        handle.events.append(event)
        for events in self._listeners.values():
            events.append(event)

    def _finish(self, ticket: Ticket) -> None:
        """A request was ended from outside."""
        handle = self._handles[ticket.number]
        self._tell(handle, handle.event())
        with torch.inference_mode():
            self._seats.clear()
        self._forget(handle)

    def _forget(self, handle: Handle) -> None:
        """It is over: what its user holds is all that is left of it."""
        recorder, number = self._run.recorder, handle.number
        served = recorder.served.get(number)
        if served is not None:
            first = None if served.first_token == served.admitted else served.first_token
            handle.times = handle.times._replace(admitted=served.admitted, first_token=first)
        if not recorder.keeps:
            recorder.served.pop(number, None)
        handle.times = handle.times._replace(finished=recorder.now())
        handle.group.requests -= 1
        del self._handles[number]

    # ---------------------------------------------------------------------------------- figures

    @property
    def waiting(self) -> int:
        """Requests without a seat."""
        return len(self._run.waiting)

    @property
    def seats_in_use(self) -> int:
        return sum(ticket is not None for ticket in self._seats.tickets)

    @property
    def memory(self) -> Session:
        """The target's session; a `specdec.interfaces.Paged` where it is in pages."""
        return self._seats.target

    @property
    def pages_in_use(self) -> int | None:
        """None: the memory has no pages."""
        target = self._seats.pages
        return None if target is None else target.pages - target.free

    @property
    def report(self) -> Report:
        """Of all rounds so far. Raises ValueError for an engine that does not record them."""
        run = self._run
        if not run.recorder.keeps:
            raise ValueError("this engine keeps no rounds; make it with record=True")
        return run.report_of(self._submitted)
