"""Drafters that look drafts up, and drafts out of suffix indices: the likeliest chain, or the
likeliest tree, of what followed.

Siblings are DET: they are a function of the text. Everything here is Python on the host.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import NamedTuple

import numpy as np
import torch

from specdec.chance import Draws
from specdec.drafting.suffix_index import Continuation, Cursor, SuffixIndex
from specdec.interfaces import Drafter
from specdec.state import State
from specdec.tree import SiblingLaw, TokenTree

RUNNER_UP = 0.03  # how likely the best runner-up of the root's law is to follow the root (measured)
Match = tuple[SuffixIndex, Cursor]


class Draft(NamedTuple):
    """One row's drafted nodes, numbered from 1."""

    tokens: list[int]
    parents: list[int]
    expected: float = 0.0  # accepted tokens, by the estimates of what was drafted
    shares: Sequence[float] = ()  # of each node: how often it followed its parent


EMPTY = Draft([], [])


class Lookup(Drafter):
    """A drafter that looks drafts up, row by row."""

    law = SiblingLaw.DET
    looks_up = True
    expected: Sequence[float] = ()

    @abstractmethod
    def draft(self, row: int, state: State) -> Draft:
        """For a row that is live; `EMPTY` where nothing is found. No deeper than
        `state.on_host.room[row] - 1`. Parents are numbers of nodes, and 0 is the root."""

    def propose(self, state: State, chance: Draws) -> TokenTree:
        live = state.on_host.live
        drafts = [self.draft(row, state) if alive else EMPTY for row, alive in enumerate(live)]
        self.expected = [draft.expected for draft in drafts]
        self.shares = [draft.shares for draft in drafts]
        return tree_of(drafts, state, self.chain)


class Offer(NamedTuple):
    """What may come below a node, as one index has it: the most frequent first, each looked at when
    the one before it was taken."""

    parent: int
    worth: float  # of the parent
    found_in: SuffixIndex | None  # None: a runner-up
    rest: Iterator[Continuation]


# (-worth, number of the offer, rank in it, ...): no two entries compare beyond the rank
Entry = tuple[float, int, int, Continuation, Offer]


class Budget(NamedTuple):
    """How many nodes a match is worth: factor x its length + offset, at most `nodes`
    (SuffixDecoding 2411.04975, 3.2). Nodes of less than `least` probability are left out."""

    nodes: int
    factor: float
    offset: float
    least: float

    def of(self, length: int) -> int:
        return max(0, min(self.nodes, int(self.factor * length + self.offset)))


def chain(matches: Sequence[Match], budget: Budget, depth: int) -> Draft:
    """From each suffix that has been met, the most frequent continuation, token by token; the chain
    that expects most is drafted. Ties go to the longer match, then to the earlier index."""
    best = EMPTY
    levels = [
        (length, -place, state)
        for place, (index, cursor) in enumerate(matches)
        for length, state in index.matches(cursor)
    ]
    for length, place, state in sorted(levels, reverse=True):
        most = min(budget.of(length), depth)
        if most <= best.expected:  # a node expects one token at most
            continue
        found = _follow(matches[-place][0], state, length, most, budget.least)
        if found.expected > best.expected:
            best = found
    return best


def _follow(index: SuffixIndex, state: int, length: int, most: int, least: float) -> Draft:
    tokens: list[int] = []
    shares: list[float] = []
    worth, expected = 1.0, 0.0
    while len(tokens) < most:
        found = next(index.continuations(state, length, 1), None)
        if found is None:
            break
        worth *= found.worth
        if worth < least:
            break
        tokens.append(found.token)
        shares.append(found.worth)
        expected += worth
        state, length = found.state, found.length
    return Draft(tokens, list(range(len(tokens))), expected, shares)


def tree(
    matches: Sequence[Match],
    budget: Budget,
    depth: int,
    runners_up: Sequence[tuple[int, float]] = (),
) -> Draft:
    """The likeliest nodes first, from all suffixes that have been met, merged in one trie.

    runners_up: tokens that may follow the root and how likely they are; each is continued by a
    lookup of its own (LogitSpec 2507.01449). Ties go to the earlier index and the longer match.
    """
    tokens: list[int] = []
    parents: list[int] = []
    depths, worths = [0], [1.0]
    children: dict[tuple[int, int], int] = {}
    heap: list[Entry] = []
    offers = count()
    # Of each node: the states that were offered below it, with the longest match of each.
    offered: dict[tuple[int, SuffixIndex, int], int] = {}
    longest = max((cursor.length for _, cursor in matches), default=0)
    most, expected, least = budget.of(longest), 0.0, budget.least

    def offer(index: SuffixIndex, state: int, length: int, parent: int, worth: float) -> None:
        # The same with a longer match was worth at least as much, and came before.
        if offered.get((parent, index, state), -1) >= length:
            return
        offered[parent, index, state] = length
        rest = index.continuations(state, length, most)
        best = next(rest, None)
        if best is not None and worth * best.worth >= least:
            own = Offer(parent, worth, index, rest)
            heappush(heap, (-worth * best.worth, next(offers), 0, best, own))

    for index, cursor in matches if depth > 0 else ():
        for length, state in index.matches(cursor):
            offer(index, state, length, 0, 1.0)
    for token, worth in runners_up if depth > 0 else ():
        alone = Offer(0, worth, None, iter(()))
        heappush(heap, (-worth, next(offers), 0, Continuation(token, 1.0, 0, 0), alone))
    while heap and len(tokens) < most:
        lost, number, rank, found, (parent, above, found_in, rest) = heap[0]
        following = next(rest, None)
        if following is not None and above * following.worth >= least:
            behind = (-above * following.worth, number, rank + 1, following, heap[0][-1])
            heapreplace(heap, behind)
        else:
            heappop(heap)
        worth, token = -lost, found.token
        node = children.get((parent, token))
        if node is None:
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            worths.append(worth)
            node = children[parent, token] = len(tokens)
            expected += worth
        if depths[node] == depth:
            continue
        if found_in is not None:
            offer(found_in, found.state, found.length, node, worth)
            continue
        for index, cursor in matches:
            ahead = cursor.copy()
            index.advance(ahead, token)
            if ahead.length > 1:
                offer(index, ahead.state, ahead.length, node, worth)
    shares = [own / worths[above] for own, above in zip(worths[1:], parents, strict=True)]
    return Draft(tokens, parents, expected, shares)


def runners_up(state: State, row: int, most: int) -> list[tuple[int, float]]:
    """The other best tokens of the law that the root was drawn from, and how likely each is to come
    next: a token that was nearly drawn often comes one token later."""
    found = state.last.runners_up
    if not most or found is None or state.on_host.fresh[row]:
        return []
    root = state.text(row)[-1]
    others = [token for token in found[row].tolist() if token != root][:most]
    return [(token, RUNNER_UP / (1 + 0.4 * rank)) for rank, token in enumerate(others)]


def tree_of(drafts: Sequence[Draft], state: State, is_chain: bool) -> TokenTree:
    """The drafts of all rows as one padded tree."""
    root = state.roots
    widest = max(len(draft.tokens) for draft in drafts)
    if widest == 0:
        return TokenTree.root(root)
    padded = [draft.tokens + [0] * (widest - len(draft.tokens)) for draft in drafts]
    nodes = torch.cat([root[:, None], torch.from_numpy(np.array(padded)).to(root.device)], 1)
    if is_chain:
        lengths = torch.tensor([len(draft.tokens) for draft in drafts]).to(root.device)
        return TokenTree.chain(nodes, lengths)
    parents = [[-1, *d.parents, *[-1] * (widest - len(d.parents))] for d in drafts]
    return TokenTree(nodes, parents)
