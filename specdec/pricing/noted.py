"""Finished trees: which candidates are kept, and what was expected of each node.

Letters: B rows, N nodes, n drafted nodes, C candidates, D depths.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdec.drafting.by_level import Grown
from specdec.drafting.shape import Shape
from specdec.pricing.policy import Policy
from specdec.state import State
from specdec.tree import Structure, TokenTree, host_depths


@dataclass(frozen=True)
class Noted:
    """What the policy expected of a tree's nodes, in the tree's own numbers, (B, N) each."""

    parents: np.ndarray
    survivals: np.ndarray  # 1 at the root, 0 at unused nodes
    q: np.ndarray  # of the token or, if it was drawn, of its law's best token; 1 at the root
    depths: np.ndarray
    levels: int  # passes of the drafter
    drawn: bool = False
    whole: Shape | None = None  # of a draft in one compiled call

    @classmethod
    def empty(cls, rows: int, levels: int = 0) -> "Noted":
        root, one = np.full((rows, 1), -1), np.ones((rows, 1))
        return cls(root, one, one, 0 * root, levels)


class Candidates(NamedTuple):
    """Of one level of a ranked tree, (B, C) each."""

    tokens: np.ndarray
    values: np.ndarray  # survival
    q: np.ndarray
    above: np.ndarray  # the candidate that is the parent, -1: the root
    scored: np.ndarray  # number in the drafter's memory, -1: not scored


def kept(
    policy: Policy,
    nodes: int,
    whole: Candidates,
    state: State,
    scored: int,
    levels: int,
    shape: Shape | None = None,
) -> tuple[Grown, Noted]:
    """The best candidates, at most `nodes`, as a tree. A parent is worth at least what its child is
    and was created earlier, so with ties to the lowest index it is kept too."""
    rows, most = len(whole.values), min(nodes, whole.values.shape[1])
    order = best_places(whole.values, most)
    nodes = policy.keep(np.take_along_axis(whole.values, order, 1))
    if nodes == 0:
        root = replace(Noted.empty(rows, levels), whole=shape)
        nothing = torch.zeros(rows, 1, dtype=torch.long, device=state.device)
        return Grown(TokenTree.root(state.roots), scored, nothing), root
    chosen = np.sort(order[:, :nodes], 1)
    tokens, value, q, above, numbers = (np.take_along_axis(part, chosen, 1) for part in whole)
    number = np.zeros_like(whole.tokens)
    np.put_along_axis(number, chosen, np.arange(1, nodes + 1)[None], 1)
    parent = np.where(above >= 0, np.take_along_axis(number, above.clip(0), 1), 0)
    parents = np.concatenate([np.full((rows, 1), -1), np.where(value > 0, parent, -1)], 1)
    tree = tree_of(state.roots, on_device(tokens, state.device), parents)
    inner = np.concatenate([np.zeros((rows, 1), dtype=np.int64), numbers], 1)
    noted = replace(noted_of(parents, value, q, levels), whole=shape)
    return Grown(tree, scored, on_device(inner, state.device)), noted


def tree_of(roots: Tensor, tokens: Tensor, parents: np.ndarray) -> TokenTree:
    """A DET tree: tokens (B, n) without the roots, parents (B, n + 1) on the host."""
    device, rows = roots.device, len(tokens)
    whole = torch.cat([roots[:, None], tokens], 1)
    if (parents == parents[:1]).all() and (parents[0, 1:] >= 0).all():
        structure = Structure.shared(parents[0].tolist(), rows, device)
    else:
        structure = Structure.of(on_device(parents, device), depth=int(host_depths(parents).max()))
    return TokenTree(whole, structure)


def noted_of(
    parents: np.ndarray, values: np.ndarray, features: np.ndarray, levels: int, drawn: bool = False
) -> Noted:
    one = np.ones((len(parents), 1))
    survivals = np.concatenate([one, values], 1)
    features = np.concatenate([0 * one, features], 1)
    return Noted(parents, survivals, features, host_depths(parents), levels, drawn)


def ordered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of values (B, C) and the values, largest first; ties go to the lowest place."""
    order = best_places(values, values.shape[1])
    return order, np.take_along_axis(values, order, 1)


def best_places(values: np.ndarray, count: int) -> np.ndarray:
    """(B, count) places of the largest values, largest first; ties go to the lowest place."""
    return np.argsort(-values, 1, kind="stable")[:, :count]


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
