"""What is committed: the tokens of every seat, and the result of the round before.

Letters: B rows (seats), N nodes, D depth, L tokens, T taps, d hidden size, k best tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from specdec.grammar import Grammars
from specdec.sampling import Sampling
from specdec.tree import TokenTree


@dataclass(frozen=True, eq=False)
class Verdict:
    """What survives of a round: a verifier's answer, on the device."""

    path: Int[Tensor, "B D"]  # accepted nodes from below the root downwards, padded with -1
    num_accepted: Int[Tensor, " B"]
    bonus: Int[Tensor, " B"]  # the one token that the target adds
    counts: Mapping[str, Tensor] = field(default_factory=dict)  # diagnostics per row (B,)
    notes: Mapping[str, Tensor] = field(default_factory=dict)  # (B, N) each, of a watched rule


class HostVerdict(NamedTuple):
    """The same on the host."""

    path: np.ndarray  # (B, D)
    num_accepted: np.ndarray  # (B,)
    bonus: np.ndarray  # (B,)


class Last(NamedTuple):
    """The round before. In a row's first round only the taps are meaningful."""

    trees: TokenTree | None  # None before the first round of a run
    verdict: HostVerdict | None  # likewise
    num_accepted: list[int]  # per row; 0 in a row's first round
    drafted: list[int] | None  # nodes of each row's tree without the root; None before any round
    taps: Tensor | None
    """(B, D + 1, T, d) states of the newest tokens before the root. [:, 0] is the state of the root
    of the round before (in a row's first round: of the token before the root); [:, i] is that of
    the i-th accepted node. num_accepted + 1 are valid. The root itself has no state yet; after a
    prompt of one token there is no state at all. None if the drafter reads no taps."""

    aside: np.ndarray | None = None  # (B, n) what the drafter has put aside (`Drafter.aside`)
    runners_up: np.ndarray | None = None
    """(B, k) the most probable tokens, best first, of the law that the root was drawn from, if the
    drafter asks for them (`Drafter.runners_up`). Meaningless in a row's first round, because its
    root was not drawn."""

    best: Tensor | None = None
    """(B, N, k) the most probable tokens after every node of `trees`, best first, on the device, if
    the drafter asks for them (`Drafter.best_tokens`)."""


class OnHost(NamedTuple):
    """The same numbers as Python values, so that control flow need not ask the device."""

    lengths: list[int]
    live: list[bool]
    room: list[int]
    fresh: list[bool]
    texts: list[list[int]]  # the first `lengths` tokens are committed; see `State.text`


def tokens_added(before: OnHost, after: OnHost) -> float:
    """By a round, the mean over the rows that were live in it."""
    live = np.array(before.live)
    return float((np.array(after.lengths) - before.lengths)[live].mean())


@dataclass(frozen=True, eq=False)
class State:
    """What is committed. Drafters read it and never write to it; every commit makes a new one."""

    on_host: OnHost
    committed: Int[Tensor, "B L"]  # the run's own, right-padded; drafters ask for `tokens`
    request_ids: Int[Tensor, " B"]
    sampling: Sampling
    last: Last
    memory: Any = None  # the target's session of this run, for drafters that use its layers
    grammars: Grammars | None = None  # of the run's texts, if they have any
    failures: dict[int, Exception] | None = None
    """Rows whose own processors or grammar failed in this round, and why; None: a failure ends the
    run."""

    share: float = 1.0  # of the rows that decode in this round, those of the same sampling

    @classmethod
    def of(
        cls, texts: Sequence[Sequence[int]], sampling: Sampling, room: int = 100, slots: int = 0
    ) -> "State":
        """A state outside of a run, to try out a rule or a drafter. `texts`: the committed tokens
        of its rows; each row may add `room` more. slots: L, at least the longest text."""
        rows, lengths = len(texts), [len(text) for text in texts]
        tokens = torch.zeros(rows, max(slots, *lengths, 1), dtype=torch.long)
        for row, text in enumerate(texts):
            tokens[row, : len(text)] = torch.tensor(text)
        written = [list(text) for text in texts]
        host = OnHost(lengths, [True] * rows, [room] * rows, [False] * rows, written)
        last = Last(None, None, [0] * rows, None, None)
        return cls(host, tokens, torch.arange(rows), sampling, last)

    def fail(self, row: int, error: Exception) -> None:
        """This row has failed. Raises the error where a failure ends the run. Of rows that are not
        live nothing is expected."""
        if not self.on_host.live[row]:
            return
        if self.failures is None:
            raise error
        self.failures.setdefault(row, error)

    @property
    def rows(self) -> int:
        """B"""
        return len(self.on_host.lengths)

    @property
    def device(self) -> torch.device:
        return self.committed.device

    @cached_property
    def tokens(self) -> Int[Tensor, "B L"]:
        """Right-padded. A copy, made on first use: writing to it does not change the text, and is
        reported."""
        return self.committed.clone()

    def tokens_from(self, first: Sequence[int], count: int) -> Int[Tensor, "B n"]:
        """(B, count) committed tokens of each row from index first[row] on. Past the end of a text
        they are arbitrary."""
        if min(first) == max(first):
            return self.tokens[:, first[0] : first[0] + count]
        steps = torch.arange(count, device=self.device)
        index = torch.tensor(first, device=self.device)[:, None] + steps
        return self.tokens.gather(1, index.clamp(max=self.tokens.shape[1] - 1))

    @property
    def written(self) -> Tensor | None:
        """(B,) bool: `tokens` was written to. None: nobody has asked for them."""
        if "tokens" not in vars(self):
            return None
        return (self.tokens != self.committed).any(1)

    @cached_property
    def lengths(self) -> Int[Tensor, " B"]:
        """Committed tokens, the root included."""
        return torch.tensor(self.on_host.lengths, device=self.device)

    @cached_property
    def live(self) -> Tensor:
        """(B,) bool: the row still decodes."""
        return torch.tensor(self.on_host.live, device=self.device)

    @cached_property
    def room(self) -> Int[Tensor, " B"]:
        """Tokens that the row may still add."""
        return torch.tensor(self.on_host.room, device=self.device)

    @cached_property
    def fresh(self) -> Tensor:
        """(B,) bool: the row's first round."""
        return torch.tensor(self.on_host.fresh, device=self.device)

    @cached_property
    def all_live(self) -> bool:
        return all(self.on_host.live)

    @cached_property
    def deepest(self) -> int:
        """The largest depth that any row's tree may have: the bonus token needs one of `room`."""
        room, live = self.on_host.room, self.on_host.live
        return max((most for most, alive in zip(room, live, strict=True) if alive), default=1) - 1

    @cached_property
    def shallowest(self) -> int:
        """The largest depth that every row's tree may have; -1 where a row is not live."""
        return min(self.on_host.room) - 1 if self.all_live else -1

    @cached_property
    def roots(self) -> Int[Tensor, " B"]:
        """The last committed tokens."""
        lengths = self.on_host.lengths
        if len(lengths) == 1:
            return self.committed[:, max(lengths[0] - 1, 0)].clone()
        return self.committed.gather(1, (self.lengths - 1).clamp(min=0)[:, None])[:, 0]

    def text(self, row: int, start: int = 0) -> list[int]:
        """The committed tokens of a row from index `start` on, the prompt's first."""
        return self.on_host.texts[row][start : self.on_host.lengths[row]]
