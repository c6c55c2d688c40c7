"""Pruning a finished tree: the nodes that pay, under new numbers.

Letters: B rows, N nodes of the tree, n nodes that are left.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.pricing.by_price import ByPrice
from specdec.pricing.noted import Noted, noted_of, ordered, tree_of
from specdec.state import State
from specdec.tree import TokenTree, host_depths

Shares = Sequence[Sequence[float]]


class Pruned(NamedTuple):
    tree: TokenTree  # DET
    numbers: Tensor  # (B, n) of its nodes in the tree that was pruned, 0 at unused ones
    noted: Noted


def pruned(policy: ByPrice, tree: TokenTree, state: State, shares: Shares | None) -> Pruned:
    """shares: for each row and drafted node, how often the node followed its parent before. Without
    them a node is judged by its depth and its rank alone."""
    shape = tree.structure.on_host
    parents = tree.parents.cpu().numpy() if shape is None else shape.parents
    depths, rows = host_depths(parents), len(parents)
    q = _features(parents, shares)
    each = policy.learnt.first(q, np.maximum(depths, 1)) * (parents >= 0)
    each *= np.array(state.on_host.live)[:, None]
    survivals, every = np.ones(q.shape), np.arange(rows)
    for node in range(1, q.shape[1]):
        survivals[:, node] = survivals[every, parents[:, node]] * each[:, node]
    order, values = ordered(survivals[:, 1:])
    nodes = policy.keep(values)
    chosen = np.sort(order[:, :nodes] + 1, 1)
    kept = np.concatenate([np.zeros((rows, 1), dtype=np.int64), chosen], 1)
    numbers = torch.from_numpy(kept).to(state.device)
    if nodes == 0:
        return Pruned(TokenTree.root(state.roots), numbers, Noted.empty(rows, 1))
    new = np.zeros(parents.shape, dtype=np.int64)
    np.put_along_axis(new, kept, np.arange(nodes + 1)[None], 1)
    above = np.take_along_axis(new, np.take_along_axis(parents, chosen, 1).clip(0), 1)
    value = np.take_along_axis(survivals, chosen, 1)
    frame = np.concatenate([np.full((rows, 1), -1), np.where(value > 0, above, -1)], 1)
    noted = noted_of(frame, value, np.take_along_axis(q, chosen, 1), 1)
    tokens = tree.tokens.gather(1, numbers)[:, 1:]
    return Pruned(tree_of(state.roots, tokens, frame), numbers, noted)


def _features(parents: np.ndarray, shares: Shares | None) -> np.ndarray:
    """(B, N) what a node's chance is learnt from: its share, else 1 / (rank + 2)."""
    q = np.full(parents.shape, 0.5)
    if shares is None:
        for row, above in enumerate(parents.tolist()):
            seen: dict[int, int] = {}
            for node, parent in enumerate(above):
                q[row, node] = 1 / (2 + seen.get(parent, 0))
                seen[parent] = seen.get(parent, 0) + 1
    else:
        for row, each in enumerate(shares):
            q[row, 1 : 1 + len(each)] = each
    return q
