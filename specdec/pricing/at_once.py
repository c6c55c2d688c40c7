"""Drafts of a whole tree in one compiled call: which shapes are looked at, and what is expected of
the tree that comes back.

The shape is chosen before anything is drafted, by what earlier rounds have brought, so that no
choice depends on a draw. A ranked tree draws nothing, and is pruned when it is there.

Letters: B rows, D depths, N nodes.
"""

from dataclasses import replace

import numpy as np
import torch

from specdec.drafting.by_level import Grown
from specdec.drafting.shape import Shape
from specdec.pricing.noted import Candidates, Noted, kept
from specdec.pricing.policy import Policy
from specdec.state import State

CHAINS, RANKED = (3, 5), (5,)  # levels of the shapes, each of which is compiled
CHAIN, TREE = "chain", "ranked"  # kinds of shapes
KINDS = (CHAIN, TREE)


def kind_of(shape: Shape) -> str:
    return CHAIN if shape.chain else TREE


def shapes(depth: int, nodes: int, width: int, draw: str | None) -> tuple[Shape, ...]:
    """Of up to so many levels. draw: how the tokens of chains are drawn; None: they are the most
    probable ones, and trees are looked at too, of up to `nodes` nodes, `width` of them expanded per
    level."""
    chains = [Shape(at, 1, draw or "auto") for at in _up_to(depth, CHAINS)]
    if draw is not None or width == 1:
        return tuple(chains)
    return *chains, *(Shape(at, width, "ranked", nodes) for at in _up_to(depth, RANKED))


def _up_to(depth: int, levels: tuple[int, ...]) -> list[int]:
    return sorted({min(at, depth) for at in levels})


def of_chain(shape: Shape, survivals: np.ndarray, nodes: int, state: State) -> Noted:
    """What is expected of chains of up to `nodes` nodes. survivals (B, D)."""
    host = state.on_host
    lengths = (np.array(host.room) - 1).clip(0, nodes) * np.array(host.live)
    depths = np.broadcast_to(np.arange(nodes + 1), (len(lengths), nodes + 1))
    is_there = depths <= lengths[:, None]
    whole = np.concatenate([np.ones((len(lengths), 1)), survivals[:, :nodes]], 1)
    return Noted(
        np.where(is_there, depths - 1, -1),
        whole * is_there,
        whole,
        depths,
        shape.depth,
        True,
        shape,
    )


def of_tree(
    policy: Policy, nodes: int, grown: Grown, state: State, shape: Shape
) -> tuple[Grown, Noted]:
    """The nodes of a ranked tree that pay. Their survivals follow from their own probabilities."""
    assert grown.values is not None
    assert grown.inner is not None
    tree = grown.tree
    host = torch.stack([tree.tokens, tree.parents, tree.depths, grown.inner]).cpu().numpy()
    tokens, parents, depths, numbers = host[:, :, 1:]
    paths = grown.values.double().cpu().numpy()
    rows, size = paths.shape
    if size == 0:
        return grown, replace(Noted.empty(rows, shape.depth), whole=shape)
    has_node = parents >= 0
    before = np.concatenate([np.zeros((rows, 1)), paths], 1)
    above = np.take_along_axis(before, parents.clip(0), 1)
    with np.errstate(invalid="ignore"):
        q = np.where(has_node, np.exp(paths - above), 0.0).clip(0, 1)
    each = policy.conditional(q, depths.clip(1), drawn=False) * has_node
    survivals = np.ones((rows, size + 1))
    every = np.arange(rows)
    for node in range(size):
        survivals[:, node + 1] = survivals[every, parents[:, node].clip(0)] * each[:, node]
    whole = Candidates(tokens, survivals[:, 1:], q, parents - 1, numbers)
    return kept(policy, nodes, whole, state, grown.scored, shape.depth, shape)
