"""p and q at the nodes of a shape, as the production rules take them: over the tokens that a record
knows at each node.

A rule compares p and q at one node at a time, token by token, so each node may have an alphabet of
its own: the recorded tokens, its children (whose p and q are always recorded), and what is cut off.
The cut-off mass of p and that of q may lie on the same tokens or on different ones. `Cut.UNDER`
takes it for one token; `Cut.BESIDE` for two, of which p has one and q the other. The truth lies
between: for any a and b >= 0, the sum of (a p - b q)+ over the tokens that were cut off is at least
that of the first and at most that of the second.

Letters: T trees, N recorded nodes, M nodes of the shape, K recorded tokens, A alphabet.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.records.shapes import Selected, WideTrees


class Cut(StrEnum):
    UNDER = "under"
    BESIDE = "beside"


class Nodes(NamedTuple):
    """What is recorded of the nodes of some trees, (T, M) each."""

    parents: Tensor  # among the M nodes; -1: the root, or not there
    there: Tensor  # bool
    token: Tensor
    p: Tensor  # of the token in the target's law at its parent
    q: Tensor
    law: Tensor  # row of the recorded laws, -1: none

    def rows(self, part: slice) -> "Nodes":
        return Nodes(*(column[part] for column in self))


class Alphabets(NamedTuple):
    """Of some trees: what a rule is given."""

    tokens: Tensor  # (T, M) each node's token in its parent's alphabet
    p: Tensor  # (T, M, A)
    q: Tensor  # (T, M, A)
    rest: Tensor  # (T, M) mass of p that is cut off; 0 at nodes without children


def nodes_of(trees: WideTrees, selected: Selected) -> Nodes:
    numbers = torch.from_numpy(selected.numbers)

    def of(name: str) -> Tensor:
        return torch.from_numpy(trees.columns[name]).gather(1, numbers.clamp(min=0))

    parents, there = torch.from_numpy(selected.parents), numbers >= 0
    law = torch.where(there, of("law").long(), -1)
    return Nodes(parents, there, of("token").long(), of("p"), of("q"), law)


def alphabets(nodes: Nodes, laws: Mapping[str, np.ndarray], cut: Cut) -> Alphabets:
    parents, token, law = nodes.parents, nodes.token, nodes.law
    rows, count = parents.shape
    drafted, above = parents >= 0, parents.clamp(min=0)
    has_children = torch.zeros(rows, count).scatter_add_(1, above, drafted.float()) > 0
    known = laws["law_tokens"].shape[1] if laws else 0
    place, others = _places(parents, drafted, token, law, laws, known)
    width = known + others + 2
    p, q = torch.zeros(rows, count, width), torch.zeros(rows, count, width)
    if known:
        index = torch.where(has_children, law, -1)
        at = index.clamp(min=0).numpy()
        for whole, name in ((p, "law_p"), (q, "law_q")):
            values = torch.from_numpy(laws[name][at]).float()
            whole[:, :, :known] = values * (index >= 0)[:, :, None]
    # What is recorded of the children is finer than the law's half precision.
    row = torch.arange(rows)[:, None].expand_as(above)[drafted]
    p.index_put_((row, above[drafted], place[drafted]), nodes.p[drafted])
    q.index_put_((row, above[drafted], place[drafted]), nodes.q[drafted])
    rest_p, rest_q = ((1 - whole.sum(-1)).clamp(min=0) for whole in (p, q))
    p[:, :, -2] = rest_p
    q[:, :, -2 if cut is Cut.UNDER else -1] = rest_q
    leaf = ~has_children
    p[leaf], q[leaf] = 0.0, 0.0
    p[:, :, -2][leaf] = 1.0  # nothing was drawn there, and the count does not depend on it
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True).clamp(min=1e-30)
    rest = torch.where(leaf, 0.0, rest_p) if known else torch.zeros(rows, count)
    return Alphabets(torch.where(drafted, place, 0), p, q, rest)


def _places(
    parents: Tensor,
    drafted: Tensor,
    token: Tensor,
    law: Tensor,
    laws: Mapping[str, np.ndarray],
    known: int,
) -> tuple[Tensor, int]:
    """(T, M) each node's place in its parent's alphabet, and how many places are beyond the
    recorded tokens."""
    above = parents.clamp(min=0)
    siblings = (parents[:, :, None] == parents[:, None, :]) & drafted[:, :, None]
    siblings &= drafted[:, None, :]
    earlier = siblings.tril(-1)
    twins = earlier & (token[:, :, None] == token[:, None, :])
    rank = earlier.sum(-1)
    first = torch.where(twins.any(-1), twins.int().argmax(-1), torch.arange(parents.shape[1]))
    place = known + rank.gather(1, first)  # that of the first sibling with the token
    if known:
        mine = law.gather(1, above)
        row, node = (drafted & (mine >= 0)).nonzero(as_tuple=True)
        listed = torch.from_numpy(laws["law_tokens"][mine[row, node].numpy()])
        same = listed == token[row, node][:, None]
        found = torch.where(same.any(1), same.int().argmax(1), place[row, node])
        place = place.index_put((row, node), found)
    return place, int(rank.max()) + 1 if drafted.any() else 1
