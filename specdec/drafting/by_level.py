"""Trees grown level by level from a model's laws: all nodes of a depth get the same number of
children.

A drafter provides `score(tree, start)`, the logits of nodes >= start in one forward pass; there is
one pass per level, never one per node. The order of steps keeps the promise of the sibling law:
first the decision, then the draw.

Letters: B rows, M nodes of a level, k children, V vocabulary, N nodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from specdec.chance import Draws, Places, Sites
from specdec.drafting.stop_rules import StopRule
from specdec.probs import DraftLaws, top
from specdec.state import State
from specdec.tree import SiblingLaw, TokenTree

Score = Callable[[TokenTree, int], Tensor]


@dataclass(frozen=True, eq=False)
class Grown:
    """A tree, and where its nodes are in the drafter's own memory.

    scored: nodes with lower numbers were scored, under these numbers. inner (B, N), if the drafter
    numbers nodes differently: the number under which it scored a node, -1 if it did not.
    """

    tree: TokenTree
    scored: int
    inner: Tensor | None = None


def by_level(
    logits: Tensor,
    score: Score,
    state: State,
    chance: Draws,
    branching: Sequence[int],
    law: SiblingLaw,
    stop: StopRule | None = None,
) -> Grown:
    """Every node of depth d gets branching[d] children, as many as its law has tokens for. `logits`
    (B, 1, V) are the root's. A chain may `stop` earlier, each row on its own."""
    depth = min(len(branching), state.deepest)
    if stop is not None:
        stop.round(state)
        depth = min(depth, stop.most)
        stop = stop if stop.looks_at_q else None
    if depth < 1:
        return Grown(TokenTree.root(state.roots, law), 1)
    if max(branching) == 1:
        return _chains(logits, score, state, chance, branching[:depth], law, stop)
    return _trees(logits, score, state, chance, branching[:depth], law)


def _chains(
    logits: Tensor,
    score: Score,
    state: State,
    chance: Draws,
    branching: Sequence[int],
    law: SiblingLaw,
    stop: StopRule | None,
) -> Grown:
    """One child each."""
    laws, tree, depth = DraftLaws(state), TokenTree.root(state.roots), len(branching)
    limit: Tensor | None = None  # how deep each row's chain may be; None: all to the end
    if stop is not None or state.shallowest < depth:
        limit = (state.room - 1) * state.live
    draws = _places(chance, state, branching, law)
    recorded: list[Tensor] = []
    for level in range(depth):
        q = laws(logits, tree, level)[:, 0]
        recorded.append(q)
        if stop is not None and limit is not None:  # asked before anything is drawn
            seen = q.softmax(-1) if state.sampling.greedy else q
            limit = torch.where(stop(seen, level), limit.clamp(max=level), limit)
            # The one read in a draft: whether to go on is what a stop rule is for.
            if not bool((limit > level).any()):
                return _drawn(tree, recorded, level + 1, law)
        token = _draw(
            q, 1, draws, (level, level + 1), law, None if limit is None else limit > level
        )
        tokens = torch.cat([tree.tokens, token], 1)
        tree = TokenTree.chain(tokens, None if limit is None else limit.clamp(max=level + 1))
        if level + 1 < depth:
            logits = score(tree, level + 1)
    return _drawn(tree, recorded, depth, law)


def _trees(
    logits: Tensor,
    score: Score,
    state: State,
    chance: Draws,
    branching: Sequence[int],
    law: SiblingLaw,
) -> Grown:
    """branching[d] children each."""
    laws, tree, depth = DraftLaws(state), TokenTree.root(state.roots), len(branching)
    rows = tree.rows
    there = state.live[:, None]  # (B, M) which nodes of the level the row has
    draws = _places(chance, state, branching, law)
    first, recorded = 0, []
    for level, k in enumerate(branching):
        q = laws(logits, tree, first)
        nodes = q.shape[1]
        # Who may have children is decided before anything is drawn.
        open_nodes = (
            there if state.shallowest >= depth else there & (level + 1 < state.room)[:, None]
        )
        flat = q.reshape(rows * nodes, -1)
        drawn = _draw(flat, k, draws, (first, first + nodes), law, open_nodes.flatten())
        has_support = _has_support(flat, drawn, k, law, state.sampling.greedy)
        there = (open_nodes[:, :, None] & has_support.reshape(-1, nodes, k)).flatten(1)
        frame = [parent for parent in range(first, first + nodes) for _ in range(k)]
        above = torch.tensor(frame, device=q.device)
        first = tree.num_nodes
        tokens = drawn.reshape(rows, nodes * k)
        tree = tree.grow(tokens, torch.where(there, above, -1), frame)
        recorded.append(q)
        if level + 1 < depth:
            logits = score(tree, first)
    return _drawn(tree, recorded, first, law)


def _drawn(tree: TokenTree, recorded: list[Tensor], scored: int, law: SiblingLaw) -> Grown:
    """The tree with its law. `recorded`: the laws at its nodes from the root on; the nodes of the
    last level were not scored and have no law."""
    if law is SiblingLaw.DET or tree.num_nodes == 1:
        return Grown(tree.drawn_from(law, None), scored)
    rows, vocabulary = tree.rows, recorded[0].shape[-1]
    laws = [each.view(rows, -1, vocabulary) for each in recorded]
    missing = tree.num_nodes - sum(each.shape[1] for each in laws)
    if missing > 0:
        laws.append(laws[0].new_zeros(rows, missing, vocabulary))
    q = torch.cat(laws, 1)[:, : tree.num_nodes]
    return Grown(tree.drawn_from(law, q), scored)


# ---------------------------------------------------------------------------------------- drawing


def _places(
    chance: Draws, state: State, branching: Sequence[int], law: SiblingLaw
) -> Places | None:
    """Every place of the tree at which children are drawn, level by level, all rows at each
    level."""
    if law is SiblingLaw.DET:
        return None
    rows, nodes, ranks, depths = _grid(state.rows, tuple(branching), state.device)
    live = ranks == 0 if state.all_live else state.live[rows]
    most = 1 if law is SiblingLaw.HUB else max(branching)
    return chance.places(Sites(rows, nodes, ranks, depths, live), "draft", most)


@lru_cache(64)
def _grid(rows: int, branching: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Rows, nodes, ranks and depths of `_places`: level by level, row by row, node by node."""
    sites, first, nodes = [], 0, 1
    for depth, k in enumerate(branching):
        sites += [(row, first + node, 0, depth) for row in range(rows) for node in range(nodes)]
        first, nodes = first + nodes, nodes * k
    return tuple(torch.tensor(sites, device=device).T.contiguous())


def _draw(
    q: Tensor,
    k: int,
    draws: Places | None,
    nodes: tuple[int, int],
    law: SiblingLaw,
    live: Tensor | None,
) -> Tensor:
    """(n, k) children of all nodes (from, to) of a level, row by row; q (n, V)."""
    vocabulary = q.shape[1]
    if k > vocabulary and law is not SiblingLaw.WR:
        raise ValueError(
            f"{k} distinct children of a node were asked for, the vocabulary has {vocabulary} "
            "tokens"
        )
    if draws is None:
        return top(q, k)
    rows = len(q) // (nodes[1] - nodes[0])
    part = slice(nodes[0] * rows, nodes[1] * rows)
    if law is SiblingLaw.WR or (law is SiblingLaw.WOR and k == 1):
        return draws.independent(part, q, k, live)
    if law is SiblingLaw.HUB:
        return _hub(q, k, draws, part, live)
    return draws.without_replacement(part, q, k, live)


def _hub(q: Tensor, k: int, draws: Places, part: slice, live: Tensor | None) -> Tensor:
    """SpecHub 2411.05289: the min(k, support) - 1 most probable tokens, then one drawn from the
    rest of q."""
    fixed = ((q > 0).sum(1, keepdim=True) - 1).clamp(max=k - 1)
    drawn = top(q, k)
    inside = torch.arange(k, device=q.device) < fixed
    rest = q.scatter(1, drawn, torch.where(inside, 0.0, q.gather(1, drawn)))
    last = draws.independent(part, rest, 1, live)
    return drawn.scatter(1, fixed, last)


def _has_support(q: Tensor, drawn: Tensor, k: int, law: SiblingLaw, greedy: bool) -> Tensor:
    """(n, k) bool: whether the law (n, V) has a token for the child."""
    if law is SiblingLaw.WR:
        return torch.ones_like(drawn, dtype=torch.bool)
    if law is SiblingLaw.DET:
        return q.gather(1, drawn) > (-torch.inf if greedy else 0)
    return torch.arange(k, device=q.device) < (q > 0).sum(1, keepdim=True)
