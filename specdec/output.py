"""What the caller gets: where a text ends, and text that never shows half a character."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizers.decoders import DecodeStream
from torch import Tensor

from specdec.measuring.report import Report, Step
from specdec.requests import Request

if TYPE_CHECKING:
    from specdec.trace.page import TracePage

HALF = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer prints for the beginning of a character
CONTEXT = 6  # prompt tokens decoded too, so that leading spaces come out as in running text


@dataclass(frozen=True)
class Event:
    """What one round added to one prompt's text."""

    row: int  # number of the prompt, or of the request of an engine
    tokens: list[int]
    text: str | None  # whole characters only; None for a target without a tokenizer
    num_accepted: int  # how many of the tokens were drafted; the one after them is the target's
    finish_reason: str | None  # "eos" | "stop" | "length" once the text is over


@dataclass(frozen=True, repr=False)
class Output:
    """What `generate` returns: one entry per prompt."""

    texts: list[str] | None  # None for a target without a tokenizer
    tokens: list[Tensor]  # long
    finish_reasons: list[str]  # "eos" | "stop" | "length"; "interrupted" after Ctrl-C
    steps: list[Step]  # one per round
    report: Report
    prompts: list[list[int]]  # their tokens
    tokenizer: Any  # the target's, or None

    def __repr__(self) -> str:
        return f"<Output of {len(self.tokens)} prompts; {self.report}>"

    def _repr_html_(self) -> str:
        """In notebooks: the texts, each token coloured by where it came from."""
        from specdec.trace.notebook import fragment

        return fragment(self)

    def trace(self) -> "TracePage":
        """The run as a page, round by round; `.save(path)` writes it, a notebook shows it. Raises
        ValueError for a run without `generate(..., trace=True)`."""
        from specdec.trace.page import TracePage

        return TracePage.of(self)


class TextStream:
    """Token ids in, text out, whole characters only. Text that could be the beginning of a stop
    string is held back."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.text = ""  # all text so far, stop strings included
        self.end: int | None = None  # where the earliest stop string begins
        self._shown = 0  # how much of the text the caller has seen
        self._decoder = _decoder(tokenizer, list(prompt[-CONTEXT:]))

    def push(self, tokens: Iterable[int]) -> bool:
        """Add tokens; True once the text contains a stop string."""
        for token in tokens:
            self._add(self._decoder.step(token))
        return self.end is not None

    def take(self, final: bool = False) -> str:
        """The text that is now safe to show. `final`: no more tokens will come."""
        if final:
            self._add(self._decoder.rest())
        limit = len(self.text) if self.end is None else self.end
        if not final and self.end is None:
            limit -= max((_overlap(self.text, stop) for stop in self.stop), default=0)
        new = self.text[self._shown : limit]
        self._shown = max(self._shown, limit)
        return new

    def _add(self, text: str) -> None:
        if not text:
            return
        longest = max(map(len, self.stop), default=0)
        search_from = max(0, len(self.text) - longest)
        self.text += text
        found = [at for stop in self.stop if (at := self.text.find(stop, search_from)) >= 0]
        if found and self.end is None:
            self.end = min(found)


class _Stream:
    """The incremental decoder of the tokenizers library, and the text that it holds back."""

    def __init__(self, tokenizer: Any, backend: Any, ids: list[int]) -> None:
        self._tokenizer, self._backend = tokenizer, backend
        self._stream = DecodeStream(ids, skip_special_tokens=True)
        self._before = ids  # the tokens that the last text came from
        self._pending: list[int] = []

    def step(self, token: int) -> str:
        self._pending.append(token)
        try:
            text = self._stream.step(self._backend, token)
        except Exception:  # the library has no class for it
            # Byte tokens that read otherwise together with those after them. What was said stays
            # said; the text goes on from here.
            text = decoded(self._tokenizer, self._pending)
            self._stream = DecodeStream(self._pending, skip_special_tokens=True)
        if text is None:
            return ""
        self._before, self._pending = self._pending, []
        return str(text)

    def rest(self) -> str:
        if not self._pending:
            return ""
        before, both = (
            decoded(self._tokenizer, ids) for ids in (self._before, self._before + self._pending)
        )
        self._pending = []
        return both[len(before) :]


class _Rereading:
    """The same for tokenizers that the tokenizers library does not support: the text is decoded
    again each time."""

    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids
        self._said = decoded(tokenizer, ids)

    def step(self, token: int) -> str:
        self._ids.append(token)
        text = decoded(self._tokenizer, self._ids)
        return "" if text.endswith(HALF) else self._new(text)

    def rest(self) -> str:
        return self._new(decoded(self._tokenizer, self._ids))

    def _new(self, text: str) -> str:
        new, self._said = text[len(self._said) :], text
        return new


def _decoder(tokenizer: Any, ids: list[int]) -> _Stream | _Rereading:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _Rereading(tokenizer, ids) if backend is None else _Stream(tokenizer, backend, ids)


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """Their text, without special tokens and otherwise as it is."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@dataclass
class Emission:
    """The output of one prompt so far, and why it ended."""

    room: int
    eos_ids: frozenset[int]
    text: TextStream | None  # None for a target without a tokenizer
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    _unread: int = 0  # tokens that have not been added to the text yet

    def add(self, tokens: Sequence[int]) -> list[int]:
        """Append tokens up to and including the one at which the row ends; return those kept."""
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            if token in self.eos_ids:
                self.finish_reason = "eos"
            elif self.text is not None and self.text.stop and self._read(kept):
                self.finish_reason = "stop"
            elif len(self.tokens) + len(kept) == self.room:
                self.finish_reason = "length"
            if self.finish_reason:
                break
        self.tokens += kept
        return kept

    @classmethod
    def of(cls, request: Request, tokenizer: Any) -> "Emission":
        """Nothing yet."""
        text = None if tokenizer is None else TextStream(tokenizer, request.prompt, request.stop)
        return cls(request.max_new_tokens, request.eos_ids, text)

    def _read(self, kept: list[int]) -> bool:
        """Add the newest token to the text; True if it completes a stop string."""
        assert self.text is not None
        self._unread = len(self.tokens) + len(kept)
        return self.text.push(kept[-1:])

    def event(self, number: int, added: int, accepted: int) -> Event:
        """What the last `added` tokens brought; `accepted` of them were drafted."""
        tokens = self.tokens[len(self.tokens) - added :]
        accepted = min(accepted, added)
        return Event(number, tokens, self.new_text(), accepted, self.finish_reason)

    def whole_text(self) -> str | None:
        """All text so far, without its stop string; None for a target without a tokenizer."""
        self.new_text()
        return None if self.text is None else self.text.text[: self.text.end]

    def new_text(self) -> str | None:
        """Text that became safe to show since the last call."""
        if self.text is None:
            return None
        self.text.push(self.tokens[self._unread :])
        self._unread = len(self.tokens)
        return self.text.take(final=self.finish_reason is not None)


@contextmanager
def progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar over tokens, on standard error; or nothing."""
    if not wanted:
        yield lambda tokens: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("tokens", total=total)
        yield lambda tokens: bar.advance(task, tokens)
