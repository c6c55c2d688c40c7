"""Reading prompts into a model's memory: whole, or part by part beside rows that decode. Prefixes
that texts have in common are read once where the memory is in pages.

Letters: B rows (seats), b rows that are read, T tokens, K taps, d hidden size, k best tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from specdec.interfaces import Paged, Session, Tap
from specdec.probs import keys, places

BLOCK = 16  # tokens whose maximum stands for them in a search for the best
SEARCHED = 8192  # the largest vocabulary that is searched token by token
TIED = 16  # best tokens that are looked at, or more, since some may be equal


@dataclass
class Reading:
    """A text that is being read: all but its last token, which is the root."""

    row: int
    tokens: list[int]
    shared: int = 0  # so many of them a text that is ahead has too
    read: int = 0  # so many of them are in memory
    asked: bool = False  # whether it has been given the pages that it can share
    adopted: int = 0  # tokens in those pages
    taps: list[Tensor] = field(default_factory=list)  # (T, K, d) of each part
    best: list[Tensor] = field(default_factory=list)  # (T, k)

    @property
    def left(self) -> int:
        return len(self.tokens) - self.read


class Asks(Protocol):
    """What is to be seen of every token of a prompt."""

    @property
    def taps(self) -> tuple[Tap, ...]: ...

    @property
    def best_tokens(self) -> int: ...


class Prefill:
    """The texts that are being read, and those that were read in this round."""

    def __init__(self, session: Session, asks: Asks, seats: int, chunk: int | None) -> None:
        self._session, self._asks, self._seats, self._chunk = session, asks, seats, chunk
        self._pages = session if isinstance(session, Paged) else None
        self._readings: list[Reading] = []  # in the order in which they came

    @property
    def busy(self) -> bool:
        return bool(self._readings)

    def begin(self, row: int, text: Sequence[int]) -> None:
        self._readings.append(Reading(row, list(text[:-1]), self.shared(text[:-1])))

    def drop(self, row: int) -> None:
        """Its request has lost the seat."""
        self._readings = [one for one in self._readings if one.row != row]

    def has(self, row: int) -> bool:
        """Whether the row is being read."""
        return any(one.row == row for one in self._readings)

    def held(self, row: int) -> int | None:
        """Tokens of a row that is being read for which it needs no more memory; None: it is not
        being read."""
        return next((max(one.read, one.shared) for one in self._readings if one.row == row), None)

    def shared(self, tokens: Sequence[int]) -> int:
        """Leading tokens whose pages a text will share with one that is being read."""
        if self._pages is None or not self.shares:
            return 0
        most = max((common(one.tokens, tokens) for one in self._readings), default=0)
        return most - most % self._pages.page

    def read(self, committed: Tensor) -> list[Reading]:
        """Read on, up to `chunk` tokens in all; the texts that are done, by row. committed (B, L):
        the tokens of every seat."""
        done: list[Reading] = []
        left = self._chunk
        while self._readings:
            counts = self._chosen(left)
            if not counts:
                break
            parts = [one for one in self._readings if one.row in counts]
            self._read(sorted(parts, key=lambda one: one.row), counts, committed)
            done += [one for one in parts if not one.left]
            self._readings = [one for one in self._readings if one.left or one.row not in counts]
            if left is not None:
                left -= sum(counts.values())
        return sorted(done, key=lambda one: one.row)

    def _chosen(self, left: int | None) -> dict[int, int]:
        """How many tokens are read of which rows in the next pass. A text waits while another is
        read whose pages it can share."""
        counts: dict[int, int] = {}
        ahead: list[Reading] = []
        for one in self._readings:
            if not self._adopted(one, ahead):
                continue
            ahead.append(one)
            count = one.left if left is None else min(one.left, left - sum(counts.values()))
            if count or not one.left:
                counts[one.row] = count
        return counts

    def _adopted(self, one: Reading, ahead: Sequence[Reading]) -> bool:
        """Let it share pages; False: not yet."""
        pages = self._pages
        if pages is None or one.read or one.asked:
            return True
        for other in ahead if self.shares else ():
            alike = common(other.tokens, one.tokens)
            # The last page, which is not full, may be copied from a text that has all of it.
            whole = alike == len(one.tokens) and not other.adopted
            if alike - (0 if whole else alike % pages.page) > other.read:
                return False
        one.asked = True
        one.read = one.adopted = pages.adopt(one.row, one.tokens if self.shares else [])
        return True

    @property
    def shares(self) -> bool:
        """Whether equal prefixes are read once. Not where a drafter has to see what the model says
        about every token of its prompt."""
        wants_more = self._asks.taps or self._asks.best_tokens
        return self._pages is not None and not wants_more

    def _read(self, parts: Sequence[Reading], counts: dict[int, int], committed: Tensor) -> None:
        rows, some = [one.row for one in parts], [counts[one.row] for one in parts]
        if not any(some):
            return
        every, firsts = len(rows) == self._seats, [one.read for one in parts]
        tokens = committed if every else committed[rows]
        if max(firsts) == 0:
            tokens = tokens[:, : max(some)]
        else:
            steps = torch.arange(max(some), device=tokens.device)
            index = torch.tensor(firsts, device=tokens.device)[:, None] + steps
            tokens = tokens.gather(1, index.clamp(max=tokens.shape[1] - 1))
        k, seats = self._asks.best_tokens, None if every else rows
        scores = self._session.read(tokens, some, seats, self._asks.taps, every=k > 0)
        best = best_tokens(scores.logits, k)
        for place, (one, count) in enumerate(zip(parts, some, strict=True)):
            one.read += count
            if count and scores.taps is not None:
                one.taps.append(scores.taps[place, :count])
            if count and best is not None:
                one.best.append(best[place, :count])


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Leading tokens that two texts have in common."""
    most = min(len(one), len(other))
    return next((at for at in range(most) if one[at] != other[at]), most)


def joined(parts: Sequence[Sequence[Tensor]]) -> Tensor | None:
    """(b, T, ...) of the parts of each row, padded with zeros; None where nothing was noted."""
    if not any(parts):
        return None
    shape = next(each[0].shape[1:] for each in parts if each)
    like = next(each[0] for each in parts if each)
    whole = [torch.cat(list(each)) if each else like.new_zeros(0, *shape) for each in parts]
    return torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)


def best_tokens(logits: Tensor, k: int) -> Tensor | None:
    """(B, n, k) best tokens of logits (B, n, V), best first; None if no drafter asks. Ties go to
    the lowest index, unless very many tokens are as good as the last.

    Of a large vocabulary, token v is in column v mod C of BLOCK tokens. The best are in the columns
    with the largest maxima, which leaves few candidates.
    """
    if not k:
        return None
    rows, nodes, vocabulary = logits.shape
    values, k, columns = logits.reshape(-1, vocabulary), min(k, vocabulary), vocabulary // BLOCK
    index = None
    if vocabulary > SEARCHED and columns >= 8 * k:
        whole = columns * BLOCK
        most = values[:, :whole].unflatten(1, (BLOCK, columns)).amax(1)
        chosen = most.topk(2 * k, sorted=False).indices
        every = torch.arange(vocabulary, device=values.device)
        candidates = (chosen[:, None] + every[:whole:columns, None]).flatten(1)
        index = torch.cat([candidates, every[whole:].expand(len(values), -1)], 1)
        values = values.gather(1, index)
    values, found = values.topk(min(max(2 * k, TIED), values.shape[1]), sorted=False)
    index = found if index is None else index.gather(1, found)
    return places(keys(values, index).topk(k).values).view(rows, nodes, -1)
