"""Seats: rows of the batch that prompts take. A prompt is prefilled in its seat and leaves it when
its text ends.

Letters: B rows (seats), b rows that are filled, N nodes, D depth, K taps, d hidden size.
"""

import numpy as np
import torch
from torch import Tensor

from specdec.grammar import Grammars
from specdec.interfaces import Drafter, Scores, Session
from specdec.measuring.clock import PREFILL
from specdec.measuring.recorder import Recorder
from specdec.models.grammars import tokens_of
from specdec.outcome import Outcome
from specdec.output import Texts
from specdec.probs import top
from specdec.requests import Call
from specdec.state import Last, OnHost, State
from specdec.tree import TokenTree


class Seats:
    """Who sits where, and the tokens of every row on the device."""

    def __init__(
        self, call: Call, target: Session, drafter: Drafter, texts: Texts, recorder: Recorder
    ) -> None:
        self.call, self.target, self.drafter = call, target, drafter
        self.texts, self.recorder = texts, recorder
        has_grammar = any(request.grammar for request in call.requests)
        self.grammars = Grammars(tokens_of(call.target)) if has_grammar else None
        recorder.grammars = self.grammars
        # numbers of waiting prompts, the next one last
        self.waiting = list(reversed(range(len(call.requests))))
        self.numbers = np.full(call.seats, -1)  # of the prompt in each seat
        device = call.target.device
        self.tokens = torch.zeros(call.seats, call.longest, dtype=torch.long, device=device)
        self._ids = torch.zeros(call.seats, dtype=torch.long, device=device)

    def empty(self) -> State:
        """The state before any prompt has a seat."""
        none = [0] * self.call.seats
        false = [False] * len(none)
        host = OnHost(none, false, none, false, [[] for _ in none])
        return self._state(host, Last(None, None, none, None, None))

    def _state(self, host: OnHost, last: Last) -> State:
        sampling, grammars = self.call.sampling, self.grammars
        return State(host, self.tokens, self._ids, sampling, last, self.target, grammars)

    def fill(self, state: State) -> State:
        """Free seats take the next prompts, which are prefilled there. The memory of other rows
        stays."""
        free = [row for row, live in enumerate(state.on_host.live) if not live]
        rows = free[: len(self.waiting)]
        if not rows:
            return state
        with self.recorder.clock(PREFILL):
            numbers = [self.waiting.pop() for _ in rows]
            self.numbers[rows] = numbers
            self.recorder.admit(numbers)
            host = self._write_prompts(state.on_host, rows)
            self.target.release(rows)
            counts = [host.lengths[row] - 1 for row in rows]
            taps, best = self._prefill(rows, counts)
            self.drafter.enter(rows, self._state(host, state.last._replace(taps=taps, best=best)))
            accepted = [
                0 if fresh else n
                for n, fresh in zip(state.last.num_accepted, host.fresh, strict=True)
            ]
            newest = newest_taps(state.last.taps, taps, rows, counts, self.call.seats)
            return self._state(host, state.last._replace(num_accepted=accepted, taps=newest))

    def _write_prompts(self, host: OnHost, rows: list[int]) -> OnHost:
        lengths, room, texts = list(host.lengths), list(host.room), list(host.texts)
        live, fresh = list(host.live), list(host.fresh)
        for row in rows:
            request = self.call.requests[self.numbers[row]]
            texts[row] = list(request.prompt)
            lengths[row], live[row], fresh[row] = len(request.prompt), True, True
            room[row] = self.call.max_new_tokens
            if self.grammars:
                self.grammars.enter(row, request.prompt, request.grammar)
        widest = max(lengths[row] for row in rows)
        padded = torch.tensor([texts[row] + [0] * (widest - lengths[row]) for row in rows])
        ids = [self.call.requests[self.numbers[row]].request_id for row in rows]
        device = self.tokens.device
        index = torch.tensor(rows, device=device)
        self.tokens = self.tokens.index_fill(0, index, 0)
        self.tokens[index, :widest] = padded.to(device)
        self._ids = self._ids.index_put((index,), torch.tensor(ids, device=device))
        return OnHost(lengths, live, room, fresh, texts)

    def _prefill(self, rows: list[int], counts: list[int]) -> tuple[Tensor | None, Tensor | None]:
        """Read prompt[:-1] of these rows; the taps of all of it (b, T, K, d), and the best tokens
        (b, T, k)."""
        if not any(counts):
            return None, None
        every = len(rows) == self.call.seats
        tokens = self.tokens if every else self.tokens[rows]
        seats = None if every else rows
        tokens, best = tokens[:, : max(counts)], self.drafter.best_tokens
        scores = self.target.read(tokens, counts, seats, self.drafter.taps, every=best > 0)
        return scores.taps, best_tokens(scores.logits, best)

    def commit(
        self, state: State, trees: TokenTree, outcome: Outcome, scores: Scores
    ) -> tuple[State, np.ndarray]:
        """Append the accepted tokens, cut where a text ends, and free the seats of ended texts.
        Also returns how many tokens each row kept."""
        host = state.on_host
        lengths, live, room = list(host.lengths), list(host.live), list(host.room)
        places: list[int] = []  # in the flat `tokens`
        values: list[int] = []
        decoded = [row for row, alive in enumerate(host.live) if alive]
        kept = [0] * len(live)
        for row in decoded:
            added, live[row] = self.texts.add(int(self.numbers[row]), outcome.tokens[row])
            first = row * self.call.longest + lengths[row]
            places.extend(range(first, first + len(added)))
            values.extend(added)
            host.texts[row].extend(added)  # earlier states see only as much as their lengths say
            lengths[row] += len(added)
            room[row] -= len(added)
            kept[row] = len(added)
        index, ids = torch.tensor([places, values]).to(self.tokens.device)
        self.tokens.put_(index, ids)
        accepted = [max(count, 0) for count in outcome.keep]
        newest = on_path(scores.taps, outcome.verdict.path)
        drafted = (outcome.parents >= 0).sum(1).tolist()
        best = best_tokens(scores.logits, self.drafter.best_tokens)
        asked = outcome.aside, outcome.runners_up, best
        last = Last(trees, outcome.verdict, accepted, drafted, newest, *asked)
        after = self._state(OnHost(lengths, live, room, [False] * len(live), host.texts), last)
        self.drafter.observe(after)
        over = [row for row in decoded if not live[row]]
        if over:
            self.drafter.leave(over)
        return after, np.array(kept)


def best_tokens(logits: Tensor, k: int) -> Tensor | None:
    """(B, n, k) best tokens of logits (B, n, V); None if no drafter asks. Among the best 2k, ties
    go to the lowest index."""
    if not k:
        return None
    rows, nodes, vocabulary = logits.shape
    flat, k = logits.reshape(-1, vocabulary), min(k, vocabulary)
    # Few candidates first: `top` over a whole vocabulary takes several times as long as topk.
    values, index = flat.topk(min(2 * k, vocabulary))
    index, order = index.sort(1)
    best = index.gather(1, top(values.gather(1, order), k))
    return best.view(rows, nodes, -1)


def on_path(taps: Tensor | None, path: np.ndarray) -> Tensor | None:
    """(B, D + 1, K, d) of (B, N, K, d): the states of the root and of the nodes of `path` (B,
    D)."""
    if taps is None:
        return None
    nodes = torch.from_numpy(np.pad(path.clip(0), ((0, 0), (1, 0)))).to(taps.device)
    rows = torch.arange(len(path), device=taps.device)[:, None]
    return taps[rows, nodes]


def newest_taps(
    before: Tensor | None, prompts: Tensor | None, rows: list[int], counts: list[int], seats: int
) -> Tensor | None:
    """`Last.taps` after new rows have come in. They get the state of the token before the root, as
    if they had accepted nothing. prompts (b, T, K, d): the states of their prompts."""
    if prompts is None:
        return before
    last = torch.tensor([max(count - 1, 0) for count in counts], device=prompts.device)
    newest = prompts[torch.arange(len(rows), device=prompts.device), last]
    if before is None:
        before = prompts.new_zeros(seats, 1, *prompts.shape[2:])
    where = (torch.tensor(rows, device=prompts.device), torch.tensor(0, device=prompts.device))
    return before.index_put(where, newest)
