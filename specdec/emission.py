"""From accepted tokens to what the caller gets: where a row ends, and text that never shows half a character."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

HALF = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer prints for the beginning of a character
CONTEXT = 6  # prompt tokens decoded along, so that leading spaces come out as they do in running text


class TextStream:
    """Token ids in, text out, whole characters only. What could be the beginning of a stop string is held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.ids = list(prompt[-CONTEXT:])
        self.first, self.read = 0, len(self.ids)  # the window that is decoded again, and the part of it already said
        self.text = ""  # all text so far, stop strings included
        self.shown = 0  # how much of it the caller has seen
        self.end: int | None = None  # where the earliest stop string begins

    def push(self, tokens: Iterable[int]) -> bool:
        """Add tokens; True once the text contains a stop string."""
        self.ids.extend(tokens)
        self._advance(whole=True)
        return self.end is not None

    def take(self, final: bool = False) -> str:
        """The text that has become safe to show. `final`: no more will come."""
        if final:
            self._advance(whole=False)
        limit = len(self.text) if self.end is None else self.end
        if not final and self.end is None:
            limit -= max((_overlap(self.text, stop) for stop in self.stop), default=0)
        fresh = self.text[self.shown : limit]
        self.shown = max(self.shown, limit)
        return fresh

    def _advance(self, whole: bool) -> None:
        said = self._decode(self.ids[self.first : self.read])
        text = self._decode(self.ids[self.first :])
        if len(text) <= len(said) or (whole and text.endswith(HALF)):
            return
        longest = max(map(len, self.stop), default=0)
        search_from = max(0, len(self.text) - longest)
        self.text += text[len(said) :]
        self.first, self.read = self.read, len(self.ids)
        found = [place for stop in self.stop if (place := self.text.find(stop, search_from)) >= 0]
        if found and self.end is None:
            self.end = min(found)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@dataclass
class Emission:
    """What one row has got, and why it ended."""

    room: int
    eos_ids: frozenset[int]
    text: TextStream | None  # None for a target without a tokenizer
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, tokens: list[int]) -> list[int]:
        """Append tokens up to and including the one at which the row ends; those kept are returned."""
        kept: list[int] = []
        for token in tokens:
            kept.append(token)
            if token in self.eos_ids:
                self.finish_reason = "eos"
            elif self.text is not None and self.text.stop and self.text.push([token]):
                self.finish_reason = "stop"
            elif len(self.tokens) + len(kept) == self.room:
                self.finish_reason = "length"
            if self.finish_reason:
                break
        if self.text is not None and not self.text.stop:
            self.text.ids.extend(kept)
        self.tokens += kept
        return kept

    def fresh_text(self) -> str | None:
        """Text that became safe to show since the last call."""
        if self.text is None:
            return None
        self.text.push(())
        return self.text.take(final=self.finish_reason is not None)
