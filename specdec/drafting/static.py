"""Trees whose ranks are fixed beforehand: each node takes the token of its rank at its parent.

EAGLE-1 2401.15077, Medusa 2401.10774.

Letters: B rows, N nodes, c children of one level, e of them with children.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.drafting.by_level import Grown, Score
from specdec.drafting.rank_tree import RankTree
from specdec.probs import DraftLaws, top
from specdec.state import State
from specdec.tree import Structure, TokenTree


class Level(NamedTuple):
    """One level of a static tree: c children, of which e have children themselves."""

    ranks_needed: int
    above: Tensor  # (c,) each child's parent among the nodes before that have children
    ranks: Tensor  # (c,)
    going_on: Tensor  # (e,) which of the children have children
    parents: Tensor  # (e,) number of their parent in the drafter's own memory


class Plan(NamedTuple):
    """What a static tree needs at each level, on the device; computed once."""

    levels: list[Level]
    inner: Tensor  # (N,) number in the drafter's memory, -1: not scored


def static(logits: Tensor, score: Score, state: State, shape: RankTree) -> Grown:
    """Only nodes with children are scored. Nothing is drawn: DET."""
    shape = shape.within(logits.shape[-1])
    laws, plan = DraftLaws(state), _plan(shape, logits.device)
    inner = TokenTree.root(state.roots)  # nodes with children, in the drafter's own numbers
    rows, first = len(logits), 0
    tokens = [state.roots[:, None]]
    for level in plan.levels:
        q = laws(logits, inner, first)
        best = top(q.flatten(0, 1), level.ranks_needed).view(*q.shape[:2], -1)
        drawn = best[:, level.above, level.ranks]
        tokens.append(drawn)
        if level is plan.levels[-1]:
            break
        first = inner.num_nodes
        inner = inner.grow(drawn[:, level.going_on], level.parents.expand(rows, -1))
        logits = score(inner, first)
    tree = TokenTree(torch.cat(tokens, 1), structure_of(shape, state))
    return Grown(tree, inner.num_nodes, plan.inner.expand(rows, -1))


def structure_of(shape: RankTree, state: State, live: Tensor | None = None) -> Structure:
    """The tree in every row, as deep as the row may go. live (B,): rows that draft (None: those
    that are live)."""
    frame, device = (-1, *shape.parents), state.device
    if live is None and state.shallowest >= shape.depth:
        return Structure.shared(frame, state.rows, device)
    whole = Structure.shared(frame, state.rows, device)
    alive = state.live if live is None else live
    used = (whole.depths < state.room[:, None]) & alive[:, None]
    return Structure.shared(frame, state.rows, device, used)


@lru_cache(16)
def _plan(shape: RankTree, device: torch.device) -> Plan:
    def put(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    expanded = {path[:-1] for path in shape.paths}
    numbers: dict[tuple[int, ...], int] = {(): 0}  # of the nodes that are scored
    levels: list[Level] = []
    before: list[tuple[int, ...]] = [()]
    for depth in range(1, shape.depth + 1):
        children = [path for path in shape.paths if len(path) == depth]
        going_on = [path for path in children if path in expanded]
        for path in going_on:
            numbers[path] = len(numbers)
        levels.append(
            Level(
                shape.ranks_needed[depth - 1],
                put([before.index(path[:-1]) for path in children]),
                put([path[-1] for path in children]),
                put([children.index(path) for path in going_on]),
                put([numbers[path[:-1]] for path in going_on]),
            )
        )
        before = going_on
    return Plan(levels, put([0, *(numbers.get(path, -1) for path in shape.paths)]))
