"""Lossless on trees: leaves are judged before their ancestors, so that a rejected branch still leaves its prefix a chance.

Weng et al. 2505.12398 (traversal verification). Exact for DET, WOR and WR siblings, adaptive width included; on a chain it is
block verification. Not worse than recursive rejection in any case known here. Cost: O(V) per node, O(depth V) memory.

visit(v, a), p the law at v and q that of its children, for each child x in order:
    a_x = min(1, a p(x)/q(x))  (DET: a p(x));  visit(x, a_x);  done if it accepts
    m = (a p - q)+  (DET: a p without x),  r = sum(m);  a <- r / (1 - a + r),  p <- norm(m);  WOR: q loses x
then accept v with u < a and emit from p. The root has a = 1. Each visit accepts with probability a and law a p.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws, Sites
from specdec.descent import NOTHING, verdict_at, without


class Visit(NamedTuple):
    """One step of the traversal in every row: a node is opened (its children come next), judged, or both (a leaf)."""

    node: Tensor  # (B,)
    parent: Tensor  # (B,)
    depth: Tensor  # (B,)
    opens: Tensor  # (B,) bool: it has children that are visited next
    judged: Tensor  # (B,) bool: all its children have been rejected
    arrives: Tensor  # (B,) bool: the first time at this node
    any_opens: bool  # the same three over the batch, known without asking the device
    any_judged: bool
    any_arrives: bool


class Traversal(Verifier):
    """Exact for DET, WOR and WR siblings."""

    laws = frozenset({SiblingLaw.DET, SiblingLaw.WOR, SiblingLaw.WR})

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        rows = torch.arange(trees.rows, device=trees.tokens.device)
        root = torch.zeros_like(rows)
        pending = laws.state.live.clone()  # rows that have not accepted yet
        top = laws[rows, root]
        # The stack: what is left of each open node on the current path, by depth.
        p = top[:, None].repeat(1, trees.levels + 1, 1)
        q = torch.zeros_like(p) if trees.q is not None else None
        if q is not None and trees.q is not None:
            q[:, 0] = trees.q[:, 0].to(p.dtype)
        a = torch.ones(trees.rows, trees.levels + 1, dtype=torch.float64, device=rows.device)
        leaf, law, zero_residuals = root, top, torch.zeros_like(rows)
        on_host = rows.device.type == "cpu"
        for visit in itinerary(trees):
            here, above = visit.depth, (visit.depth - 1).clamp(min=0)
            token = trees.tokens[rows, visit.node]
            if visit.any_arrives:
                chances = p[rows, above, token].double() * a[rows, above]
                if q is not None:
                    drawn = q[rows, above, token].double()
                    chances = torch.where(drawn > 0, chances / drawn.clamp(min=1e-300), 0.0)
                a[rows, here] = torch.where(visit.arrives, chances.clamp(max=1), a[rows, here])
            if visit.any_opens:
                fresh = laws[rows, torch.where(visit.opens, visit.node, 0)]
                p[rows, here] = torch.where(visit.opens[:, None], fresh, p[rows, here])
                if q is not None and trees.q is not None:
                    q[rows, here] = torch.where(
                        visit.opens[:, None], trees.q[rows, visit.node].to(p.dtype), q[rows, here]
                    )
                if not visit.any_judged:
                    continue
            at = Sites(rows, visit.node, root, here, visit.judged & pending)
            won = chance.bernoulli(a[rows, here], at, "accept") & at.live
            if not on_host or bool(won.any()):
                leaf = torch.where(won, visit.node, leaf)
                # A leaf's law has not been loaded.
                fresh = laws[rows, torch.where(won & visit.arrives, visit.node, 0)]
                loaded = torch.where(visit.arrives[:, None], fresh, p[rows, here])
                law = torch.where(won[:, None], loaded, law)
                pending = pending & ~won
                if on_host and not bool(pending.any()):
                    break
            lost = at.live & ~won
            zero_residuals += self._reject(p, q, a, rows, above, token, lost, trees.law is SiblingLaw.WOR)
        law = torch.where(pending[:, None], p[:, 0], law)  # the root stands where everything else fell
        leaf = torch.where(pending, 0, leaf)
        depth = trees.depths[rows, leaf]
        bonus = chance.categorical(law, Sites(rows, leaf, root, depth, laws.state.live), "bonus")
        return verdict_at(trees, leaf, bonus, zero_residuals=zero_residuals)

    @staticmethod
    def _reject(
        p: Tensor, q: Tensor | None, a: Tensor, rows: Tensor, above: Tensor, token: Tensor, lost: Tensor, shrink: bool
    ) -> Tensor:
        """The parents of rejected nodes (`lost` rows) keep what those leave; p, q and a are this rule's own. Returns where
        nothing was left, which only rounding reaches."""
        mine, ahead = p[rows, above], a[rows, above]
        left = mine * ahead[:, None].to(p.dtype)
        left = left.scatter(1, token[:, None], 0.0) if q is None else (left - q[rows, above]).clamp_(min=0)
        mass = left.sum(-1).double()
        rest = 1 - ahead + mass
        empty = mass <= NOTHING * ahead
        share = torch.where(rest > 0, mass / rest.clamp(min=1e-300), 1.0)
        normed = left / left.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        a[rows, above] = torch.where(lost, share, ahead)
        p[rows, above] = torch.where((lost & ~empty)[:, None], normed, mine)
        if q is not None and shrink:
            before = q[rows, above]
            q[rows, above] = torch.where(lost[:, None], without(before, token), before)
        return (lost & empty & (ahead >= 1)).long()


def itinerary(trees: TokenTree) -> list[Visit]:
    """The order in which each row's nodes are opened and judged, depth first, side by side for all rows. It depends on the
    shape of the trees alone; rows that are through stand still at their root."""
    parents = trees.parents.tolist()
    routes: list[list[tuple[int, int, int, bool, bool, bool]]] = []
    for row in parents:
        children: list[list[int]] = [[] for _ in row]
        depth = [0] * len(row)
        for node, parent in enumerate(row):
            if parent >= 0:
                children[parent].append(node)
                depth[node] = depth[parent] + 1
        route: list[tuple[int, int, int, bool, bool, bool]] = []
        stack = [(child, False) for child in reversed(children[0])]
        while stack:
            node, finished = stack.pop()
            inner = bool(children[node])
            if finished or not inner:
                route.append((node, row[node], depth[node], False, True, not inner))
                continue
            route.append((node, row[node], depth[node], True, False, True))
            stack.append((node, True))
            stack += [(child, False) for child in reversed(children[node])]
        routes.append(route)
    longest = max(map(len, routes))
    if not longest:
        return []
    idle = (0, 0, 0, False, False, False)
    table = torch.tensor([route + [idle] * (longest - len(route)) for route in routes])
    flags = table[:, :, 3:].any(0).tolist()
    return [
        Visit(now[:, 0], now[:, 1], now[:, 2], now[:, 3].bool(), now[:, 4].bool(), now[:, 5].bool(), *flag)
        for now, flag in zip(table.to(trees.tokens.device).unbind(1), flags, strict=True)
    ]
