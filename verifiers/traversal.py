"""Lossless on trees: leaves are judged before their ancestors, so that a rejected branch still leaves its prefix a chance.

Weng et al. 2505.12398 (traversal verification). Exact for DET, WOR and WR siblings, adaptive width included; on a chain it is
block verification. Not worse than recursive rejection in any case known here. Cost: O(V) per node, O(depth V) memory.

visit(v, a), p the law at v and q that of its children, for each child x in order:
    a_x = min(1, a p(x)/q(x))  (DET: a p(x));  visit(x, a_x);  done if it accepts
    m = (a p - q)+  (DET: a p without x),  r = sum(m);  a <- r / (1 - a + r),  p <- norm(m);  WOR: q loses x
then accept v with u < a and emit from p. The root has a = 1. Each visit accepts with probability a and law a p.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws, Sites, Toss
from specdec.descent import NOTHING, verdict_at
from specdec.sampling import picked


class Traversal(Verifier):
    """Exact for DET, WOR and WR siblings."""

    laws = frozenset({SiblingLaw.DET, SiblingLaw.WOR, SiblingLaw.WR})

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        rows = torch.arange(trees.rows, device=trees.tokens.device)
        rank = torch.zeros_like(rows)
        on_host = rows.device.type == "cpu"
        pending = laws.state.live.clone()  # rows that have not accepted yet
        leaf, zero_residuals = torch.zeros_like(rows), torch.zeros_like(rows)
        stack = [Open.at(trees, laws, rows, leaf, torch.ones(trees.rows, dtype=torch.float64, device=rows.device))]
        law = stack[0].law()
        places = itinerary(trees)
        toss, coin = coins(chance, places, laws.state.live), 0
        for place, node in places:
            parent = stack[place.depth - 1]
            token = trees.tokens[rows, node]
            if place.opens:
                stack[place.depth :] = [Open.at(trees, laws, rows, node, parent.share(token))]
                continue
            a = parent.share(token) if place.leaf else stack[place.depth].a
            standing = pending if place.everywhere else pending & (node > 0)
            won, coin = toss(slice(coin, coin + trees.rows), a, standing), coin + trees.rows
            if not on_host or bool(won.any()):
                p = laws[rows, node] if place.leaf else stack[place.depth].law()
                law = torch.where(won[:, None], p, law)
                leaf = torch.where(won, node, leaf)
                pending = pending & ~won
                if on_host and not bool(pending.any()):
                    break
            zero_residuals += parent.reject(token, standing & ~won, place.last)
        law = torch.where(pending[:, None], stack[0].law(), law)  # the root stands where everything else fell
        depth = trees.depths[rows, leaf]
        bonus = chance.categorical(law, Sites(rows, leaf, rank, depth, laws.state.live), "bonus")
        return verdict_at(trees, leaf, bonus, zero_residuals=zero_residuals)


def coins(chance: Draws, places: list[tuple["Place", Tensor]], live: Tensor) -> Toss:
    """A coin per judged place and row, place by place."""
    judged = [(place.depth, node) for place, node in places if not place.opens]
    rows = torch.arange(len(live), device=live.device)
    nodes = torch.cat([rows[:0], *(node for _, node in judged)])
    depth = torch.tensor([depth for depth, _ in judged for _ in live], dtype=torch.long, device=live.device)
    standing = (nodes > 0) & live.repeat(len(judged))
    return chance.coins(Sites(rows.repeat(len(judged)), nodes, torch.zeros_like(nodes), depth, standing), "accept")


SMALL = 1e-6  # a sum of p below which p is normalised


@dataclass
class Open:
    """What is left of a node whose children are being visited, in every row. All but q is its own."""

    a: Tensor  # (B,) the weight with which the node stands
    p: Tensor  # (B, V) the law that it would emit from, not normalised
    total: Tensor  # (B,) the sum of p
    q: Tensor | None  # (B, V) what its children were drawn from, not normalised; None: DET
    z: Tensor  # (B,) the sum of q
    shrinks: bool  # WOR: q loses every rejected token
    lent: bool  # q is the tree's: to be copied before it is written to

    @classmethod
    def at(cls, trees: TokenTree, laws: Laws, rows: Tensor, node: Tensor, a: Tensor) -> "Open":
        p = laws[rows, node]
        one, shrinks = torch.ones_like(a), trees.law is SiblingLaw.WOR
        if trees.q is None:
            return cls(a, p, one, None, one, shrinks, False)
        lent = (
            trees.rows == 1 and not node.is_cuda
        )  # a copy is a pass over the vocabulary, which an only child can do without
        q = trees.q[:, int(node)] if lent else picked(trees.q, rows, node)
        return cls(a, p, one, q.to(p.dtype), one, shrinks, lent and q.dtype == p.dtype)

    def law(self) -> Tensor:
        """(B, V) p, normalised."""
        return self.p / self.total.to(self.p.dtype)[:, None]

    def share(self, token: Tensor) -> Tensor:
        """(B,) min(1, a p(x) / q(x)): the weight with which the child x is entered."""
        x = token[:, None]
        wanted = self.a * self.p.gather(1, x)[:, 0] / self.total
        if self.q is None:
            return wanted
        drawn = self.q.gather(1, x)[:, 0] / self.z
        return torch.where(drawn > 0, wanted / drawn, 0.0).clamp_(max=1)

    def reject(self, token: Tensor, lost: Tensor, last: bool) -> Tensor:
        """`lost` rows keep what the rejected child leaves: m = (a p - q)+, a <- r / (1 - a + r), p <- norm(m). After the `last`
        child q is not needed again. Returns where nothing was left though the node stands for certain, which only rounding reaches.

        A pass over the vocabulary is what costs, so p is divided by its sum where it is used, not here."""
        x = token[:, None]
        lost = lost & (self.a > 0)
        if self.q is None:
            left = self.p.scatter(1, x, self.p.gather(1, x).masked_fill(lost[:, None], 0.0))
        else:  # m / a, times the sum of p, in rows that lost; p in the others
            most = torch.finfo(self.p.dtype).max
            scale = torch.where(lost, self.total / (self.a * self.z), 0.0).clamp_(max=most).to(self.p.dtype)
            left = torch.addcmul(self.p, self.q, scale[:, None], value=-1).clamp_(min=0)
        total = left.sum(-1).double()
        mass = total / self.total
        empty = lost & (mass <= NOTHING)
        kept = lost & ~empty
        if empty.device.type != "cpu" or bool(empty.any()):
            left = torch.where(empty[:, None], self.p, left)
        zero_residual = empty & (self.a >= 1)
        r = self.a * mass
        rest = 1 - self.a + r
        self.a = torch.where(lost, torch.where(rest > 0, r / rest, 1.0), self.a)
        self.p, self.total = left, torch.where(kept, total, self.total)
        if left.device.type != "cpu" or bool((self.total < SMALL).any()):  # before float32 runs out of exponents
            self.p, self.total = self.law(), torch.ones_like(self.total)
        if self.q is not None and self.shrinks and not last:
            self.q, self.lent = self.q.clone() if self.lent else self.q, False
            self.q.scatter_(1, x, self.q.gather(1, x).masked_fill(lost[:, None], 0.0))
            self.z = self.q.sum(-1).double()
        return zero_residual


@dataclass(frozen=True)
class Place:
    """A step of the traversal: one place in the tree, named by sibling ranks, in all the rows that have a node there."""

    depth: int
    opens: bool  # its children come next; otherwise it is judged, all of them having been rejected
    leaf: bool  # in no row does it have children
    last: bool  # no row has a later sibling there
    everywhere: bool  # every row has a node there


def itinerary(trees: TokenTree) -> list[tuple[Place, Tensor]]:
    """The order in which places are opened and judged, depth first, and their nodes (B,), 0 where a row has none there. It depends
    on the shapes of the trees alone."""
    children: list[dict[int, list[int]]] = []
    for row in trees.parents.tolist():
        family: dict[int, list[int]] = {}
        for node, parent in enumerate(row):
            if parent >= 0:
                family.setdefault(parent, []).append(node)
        children.append(family)

    def below(nodes: list[int]) -> list[list[int]]:
        families = [row.get(node, []) for row, node in zip(children, nodes, strict=True)]
        width = max(map(len, families))
        return [[family[rank] if rank < len(family) else -1 for family in families] for rank in range(width)]

    def backwards(families: list[list[int]]) -> list[tuple[list[int], bool]]:
        return [(family, rank == 0) for rank, family in enumerate(reversed(families))]

    places: list[Place] = []
    numbers: list[list[int]] = []
    stack = [(nodes, 1, last, False) for nodes, last in backwards(below([0] * trees.rows))]
    while stack:
        nodes, depth, last, visited = stack.pop()
        families = [] if visited else below(nodes)
        places.append(Place(depth, bool(families), not (visited or families), last, min(nodes) > 0))
        numbers.append(nodes)
        if families:
            stack.append((nodes, depth, last, True))
            stack += [(family, depth + 1, final, False) for family, final in backwards(families)]
    at = torch.tensor(numbers, device=trees.tokens.device).clamp_(min=0)
    return list(zip(places, at, strict=True)) if places else []
