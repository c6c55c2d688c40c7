"""Drafts out of suffix indices: the likeliest chain, or the likeliest tree, of what followed.

Siblings are DET: they are a function of the text. Everything here is Python on the host.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

import torch

from specdec.drafting.suffix_index import Cursor, SuffixIndex
from specdec.state import State
from specdec.tree import TokenTree

RUNNER_UP = 0.03  # how likely the best runner-up of the root's law is to follow the root (measured)
Match = tuple[SuffixIndex, Cursor]


class Draft(NamedTuple):
    """One row's drafted nodes, numbered from 1."""

    tokens: list[int]
    parents: list[int]
    expected: float = 0.0  # accepted tokens, by the estimates of what was drafted
    shares: Sequence[float] = ()  # of each node: how often it followed its parent


EMPTY = Draft([], [])


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
        found = index.continuations(state, length, 1)
        if not found:
            break
        worth *= found[0].worth
        if worth < least:
            break
        tokens.append(found[0].token)
        shares.append(found[0].worth)
        expected += worth
        state, length = found[0].state, found[0].length
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
    # (-worth, order, parent, token, index, state, length of the match)
    heap: list[tuple[float, int, int, int, SuffixIndex | None, int, int]] = []
    order = count()  # of offers: no two entries compare beyond it
    longest = max((cursor.length for _, cursor in matches), default=0)
    most, expected, least = budget.of(longest), 0.0, budget.least

    def offer(index: SuffixIndex, state: int, length: int, parent: int, worth: float) -> None:
        for token, share, following, reached in index.continuations(state, length, most):
            if worth * share < least:
                break
            entry = (-worth * share, next(order), parent, token, index, following, reached)
            heappush(heap, entry)

    for index, cursor in matches if depth > 0 else ():
        for length, state in index.matches(cursor):
            offer(index, state, length, 0, 1.0)
    for token, worth in runners_up if depth > 0 else ():
        heappush(heap, (-worth, next(order), 0, token, None, 0, 0))
    while heap and len(tokens) < most:
        worth, _, parent, token, found_in, state, length = heappop(heap)
        node = children.get((parent, token))
        if node is None:
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            worths.append(-worth)
            node = children[parent, token] = len(tokens)
            expected -= worth
        if depths[node] == depth:
            continue
        if found_in is not None:
            offer(found_in, state, length, node, -worth)
            continue
        for index, cursor in matches:
            ahead = cursor.copy()
            index.advance(ahead, token)
            if ahead.length > 1:
                offer(index, ahead.state, ahead.length, node, -worth)
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
    nodes = torch.cat([root[:, None], torch.tensor(padded).to(root.device)], 1)
    if is_chain:
        lengths = torch.tensor([len(draft.tokens) for draft in drafts]).to(root.device)
        return TokenTree.chain(nodes, lengths)
    parents = [[-1, *d.parents, *[-1] * (widest - len(d.parents))] for d in drafts]
    return TokenTree(nodes, parents)
