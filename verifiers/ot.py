"""Lossless on sampled siblings, an oracle for small vocabularies: the optimal transport plan
between drafts and target.

SpecTr 2310.15141, Sun et al.; no rule accepts more often at a single node (over several levels it
is a rule, not a bound). The plan f(set, x) maximises sum(f) with sum_x f(set, x) <= Pr(set is
drafted) and sum_set f(set, x) <= p(x), x in set (scipy's HiGHS); then x is accepted with f /
Pr(set), else norm(p - sum f) is emitted. f is clipped to both marginals before use, so that the
solver's tolerance cannot bend the law. Exact for WR and WOR with fixed width. Cost: a linear
programme per visited node.
"""

from functools import lru_cache
from itertools import permutations, product

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.verifying.walk import NOTHING, Judged, Walk, descend


class OptimalTransport(Verifier):
    """Exact for WR and WOR siblings of fixed width; V at most 16."""

    laws = frozenset({SiblingLaw.WR, SiblingLaw.WOR})
    needs_fixed_width = True
    max_vocabulary = 16

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        return descend(trees, p, chance, judge)


def judge(walk: Walk, p: Tensor, q: Tensor | None, chance: Draws) -> Judged:
    assert q is not None
    p = p.double()
    accept, left, parent = plans(walk, p, q.double())
    law = torch.where(parent[:, None], accept, torch.ones_like(accept))
    token = chance.categorical(law, walk.sites(live=parent), "accept")
    kept = parent & (token < p.shape[1])
    empty = left.sum(-1) <= NOTHING
    return Judged(
        walk.find(token) * kept,
        torch.where((parent & ~empty)[:, None], left, p),
        parent & ~kept & empty,
    )


def plans(walk: Walk, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: acceptance of each token, and in column V of none (B, V + 1); what is left of p (B,
    V); rows with children."""
    trees, (rows, vocabulary) = walk.trees, p.shape
    accept = torch.zeros(rows, vocabulary + 1, dtype=torch.float64)
    left, parent = p.cpu().clone(), torch.zeros(rows, dtype=torch.bool)
    for row in range(rows):
        drafted = trees.tokens[row, trees.parents[row] == walk.node[row]].tolist()
        if not drafted or not bool(walk.open[row]):
            continue
        wr = trees.law is SiblingLaw.WR
        sets, flow = plan(tuple(q[row].tolist()), tuple(p[row].tolist()), len(drafted), wr)
        mine = frozenset(drafted)
        taken = np.zeros(vocabulary)
        for (members, x), amount in flow.items():
            left[row, x] -= amount
            if members == mine:
                taken[x] = amount / sets[members]
        accept[row, :vocabulary] = torch.from_numpy(taken)
        accept[row, vocabulary] = max(0.0, 1.0 - taken.sum())
        parent[row] = True
    device = p.device
    return accept.to(device), left.clamp(min=0).to(device), parent.to(device)


Sets = dict[frozenset[int], float]
Flow = dict[tuple[frozenset[int], int], float]


@lru_cache(maxsize=4096)
def plan(q: tuple[float, ...], p: tuple[float, ...], k: int, replace: bool) -> tuple[Sets, Flow]:
    """What k draws from q can show, and the flow to p. Remembered: rows of a batch often stand at
    the same laws."""
    sets = drafted_sets(np.array(q), k, replace)
    return sets, transport(sets, np.array(p))


def drafted_sets(q: np.ndarray, k: int, replace: bool) -> Sets:
    """The probability of every set of tokens that k draws can show."""
    support = [int(x) for x in np.flatnonzero(q)]
    found: Sets = {}
    for draws in product(support, repeat=k) if replace else permutations(support, k):
        chance = 1.0
        for place, x in enumerate(draws):
            # Summed anew: what is subtracted from 1 leaves only rounding behind where q is almost
            # one-hot.
            gone = () if replace else draws[:place]
            chance *= q[x] / sum(q[y] for y in support if y not in gone)
        members = frozenset(draws)
        found[members] = found.get(members, 0.0) + chance
    return found


def transport(sets: Sets, p: np.ndarray) -> Flow:
    """The flow f(set, x), clipped to both marginals."""
    edges = [(members, x) for members in sets for x in sorted(members) if p[x] > 0]
    if not edges:
        return {}
    order = {members: number for number, members in enumerate(sets)}
    lines = [order[members] for members, _ in edges] + [len(sets) + x for _, x in edges]
    columns = [*range(len(edges)), *range(len(edges))]
    limits = np.concatenate([list(sets.values()), p])
    matrix = coo_array((np.ones(len(lines)), (lines, columns)), shape=(len(limits), len(edges)))
    solution = linprog(
        -np.ones(len(edges)), A_ub=matrix.tocsr(), b_ub=limits, bounds=(0, None), method="highs"
    )
    flow: Flow = {}
    room_set, room_token = dict(sets), p.astype(float).copy()
    for (members, x), amount in zip(edges, solution.x, strict=True):
        clipped = max(0.0, min(float(amount), room_set[members], room_token[x]))
        room_set[members] -= clipped
        room_token[x] -= clipped
        flow[members, x] = clipped
    return flow
