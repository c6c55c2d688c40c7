"""Seats: rows of the batch that requests take. A prompt is prefilled in its seat and leaves it when
its text ends, or when others need its memory.

Letters: B rows (seats), b rows that are filled, N nodes, D depth, K taps, d hidden size.
"""

from collections.abc import Sequence
from math import inf

import numpy as np
import torch
from torch import Tensor

from specdec.grammar import Grammars
from specdec.groups import Group, Groups
from specdec.interfaces import OpenedPages, Paged, Scores, Session, kv_of
from specdec.measuring.clock import PREFILL
from specdec.measuring.recorder import Recorder
from specdec.models.grammars import tokens_of
from specdec.models.prefill import Prefill, Reading, best_tokens, joined
from specdec.outcome import Outcome
from specdec.requests import Call
from specdec.state import Last, OnHost, State
from specdec.tickets import FAILED, Line, Ticket


class Seats:
    """Who sits where, and the tokens of every row on the device."""

    def __init__(
        self, call: Call, target: Session, groups: Groups, line: Line, recorder: Recorder
    ) -> None:
        self.call, self.target, self.groups, self.recorder = call, target, groups, recorder
        self.waiting = line
        self.tickets: list[Ticket | None] = [None] * call.seats
        self.ended: list[Ticket] = []  # in this round
        self.numbers = np.full(call.seats, -1)  # of the request that each seat had last
        self._prefill = Prefill(target, groups, call.seats, call.prefill_chunk)
        self._grammars: Grammars | None = None
        device = call.target.device
        self.tokens = torch.zeros(call.seats, call.slots, dtype=torch.long, device=device)
        self._ids = torch.zeros(call.seats, dtype=torch.long, device=device)
        none, false = [0] * call.seats, [False] * call.seats
        self.host = OnHost(none, false, none, false, [[] for _ in none])
        self.pages = target if isinstance(target, Paged) else None
        self._bounded = None if kv_of(call.target).pages is None else self.pages
        if self.pages is not None:
            target.release(range(call.seats))  # nobody is there yet

    @property
    def taken(self) -> bool:
        return any(self.tickets)

    def fill(self) -> None:
        """Free seats take the next requests, whose prompts are read there. The memory of other rows
        stays."""
        self.clear()
        self._make_room()
        self._seat()
        if self._prefill.busy:
            with self.recorder.clock(PREFILL):
                self._enter(self._prefill.read(self.tokens))
            self._make_room()
        seated = zip(self.tickets, self.host.live, strict=True)
        live = {id(ticket.group) for ticket, alive in seated if ticket and alive}
        self.groups.live = [group for group in self.groups.all if id(group) in live]

    def clear(self) -> None:
        """The seats of requests that were cancelled are free."""
        for row, ticket in enumerate(self.tickets):
            if ticket is not None and ticket.over:
                self._empty(row)

    # ------------------------------------------------------------------------- who gets a seat

    def _seat(self) -> None:
        """The next requests take the free rows."""
        rows: list[int] = []
        for row in [row for row, ticket in enumerate(self.tickets) if ticket is None]:
            if not self.waiting or not self._has_memory(self.waiting.first):
                break
            ticket = self.tickets[row] = self.waiting.pop()
            self._prefill.begin(row, ticket.text)
            rows.append(row)
        if rows:
            self.numbers[rows] = [self._at(row).number for row in rows]
            self.recorder.admit(self.numbers[rows].tolist())
            self._write_prompts(rows)
            self.target.release(rows)

    def _at(self, row: int) -> Ticket:
        ticket = self.tickets[row]
        assert ticket is not None
        return ticket

    def _write_prompts(self, rows: list[int]) -> None:
        lengths, room, texts = list(self.host.lengths), list(self.host.room), list(self.host.texts)
        for row in rows:
            ticket = self._at(row)
            request = ticket.request
            texts[row] = ticket.text
            lengths[row], room[row] = len(texts[row]), ticket.room
            ticket.group.seat(row, request)
            if request.grammar is not None and self._grammars is None:
                self._grammars = self.recorder.grammars = Grammars(tokens_of(self.call.target))
            if self._grammars:
                self._grammars.enter(row, request.prompt, request.grammar)
        device = self.tokens.device
        missing = max(self._at(row).request.longest for row in rows) - self.tokens.shape[1]
        if missing > 0:
            self.tokens = torch.nn.functional.pad(self.tokens, (0, missing))
        widest = max(lengths[row] for row in rows)
        padded = torch.tensor([texts[row] + [0] * (widest - lengths[row]) for row in rows])
        ids = [self._at(row).request.request_id for row in rows]
        index = torch.tensor(rows, device=device)
        self.tokens = self.tokens.index_fill(0, index, 0)
        self.tokens[index, :widest] = padded.to(device)
        self._ids = self._ids.index_put((index,), torch.tensor(ids, device=device))
        self.host = self.host._replace(lengths=lengths, room=room, texts=texts)

    def _enter(self, done: Sequence[Reading]) -> None:
        """These prompts have been read: their rows decode from now on."""
        if not done:
            return
        live, fresh = list(self.host.live), list(self.host.fresh)
        for one in done:
            live[one.row] = fresh[one.row] = True
        self.host = self.host._replace(live=live, fresh=fresh)
        for group in self.groups.all:
            own = [one for one in done if self._at(one.row).group is group]
            if own:
                self._enter_group(group, own)
        self._renew()

    def _enter_group(self, group: Group, own: Sequence[Reading]) -> None:
        rows, last = [one.row for one in own], group.last
        taps, best = joined([one.taps for one in own]), joined([one.best for one in own])
        state = self._state(group, last._replace(taps=taps, best=best))
        group.drafter.enter(rows, state)
        pairs = zip(last.num_accepted, self.host.fresh, strict=True)
        accepted = [0 if fresh else n for n, fresh in pairs]
        counts = [len(one.tokens) for one in own]
        newest = newest_taps(last.taps, taps, rows, counts, self.call.seats)
        group.last = last._replace(num_accepted=accepted, taps=newest)

    def _state(self, group: Group, last: Last) -> State:
        """As a group sees it: the rows of others are not live."""
        host, share = self.host, 1.0
        if len(self.groups.all) > 1:
            pairs = zip(self.tickets, host.live, strict=True)
            live = [
                alive and ticket is not None and ticket.group is group for ticket, alive in pairs
            ]
            share = sum(live) / max(1, sum(host.live))
            host = host._replace(live=live)
        failures: dict[int, Exception] | None = {} if self.call.goes_on else None
        return State(
            host,
            self.tokens,
            self._ids,
            group.sampling,
            last,
            self.target,
            self._grammars,
            failures,
            share,
        )

    def _renew(self) -> None:
        """Every group sees who is there now."""
        for group in self.groups.all:
            group.state = self._state(group, group.last)

    # ---------------------------------------------------------------------------------- memory

    def _has_memory(self, ticket: Ticket | None) -> bool:
        """Whether the pool has pages for a request, and for what the others are about to need."""
        target = self._bounded
        if target is None or not self.taken or ticket is None:
            return True
        text, nodes = ticket.text, max(self._nodes, reach_of(ticket.group))
        texts = [text, *(other.text for other in self.tickets if other is not None)]
        needed = sum(self._pages(target, one, nodes) for one in texts)
        if needed - self._spared > target.pages:
            return False
        shared = self._prefill.shared(text[:-1]) // target.page
        wanted = self._pages(target, text, nodes) - shared
        for row, other in enumerate(self.tickets):
            if other is not None:
                held = self._prefill.held(row)
                held = self.host.lengths[row] - 1 if held is None else held
                wanted += self._pages(target, other.text, nodes) - target.pages_for(held)
        return wanted <= target.free

    def _pages(self, target: Paged, text: Sequence[int], nodes: int) -> int:
        """For the text, a tree behind it, and one page to grow by."""
        return target.pages_for(len(text) - 1 + nodes) + 1

    @property
    def _nodes(self) -> int:
        """Of the largest tree that may be scored."""
        return max((reach_of(one.group) for one in self.tickets if one), default=1)

    @property
    def _spared(self) -> float:
        """Pages that texts share by now in the memory of drafters, which have as many pages as the
        target. What a text will share there is known once the drafter has read it. Infinite where
        drafters have no pages."""
        drafters = [one for one in self.groups.opened if isinstance(one, OpenedPages)]
        return min((one.spared for one in drafters), default=inf)

    def _lacks_pages(self, target: Paged, rows: Sequence[int]) -> bool:
        """Whether these rows cannot all score a tree."""
        if target.lacking(rows, self._nodes):
            return True
        lengths = [self.host.lengths[row] - 1 + self._nodes for row in rows]
        return sum(map(target.pages_for, lengths)) - self._spared > target.pages

    def _make_room(self) -> None:
        """Set the youngest requests aside until the others have memory for a tree."""
        target = self._bounded
        if target is None:
            return
        while len(rows := [row for row, one in enumerate(self.tickets) if one is not None]) > 1:
            if not self._lacks_pages(target, rows):
                return
            row = max(rows, key=self._at)
            ticket = self._at(row)
            self._empty(row)
            ticket.set_aside += 1
            self.waiting.join(ticket)

    def _empty(self, row: int) -> None:
        """Nobody sits here any more."""
        ticket = self._at(row)
        if not self._prefill.has(row):
            self._leave(ticket.group, [row])
        self._prefill.drop(row)
        self.target.release([row])
        self.tickets[row] = None
        live = list(self.host.live)
        live[row] = False
        self.host = self.host._replace(live=live)
        self._renew()

    # ---------------------------------------------------------------------------------- commit

    def commit(self, outcome: Outcome, scores: Scores) -> np.ndarray:
        """Append the accepted tokens, cut where a text ends, and free the seats of ended texts.
        Returns how many tokens each row kept."""
        host = self.host
        lengths, live, room = list(host.lengths), list(host.live), list(host.room)
        places: list[int] = []  # in the flat `tokens`
        values: list[int] = []
        kept = [0] * len(live)
        for row in np.flatnonzero(outcome.live).tolist():
            added = self._at(row).add(outcome.tokens[row])
            first = row * self.tokens.shape[1] + lengths[row]
            places.extend(range(first, first + len(added)))
            values.extend(added)
            host.texts[row].extend(added)  # earlier states see only as much as their lengths say
            lengths[row] += len(added)
            room[row] -= len(added)
            kept[row] = len(added)
        if places:
            index, ids = torch.tensor([places, values]).to(self.tokens.device)
            self.tokens.put_(index, ids)
        for group in self.groups.live:
            for row, error in (group.state.failures or {}).items():
                self._at(row).end(FAILED, error)
        over = [row for row, alive in enumerate(live) if alive and self._at(row).over]
        for row in over:
            live[row] = False
        self.host = OnHost(lengths, live, room, [False] * len(live), host.texts)
        for group in self.groups.live:
            group.last = self._last(group, scores)
            decoded = group.state.on_host.live
            group.state = self._state(group, group.last)
            group.drafter.observe(group.state)
            gone = [row for row in over if decoded[row]]
            if gone:
                self._leave(group, gone)
        self._free(over)
        return np.array(kept)

    def _last(self, group: Group, scores: Scores) -> Last:
        trees, outcome = group.trees, group.outcome
        accepted = [max(count, 0) for count in outcome.keep]
        drafted = (outcome.parents >= 0).sum(1).tolist()
        newest = on_path(scores.taps, outcome.verdict.path)
        best = best_tokens(scores.logits[:, : trees.num_nodes], group.drafter.best_tokens)
        asked = outcome.aside, outcome.runners_up, best
        return Last(trees, outcome.verdict, accepted, drafted, newest, *asked)

    def _leave(self, group: Group, rows: Sequence[int]) -> None:
        """These rows are none of the group's any more, nor are their pages."""
        group.drafter.leave(rows)
        for one in group.drafter.opened if self._bounded else ():
            if isinstance(one, OpenedPages):
                one.release(rows)

    def _free(self, rows: Sequence[int]) -> None:
        self.ended = [self._at(row) for row in rows]
        for row in rows:
            self.tickets[row] = None
        if rows and self.pages is not None:
            self.target.release(rows)  # others may need the pages now


def reach_of(group: Group) -> int:
    """Slots behind a text that a round of the group may write."""
    drafter = group.drafter
    opened = [one.reach for one in drafter.opened if isinstance(one, OpenedPages)]
    return max([drafter.max_nodes, *opened])


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
