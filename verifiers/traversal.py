"""Lossless on trees: leaves are judged before their ancestors, so that a rejected branch still
leaves its prefix a chance.

Weng et al. 2505.12398 (traversal verification). Exact for DET, WOR and WR siblings, adaptive width
included; on a chain it is block verification. Not worse than recursive rejection in any case known
here. Cost: O(V) per node.

visit(v, a), p the law at v and q that of its children, for each child x in order:
    a_x = min(1, a p(x)/q(x))  (DET: a p(x));  visit(x, a_x);  done if it accepts
    m = (a p - q)+  (DET: a p without x),  r = sum(m);  a <- r / (1 - a + r),  p <- norm(m)
    WOR: q loses x
then accept v with u < a and emit from p. The root has a = 1. Each visit accepts with probability a
and law a p.

Letters: B rows, N nodes, V vocabulary.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws, Part, Sites
from specdec.verifying.walk import NOTHING, bonus_alone, verdict_at


class Traversal(Verifier):
    """Exact for DET, WOR and WR siblings."""

    laws = frozenset({SiblingLaw.DET, SiblingLaw.WOR, SiblingLaw.WR})

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        live, rows = p.state.live, p.rows
        if trees.num_nodes == 1:
            return bonus_alone(trees, p, chance, zero_residuals=torch.zeros_like(rows))
        nodes = torch.arange(trees.num_nodes, device=rows.device).repeat_interleave(trees.rows)
        every, zero = rows.repeat(trees.num_nodes), torch.zeros_like(nodes)
        standing = live.repeat(trees.num_nodes) & (nodes > 0) & trees.used.T.flatten()
        at = Sites(every, nodes, zero, trees.depths.T.flatten(), standing)
        coins = chance.places(at, "accept")
        left = Remains(trees, p)
        pending = live  # rows that have not accepted yet
        leaf, zero_residuals = torch.zeros_like(rows), torch.zeros_like(rows)
        law: Tensor | None = None
        for event in tour(trees):
            node, parent = event.node, event.parent
            token = left.tokens.get(node)
            if event.enters is not False:
                left.enter(node, parent, token, event.enters)
            if event.enters is True:
                continue
            judged = pending & left.used.get(node)
            if isinstance(event.enters, Tensor):
                judged = judged & ~event.enters
            if isinstance(node, Tensor):
                part: Part = node * trees.rows + rows
            else:
                part = slice(node * trees.rows, (node + 1) * trees.rows)
            won = coins.bernoulli(part, left.a.get(node), judged)
            stood = left.law(node)
            law = stood if law is None else torch.where(won[:, None], stood, law)
            leaf = torch.where(won, node, leaf)
            pending = pending & ~won
            zero_residuals += left.reject(parent, token, judged & ~won, event.last)
        root = left.law(0 if left.shared else torch.zeros_like(rows))
        law = root if law is None else torch.where(pending[:, None], root, law)  # the root stands
        depth = trees.depths[rows, leaf]
        bonus = chance.categorical(law, Sites(rows, leaf, zero[: len(rows)], depth, live), "bonus")
        return verdict_at(trees, leaf, bonus, zero_residuals=zero_residuals)


# ---------------------------------------------------------------------------- the order of visits


class Event(NamedTuple):
    """A node is entered, or judged when all below it has been rejected. Where the trees of a batch
    have one frame, a node is one number; else a number (B,) per row, and so is the rest."""

    node: int | Tensor
    parent: int | Tensor
    enters: bool | Tensor
    last: bool  # in no row does the parent have a later child: its q is not needed again


def tour(trees: TokenTree) -> Iterator[Event]:
    """Depth first, siblings in order. A leaf is entered and judged at once."""
    if trees.structure.frame is not None:
        yield from _framed(trees.structure.frame)
        return
    # Per row, by the times at which a walk along the edges enters and leaves each node.
    used, below = trees.used, trees.ancestors & trees.used[:, :, None]
    size = below.sum(1)  # (B, N) nodes below a node, itself included
    parents = torch.where(used, trees.parents, -1)
    earlier = (parents[:, :, None] == parents[:, None]) & (parents >= 0)[:, :, None]
    offset = 1 + (earlier.tril(-1) * size[:, None]).sum(2)  # from the parent's time on
    offset[:, 0] = 0
    before = (trees.ancestors * offset[:, None]).sum(2)  # (B, N) nodes that come before
    late = 2 * trees.num_nodes
    entering = torch.where(used, 2 * before - trees.depths, late)
    leaving = torch.where(used, entering + 2 * size - 1, late)
    order = torch.cat([entering, leaving], 1).sort(dim=1, stable=True).indices
    for step in range(1, 2 * trees.num_nodes - 1):  # without the root's
        node = order[:, step] % trees.num_nodes
        enters = (order[:, step] < trees.num_nodes) & (node > 0)
        yield Event(node, parents.gather(1, node[:, None])[:, 0].clamp(min=0), enters, False)


@lru_cache(64)
def _framed(frame: tuple[int, ...]) -> tuple[Event, ...]:
    children: list[list[int]] = [[] for _ in frame]
    for node, parent in enumerate(frame[1:], 1):
        children[parent].append(node)

    def visits(node: int, last: bool) -> Iterator[Event]:
        if children[node]:
            yield Event(node, frame[node], True, last)
            for child in children[node]:
                yield from visits(child, child == children[node][-1])
            yield Event(node, frame[node], False, last)
        else:
            yield Event(node, frame[node], True, last)
            yield Event(node, frame[node], False, last)

    found: list[Event] = []
    for child in children[0]:
        found += visits(child, child == children[0][-1])
    return tuple(found)


# ------------------------------------------------------------------------ what is left of the laws


SMALL = 1e-6  # a sum of p below which p is normalised


class PerNode:
    """Something (B, ...) of every node: a list where a node is one number in all rows."""

    def __init__(self, values: Tensor, shared: bool, written: bool = False) -> None:
        self._list = list(values.unbind(1)) if shared else []
        self._whole = values.clone() if written and not shared else values
        self._rows = torch.arange(len(values), device=values.device)

    def get(self, node: int | Tensor) -> Tensor:
        return self._whole[self._rows, node] if isinstance(node, Tensor) else self._list[node]

    def set(self, node: int | Tensor, values: Tensor) -> None:
        if isinstance(node, Tensor):
            self._whole[self._rows, node] = values
        else:
            self._list[node] = values


class Remains:
    """The remaining weights and laws of every node while its children are being visited.

    a      the current weight of the node
    p      (B, V) the law that it would emit from, not normalised; total: its sum
    q      (B, V) what its children were drawn from; z: what is left of its sum
    """

    def __init__(self, trees: TokenTree, laws: Laws) -> None:
        self.shared = shared = trees.structure.frame is not None
        self.shrinks = trees.law is SiblingLaw.WOR
        p = laws.everywhere
        one = torch.ones(p.shape[:2], dtype=torch.float64, device=p.device)
        self.tokens = PerNode(trees.tokens, shared)
        self.used = PerNode(trees.used, shared)
        self.a = PerNode(one, shared, written=True)
        self.p = PerNode(p, shared, written=True)
        self.total = PerNode(one, shared, written=True)
        self.q = None if trees.q is None else PerNode(trees.q, shared, written=self.shrinks)
        self.z = PerNode(one, shared, written=True)

    def law(self, node: int | Tensor) -> Tensor:
        """(B, V) p, normalised."""
        p = self.p.get(node)
        return p / self.total.get(node).to(p.dtype)[:, None]

    def enter(
        self, node: int | Tensor, parent: int | Tensor, token: Tensor, enters: bool | Tensor
    ) -> None:
        """The weight of a node: min(1, a p(x) / q(x)), of what is left of its parent."""
        x = token[:, None]
        p, total, a = (part.get(parent) for part in (self.p, self.total, self.a))
        share = a * p.gather(1, x)[:, 0] / total
        if self.q is not None:
            drawn = self.q.get(parent).gather(1, x)[:, 0] / self.z.get(parent)
            share = torch.where(drawn > 0, share / drawn, 0.0).clamp_(max=1)
        if isinstance(enters, Tensor):
            share = torch.where(enters, share, self.a.get(node))
        self.a.set(node, share)

    def reject(self, parent: int | Tensor, token: Tensor, lost: Tensor, last: bool) -> Tensor:
        """In `lost` rows a child was rejected: m = (a p - q)+, a <- r / (1 - a + r), p <- norm(m).
        Returns where nothing was left although the node is accepted for certain; only rounding can
        cause this.

        Passes over the vocabulary are the main cost, so p is divided by its sum only where it is
        used, not here; likewise q, which loses a token only if it will be needed again.
        """
        x = token[:, None]
        a, p, total = (part.get(parent) for part in (self.a, self.p, self.total))
        lost = lost & (a > 0)
        if self.q is None:
            left = p.scatter(1, x, p.gather(1, x).masked_fill(lost[:, None], 0.0))
        else:  # m / a, times the sum of p, in rows that lost; p in the others
            q, z, most = self.q.get(parent), self.z.get(parent), torch.finfo(p.dtype).max
            scale = torch.where(lost, total / (a * z), 0.0).clamp_(max=most).to(p.dtype)
            left = torch.addcmul(p, q.to(p.dtype), scale[:, None], value=-1).clamp_(min=0)
            if self.shrinks and not last:
                # The sum is taken anew: 1 - q(x) is nothing but rounding where q is nearly certain.
                q = q.scatter(1, x, q.gather(1, x).masked_fill(lost[:, None], 0.0))
                self.q.set(parent, q)
                self.z.set(parent, torch.where(lost, q.sum(-1, dtype=torch.float64), z))
        mass = left.sum(-1).double() / total
        empty = lost & (mass <= NOTHING)
        left = torch.where(empty[:, None], p, left)
        r = a * mass
        rest = 1 - a + r
        after = torch.where(lost, torch.where(rest > 0, r / rest, 1.0), a)
        total = torch.where(lost & ~empty, mass * total, total)
        small = total < SMALL  # before float32 runs out of exponents
        left = torch.where(small[:, None], left / total.to(p.dtype)[:, None], left)
        self.a.set(parent, after)
        self.p.set(parent, left)
        self.total.set(parent, torch.where(small, 1.0, total))
        return empty & (a >= 1)
