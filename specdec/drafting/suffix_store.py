"""A store of earlier texts that all rows look up: bounded, in memory, and on disk as safetensors.

It holds whole texts, the outputs of requests or documents, and a suffix index over them. The oldest
texts go first. A lock makes it safe for runs in several threads, and for saving while in use.
"""

import os
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from specdec.drafting.suffix_index import SuffixIndex, Text
from specdec.errors import integer
from specdec.interfaces import LanguageModel
from specdec.models.vocabulary import tokenizer_digest

LAYOUT = "1"  # of the file
MOST_TOKENS = 1 << 31
TRUST = 0.6  # in counts of other texts (measured: 0.4 to 0.8 are nearly as good, 1 is worse)
BUILD = "build one with `python -m experiments.store`"


class Entry:
    """A text of the store; more tokens may be added until it goes."""

    __slots__ = ("gone", "text", "tokens")

    def __init__(self) -> None:
        self.tokens, self.text, self.gone = array("i"), Text(), False


class SuffixStore:
    """Texts of one tokenizer, and where their substrings occur.

    most_tokens  above this size the oldest texts are dropped whole; a longer text is not kept
    tokenizer    digest of the tokenizer (`specdec.models.vocabulary.tokenizer_digest`); None: not
                 known yet, or ids without a tokenizer
    """

    def __init__(self, most_tokens: int, tokenizer: str | None = None, name: str = "") -> None:
        self.most_tokens = integer("store_tokens", most_tokens, 1, MOST_TOKENS)
        self.tokenizer = tokenizer
        self.name = name or "in memory"
        self.lock = threading.RLock()
        self.version = 0  # of the index: cursors into an older one are invalid
        self._entries: deque[Entry] = deque()
        self._tokens = 0  # of all entries
        self._gone = 0  # tokens in the index that no entry has any more
        self._first: list[array[int]] | None = None  # texts to go back to; None: nothing learnt
        self._learnt = False  # whether there is more than `_first`
        self._largest = -1  # token
        self.index = SuffixIndex(TRUST)

    def __len__(self) -> int:
        """Texts."""
        return len(self._entries)

    @property
    def tokens(self) -> int:
        return self._tokens

    # ------------------------------------------------------------------------------- its texts

    def add(self, tokens: Sequence[int]) -> None:
        """A whole text."""
        with self.lock:
            self.extend(self.open(), tokens)

    def open(self) -> Entry:
        """A text that will grow."""
        with self.lock:
            entry = Entry()
            self._entries.append(entry)
            return entry

    def extend(self, entry: Entry, tokens: Sequence[int]) -> None:
        """Add tokens to a text. A text that was dropped takes no more."""
        with self.lock:
            if entry.gone:
                return
            self.index.extend(entry.text, tokens)
            entry.tokens.extend(tokens)
            self._largest = max([self._largest, *tokens])
            self._learnt = self._first is not None
            self._tokens += len(tokens)
            while self._tokens > self.most_tokens:
                self._remove(self._entries.popleft())

    def _remove(self, entry: Entry) -> None:
        entry.gone = True
        self.index.remove(entry.tokens)
        self._tokens -= len(entry.tokens)
        self._gone += len(entry.tokens)
        if self._gone > max(self.most_tokens, self._tokens):
            self._build()

    def _build(self) -> None:
        """Rebuild the index without dropped texts. This happens once per `most_tokens` dropped, so
        the cost per token is constant."""
        self.index, self._gone = SuffixIndex(TRUST), 0
        self.version += 1
        for entry in self._entries:
            entry.text = Text()
            self.index.extend(entry.text, entry.tokens)

    # -------------------------------------------------------------------------------- learning

    def begin_to_learn(self) -> None:
        """Everything added from here on is dropped by `forget`."""
        with self.lock:
            if self._first is None:
                self._first = [entry.tokens[:] for entry in self._entries]

    def forget(self) -> None:
        """Back to the texts that it had when it began to learn."""
        with self.lock:
            if self._first is None or not self._learnt:
                return
            for entry in self._entries:
                entry.gone = True
            self._entries.clear()
            self._tokens, self._learnt = 0, False
            for tokens in self._first:
                entry = self.open()
                entry.tokens = tokens[:]
                self._tokens += len(tokens)
            self._build()

    # ------------------------------------------------------------------------------ its tokenizer

    def check(self, target: LanguageModel) -> None:
        """Raise ValueError for a target with another tokenizer. Where one of them has none, only
        the tokens can be compared."""
        digest = tokenizer_digest(target)
        with self.lock:
            if digest is not None and self.tokenizer is not None and digest != self.tokenizer:
                raise ValueError(
                    f"the suffix store {self.name} holds tokens of another tokenizer "
                    f"({self.tokenizer}) than that of the target {target.name} ({digest}); {BUILD} "
                    "with the target's, or use store=none"
                )
            if self._largest >= target.vocabulary:
                raise ValueError(
                    f"the suffix store {self.name} holds token {self._largest}, and the target "
                    f"{target.name} has {target.vocabulary} tokens; {BUILD} with the target's "
                    "tokenizer"
                )
            if self.tokenizer is None:
                self.tokenizer = digest

    # ---------------------------------------------------------------------------------- on disk

    def save(self, path: str | Path) -> None:
        """Write the texts to a temporary file and rename it, so that a reader finds the old file or
        the new one. Raises ValueError if it cannot be written."""
        final = Path(path).expanduser()
        with self.lock:
            texts = [np.array(entry.tokens, dtype=np.int32) for entry in self._entries]
            metadata = {"suffix_store": LAYOUT, "tokenizer": self.tokenizer or ""}
        whole = np.concatenate([np.zeros(0, dtype=np.int32), *texts])
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        tensors = {"tokens": torch.from_numpy(whole), "ends": torch.from_numpy(ends)}
        draft = final.with_name(f".{final.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, draft, metadata)
            os.replace(draft, final)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"the suffix store cannot be written to {final}: {error}; name a folder that may "
                "be written to"
            ) from error
        finally:
            with suppress(OSError):  # there is none, or not even its folder
                draft.unlink()

    @classmethod
    def load(cls, path: str | Path, most_tokens: int) -> "SuffixStore":
        """Raises ValueError for a file that is missing, incomplete, or not a store."""
        place = Path(path).expanduser()
        if not place.is_file():
            raise ValueError(f"no suffix store at {place}; {BUILD}, or use store=memory")
        try:
            with safe_open(place, framework="pt") as file:
                metadata = file.metadata() or {}
                layout = metadata.get("suffix_store")
                if layout != LAYOUT:
                    raise ValueError(
                        f"{place} is "
                        + (f"a suffix store of layout {layout}" if layout else "no suffix store")
                        + f", expected layout {LAYOUT}; {BUILD}"
                    )
                tokens, ends = file.get_tensor("tokens"), file.get_tensor("ends")
        except SafetensorError as error:
            raise ValueError(
                f"{place} is no whole safetensors file ({error}); copy it again, or {BUILD}"
            ) from None
        whole = torch.tensor([0, *ends.tolist()])
        fits = int(whole[-1]) == len(tokens) and bool((whole[1:] >= whole[:-1]).all())
        if tokens.dtype != torch.int32 or not fits or (len(tokens) and int(tokens.min()) < 0):
            raise ValueError(f"{place} is a broken suffix store; {BUILD}")
        store = cls(most_tokens, metadata["tokenizer"] or None, str(place))
        values, start = tokens.tolist(), 0
        for end in ends.tolist():
            store.add(values[start:end])
            start = end
        return store
