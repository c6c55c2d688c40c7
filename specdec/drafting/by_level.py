"""Trees grown level by level from a model's laws, in a shape that is known beforehand: one number
of children for every node of a depth, or one for each node.

A drafter provides `score(tree, start)`, the logits of nodes >= start in one forward pass; there is
one pass per level, never one per node. The order of steps keeps the promise of the sibling law:
first the decision, then the draw.

Letters: B rows, M nodes of a level, k children, V vocabulary, N nodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate

import torch
from torch import Tensor

from specdec.chance import Draws, KeyedDraws, KeyedPlaces, Part, Places, Sites
from specdec.drafting.stop_rules import StopRule
from specdec.probs import DraftLaws, top
from specdec.state import State
from specdec.tree import SiblingLaw, TokenTree

Score = Callable[[TokenTree, int], Tensor]
Width = int | tuple[int, ...]  # children of every node of a depth, or of each


@dataclass(frozen=True, eq=False)
class Grown:
    """A tree, and where its nodes are in the drafter's own memory.

    scored: nodes with lower numbers were scored, under these numbers. inner (B, N), if the drafter
    numbers nodes differently: the number under which it scored a node, -1 if it did not. values
    (B, N - 1) of ranked trees: log-probabilities of the paths to the drafted nodes.
    """

    tree: TokenTree
    scored: int
    inner: Tensor | None = None
    values: Tensor | None = None


def by_level(
    logits: Tensor,
    score: Score,
    state: State,
    chance: Draws,
    branching: Sequence[Width],
    law: SiblingLaw,
    stop: StopRule | None = None,
) -> Grown:
    """Every node of depth d gets branching[d] children, or node i of it branching[d][i], as many as
    its law has tokens for. `logits` (B, 1, V) are the root's. A chain may `stop` earlier, each row
    on its own."""
    depth = min(len(branching), state.deepest)
    if stop is not None:
        stop.round(state)
        depth = min(depth, stop.most)
        stop = stop if stop.looks_at_q else None
    if depth < 1:
        return Grown(TokenTree.root(state.roots, law), 1)
    if all(width == 1 for width in branching):
        return _chains(logits, score, state, chance, branching[:depth], law, stop)
    return _trees(logits, score, state, chance, branching[:depth], law)


def _chains(
    logits: Tensor,
    score: Score,
    state: State,
    chance: Draws,
    branching: Sequence[Width],
    law: SiblingLaw,
    stop: StopRule | None,
) -> Grown:
    """One child each."""
    laws, tree, depth = DraftLaws(state), TokenTree.root(state.roots), len(branching)
    limit: Tensor | None = None  # how deep each row's chain may be; None: all to the end
    if stop is not None or state.shallowest < depth:
        limit = (state.room - 1) * state.live
    draws = places(chance, state, branching, law)
    recorded: list[Tensor] = []
    for level in range(depth):
        q = laws(logits, tree, level)[:, 0]
        recorded.append(q)
        if stop is not None and limit is not None:  # asked before anything is drawn
            seen = q.softmax(-1) if state.sampling.greedy else q
            limit = torch.where(stop(seen, level), limit.clamp(max=level), limit)
            # The one read in a draft: whether to go on is what a stop rule is for.
            if not bool((limit > level).any()):
                return with_laws(tree, recorded, level + 1, law)
        part = slice(level * tree.rows, (level + 1) * tree.rows)
        token = _draw(q, 1, draws, part, law, None if limit is None else limit > level)
        tokens = torch.cat([tree.tokens, token], 1)
        tree = TokenTree.chain(tokens, None if limit is None else limit.clamp(max=level + 1))
        if level + 1 < depth:
            logits = score(tree, level + 1)
    return with_laws(tree, recorded, depth, law)


def _trees(
    logits: Tensor,
    score: Score,
    state: State,
    chance: Draws,
    branching: Sequence[Width],
    law: SiblingLaw,
) -> Grown:
    """branching[d] children each, or one number for each node."""
    laws, tree, depth = DraftLaws(state), TokenTree.root(state.roots), len(branching)
    there = state.live[:, None]  # (B, M) which nodes of the level the row has
    draws = places(chance, state, branching, law)
    first, recorded = 0, []
    for level, width in enumerate(branching):
        q = laws(logits, tree, first)
        nodes = q.shape[1]
        # Who may have children is decided before anything is drawn.
        open_nodes = (
            there if state.shallowest >= depth else there & (level + 1 < state.room)[:, None]
        )
        tokens, there = _level(q, width, draws, first, open_nodes, law, state.sampling.greedy)
        counts = (width,) * nodes if isinstance(width, int) else width
        frame = [first + node for node, k in enumerate(counts) for _ in range(k)]
        above = torch.tensor(frame, device=q.device)
        first = tree.num_nodes
        tree = tree.grow(tokens, torch.where(there, above, -1), frame)
        recorded.append(q)
        if level + 1 < depth:
            logits = score(tree, first)
    return with_laws(tree, recorded, first, law)


def with_laws(tree: TokenTree, recorded: list[Tensor], scored: int, law: SiblingLaw) -> Grown:
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


def places(
    chance: Draws, state: State, branching: Sequence[Width], law: SiblingLaw
) -> Places | None:
    """Every place of the tree at which children are drawn, level by level, all rows at each
    level."""
    if law is SiblingLaw.DET:
        return None
    rows, nodes, ranks, depths = _grid(state.rows, tuple(branching), state.device)
    live = ranks == 0 if state.all_live else state.live[rows]
    widest = max(width if isinstance(width, int) else max(width) for width in branching)
    most = 1 if law is SiblingLaw.HUB else widest
    return chance.places(Sites(rows, nodes, ranks, depths, live), "draft", most)


def numbers(
    chance: KeyedDraws, state: State, branching: Sequence[Width], law: SiblingLaw
) -> Tensor:
    """The numbers u (n, k) that trees of this shape are drawn by, if no row ends before."""
    draws = places(chance, state, branching, law)
    assert isinstance(draws, KeyedPlaces)
    return draws.u


@lru_cache(64)
def _grid(rows: int, branching: tuple[Width, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Rows, nodes, ranks and depths of `places`: level by level, row by row, node by node."""
    sites, first, nodes = [], 0, 1
    for depth, width in enumerate(branching):
        sites += [(row, first + node, 0, depth) for row in range(rows) for node in range(nodes)]
        below = nodes * width if isinstance(width, int) else sum(width)
        first, nodes = first + nodes, below
    return tuple(torch.tensor(sites, device=device).T.contiguous())


def _level(
    q: Tensor,
    width: Width,
    draws: Places | None,
    first: int,
    open_nodes: Tensor,
    law: SiblingLaw,
    greedy: bool,
) -> tuple[Tensor, Tensor]:
    """(B, m) children of the M nodes from `first` on, by parent and then by rank, and whether they
    are there; q (B, M, V), open_nodes (B, M). Nodes with as many children are drawn at together."""
    rows, nodes, vocabulary = q.shape
    if isinstance(width, int):
        flat, part = q.reshape(rows * nodes, -1), slice(first * rows, (first + nodes) * rows)
        drawn = _draw(flat, width, draws, part, law, open_nodes.flatten())
        has = _has_support(flat, drawn, width, law, greedy).reshape(rows, nodes, width)
        return drawn.reshape(rows, nodes * width), (open_nodes[:, :, None] & has).flatten(1)
    tokens = torch.zeros(rows, sum(width), dtype=torch.long, device=q.device)
    there = torch.zeros_like(tokens, dtype=torch.bool)
    for k, parents, columns, sites in _groups(rows, first, width, q.device):
        flat, alive = q[:, parents].reshape(-1, vocabulary), open_nodes[:, parents]
        drawn = _draw(flat, k, draws, sites, law, alive.flatten())
        has = _has_support(flat, drawn, k, law, greedy).reshape(rows, -1, k)
        tokens[:, columns] = drawn.reshape(rows, -1)
        there[:, columns] = (alive[:, :, None] & has).flatten(1)
    return tokens, there


@lru_cache(256)
def _groups(
    rows: int, first: int, width: tuple[int, ...], device: torch.device
) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """For each number k > 0 of children: the nodes (g,) that have so many, counted within their
    level, the columns (g k,) of these children in the next one, and the places (B g,) at which they
    are drawn among those of `_grid`."""
    starts, found = [0, *accumulate(width)], []
    for k in sorted(set(width) - {0}):
        parents = [node for node, children in enumerate(width) if children == k]
        columns = [starts[node] + rank for node in parents for rank in range(k)]
        sites = [first * rows + row * len(width) + node for row in range(rows) for node in parents]
        put = partial(torch.tensor, device=device)
        found.append((k, put(parents), put(columns), put(sites)))
    return found


def _draw(
    q: Tensor, k: int, draws: Places | None, part: Part, law: SiblingLaw, live: Tensor | None
) -> Tensor:
    """(n, k) children at `part` of the places, row by row; q (n, V)."""
    vocabulary = q.shape[1]
    if k > vocabulary and law is not SiblingLaw.WR:
        raise ValueError(
            f"{k} distinct children of a node were asked for, the vocabulary has {vocabulary} "
            "tokens"
        )
    if draws is None:
        return top(q, k)
    if law is SiblingLaw.WR or (law is SiblingLaw.WOR and k == 1):
        return draws.independent(part, q, k, live)
    if law is SiblingLaw.HUB:
        return _hub(q, k, draws, part, live)
    return draws.without_replacement(part, q, k, live)


def _hub(q: Tensor, k: int, draws: Places, part: Part, live: Tensor | None) -> Tensor:
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
