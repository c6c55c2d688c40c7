"""Growing token trees level by level from a model's laws: what all drafters with a q share.

A drafter brings `score(tree, start)`, the logits of nodes >= start in one forward pass; there is one per level, never one
per node. What is drawn, and in which order, keeps the promise of the sibling law: first the decision, then the draw.

Letters: B rows, M nodes of a level, k children, V vocabulary, N nodes, C candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.chance import Draws, Sites
from specdec.interfaces import State
from specdec.rank_tree import RankTree
from specdec.sampling import prefixes, top
from specdec.stopping import Stop
from specdec.tree import SiblingLaw, TokenTree

Score = Callable[[TokenTree, int], Tensor]


@dataclass(frozen=True, eq=False)
class Grown:
    """A tree, and where its nodes lie in the drafter's own cache.

    inner (B, N): the number under which the drafter has scored the node; -1 for nodes that it has not scored.
    """

    tree: TokenTree
    inner: Tensor


class Laws:
    """The drafter's laws at its own nodes, with the run's sampling and each node's own path."""

    def __init__(self, state: State) -> None:
        self.state, self.sampling = state, state.sampling

    def __call__(self, logits: Tensor, tree: TokenTree, start: int, across_nodes: bool = False) -> Tensor:
        """(B, M, V) laws of nodes start .. start + M - 1. At temperature 0: scores to rank tokens by, comparable
        `across_nodes` (log-probabilities) or only within one."""
        rows, nodes, vocabulary = logits.shape
        flat = logits.reshape(-1, vocabulary)

        def paths() -> list[Tensor]:
            index = torch.arange(rows * nodes, device=logits.device)
            return prefixes(self.state, tree, index // nodes, index % nodes + start)

        if self.sampling.greedy:
            scores = self.sampling.logits(flat, paths)
            return (scores.log_softmax(-1) if across_nodes else scores).view(rows, nodes, -1)
        return self.sampling.law(flat, paths).view(rows, nodes, -1)


def levels(
    logits: Tensor,
    score: Score,
    state: State,
    chance: Draws,
    branching: list[int],
    draw: SiblingLaw,
    stop: Stop | None = None,
) -> Grown:
    """Every node of depth d gets branching[d] children, as many as its law has tokens for. `logits` (B, 1, V) are the root's.
    A chain may `stop` earlier, each row on its own."""
    laws, tree = Laws(state), TokenTree.root(state.roots)
    depth, first, recorded = min(len(branching), state.deepest), 0, []
    if depth < 1:
        return Grown(TokenTree.root(state.roots, draw), tree.parents)
    there = state.live[:, None]  # (B, M) the nodes of the level that the row has
    limit = (state.room - 1) * state.live  # how deep each row's tree may be
    chain = max(branching) == 1
    # No row has to stop earlier than others.
    everyone = stop is None and all(state.on_host.live) and min(state.on_host.room) > depth
    if stop is not None:
        stop.round(state)
    for level in range(depth):
        k, nodes = branching[level], tree.num_nodes - first
        q = laws(logits, tree, first)
        # Who may have children is decided before anything is drawn.
        if stop is not None:
            law = q[:, 0].softmax(-1) if state.sampling.greedy else q[:, 0]
            limit = torch.where(stop(law, level), limit.clamp(max=level), limit)
            if not bool((limit > level).any()):
                break
        open_nodes = there if everyone else there & (level < limit)[:, None]
        drawn, fits = _draw(q, k, state, chance, draw, first, level, open_nodes)
        if chain:  # a law always has room for one
            first = tree.num_nodes
            tokens = torch.cat([tree.tokens, drawn[:, 0]], 1)
            tree = TokenTree.chain(tokens, None if everyone else limit.clamp(max=first))  # first: its length now
        else:
            there = (
                (open_nodes[:, :, None] if fits is None else open_nodes[:, :, None] & fits).expand(-1, -1, k).flatten(1)
            )
            above = torch.arange(first, first + nodes, device=q.device).repeat_interleave(k)
            first = tree.num_nodes
            tree = tree.grow(drawn.flatten(1), torch.where(there, above, -1))
        recorded.append(q)
        if level + 1 < depth:
            logits = score(tree, first)
    else:
        return _drawn(tree, recorded, first, draw, max(branching[:depth]))
    # Stopped: the last level was scored too, which is how it was decided to draw nothing there.
    return _drawn(tree, [*recorded, torch.zeros_like(q)], tree.num_nodes, draw, 1)


def _drawn(tree: TokenTree, recorded: list[Tensor], scored: int, draw: SiblingLaw, width: int) -> Grown:
    """The tree with its law; what was `recorded` covers all nodes but those of the last level, from `scored` on, which were
    never scored."""
    whole = None
    if draw is not SiblingLaw.DET and tree.num_nodes > 1:
        rows, unscored, vocabulary = tree.rows, tree.num_nodes - scored, recorded[0].shape[-1]
        whole = torch.cat([*recorded, recorded[0].new_zeros(rows, unscored, vocabulary)], 1)
    return Grown(tree.drawn_from(draw, whole, width), _scored(tree, scored))


def _scored(tree: TokenTree, first: int) -> Tensor:
    """The drafter's numbers are the tree's own; nodes of the last level, from `first` on, were never scored."""
    numbers = torch.arange(tree.num_nodes, device=tree.tokens.device)
    return torch.where(numbers < first, numbers, -1).expand(tree.rows, -1)


def _draw(
    q: Tensor, k: int, state: State, chance: Draws, draw: SiblingLaw, first: int, level: int, open_nodes: Tensor
) -> tuple[Tensor, Tensor | None]:
    """k children of each of M nodes: tokens (B, M, k), and which of them the law has room for (None: all)."""
    rows, nodes, vocabulary = q.shape
    flat = q.reshape(-1, vocabulary)
    if k > vocabulary and draw is not SiblingLaw.WR:
        raise ValueError(f"{k} distinct children of a node were asked for, the vocabulary has {vocabulary} tokens")
    if draw is SiblingLaw.DET:
        drawn = top(flat, k)
        if k == 1:
            return drawn.view(rows, nodes, k), None
        fits = flat.gather(1, drawn) > (-torch.inf if state.sampling.greedy else 0)
        return drawn.view(rows, nodes, k), fits.view(rows, nodes, k)
    index = torch.arange(rows * nodes, device=q.device)
    at = Sites(
        index // nodes,
        index % nodes + first,
        torch.zeros_like(index),
        torch.full_like(index, level),
        open_nodes.flatten(),
    )
    if draw is SiblingLaw.WR:
        drawn = chance.independent(flat, k, at, "draft")
        return drawn.view(rows, nodes, k), None
    support = (flat > 0).sum(1, keepdim=True)
    if draw is SiblingLaw.HUB:
        drawn = _hub(flat, k, support, chance, at)
    else:
        drawn = chance.without_replacement(flat, k, at, "draft") if k > 1 else chance.independent(flat, 1, at, "draft")
    fits = torch.arange(k, device=q.device) < support
    return drawn.view(rows, nodes, k), fits.view(rows, nodes, k)


def _hub(q: Tensor, k: int, support: Tensor, chance: Draws, at: Sites) -> Tensor:
    """SpecHub 2411.05289: the min(k, support) - 1 most probable tokens, then one drawn from the rest of q."""
    fixed = (support - 1).clamp(max=k - 1)
    drawn = top(q, k)
    inside = torch.arange(k, device=q.device) < fixed
    rest = q.scatter(1, drawn, torch.where(inside, 0.0, q.gather(1, drawn)))
    last = chance.categorical(rest, at, "draft")
    return drawn.scatter(1, fixed, last[:, None])


def ranked(logits: Tensor, score: Score, state: State, depth: int, width: int, nodes: int) -> Grown:
    """EAGLE-2's dynamic tree (2406.16858): at each level expand the `width` best nodes by cumulative probability with their
    `width` best tokens, at the end keep the best `nodes` of all candidates. Nothing is drawn: DET."""
    device, laws = logits.device, Laws(state)
    rows, depth = len(logits), min(depth, state.deepest)
    tree = TokenTree.root(state.roots)  # what the drafter has scored, in its own numbers
    if depth < 1:
        return Grown(tree, tree.parents)
    first, size = 0, 1  # of the frontier
    value = torch.zeros(rows, 1, dtype=torch.float32, device=device)  # log-probability of the frontier's paths
    origin = torch.full((rows, 1), -1, device=device)  # (B, size) the candidate that each node of the frontier is
    tokens: list[Tensor] = []  # per level: candidates (B, M * k)
    values: list[Tensor] = []
    above: list[Tensor] = []  # the candidate that is the parent, -1 for the root
    scored: list[Tensor] = []  # number in the drafter's cache, -1: not scored
    for level in range(depth):
        q = laws(logits, tree, first, across_nodes=True)
        log_q = q if state.sampling.greedy else q.log()
        best = top(log_q.flatten(0, 1), min(width, q.shape[-1])).view(rows, size, -1)
        total = (log_q.gather(2, best) + value[:, :, None]).flatten(1).float()
        total = torch.where((state.live & (level + 1 < state.room))[:, None], total, -torch.inf)
        k, count = best.shape[2], sum(part.shape[1] for part in tokens)
        tokens.append(best.flatten(1))
        values.append(total)
        above.append(origin.repeat_interleave(k, 1))
        scored.append(torch.full_like(tokens[-1], -1))
        if level + 1 == depth:
            break
        chosen = top(total, min(width, total.shape[1])).sort(1).values  # in order of creation
        parents = chosen // k + first
        first, size = tree.num_nodes, chosen.shape[1]
        numbers = (torch.arange(size, device=device) + first).expand(rows, -1)
        scored[-1] = scored[-1].scatter(1, chosen, numbers)
        value, origin = total.gather(1, chosen), chosen + count
        tree = tree.grow(tokens[-1].gather(1, chosen), parents)
        logits = score(tree, first)
    candidates = Candidates(*(torch.cat(part, 1) for part in (tokens, values, above, scored)))
    return _keep_best(state.roots[:, None], candidates, nodes, depth)


def static(logits: Tensor, score: Score, state: State, shape: RankTree) -> Grown:
    """A tree whose ranks are fixed beforehand: each node takes the token of its rank at its parent (EAGLE-1 2401.15077, Medusa
    2401.10774). Only nodes with children are scored. Nothing is drawn: DET."""
    shape = shape.within(logits.shape[-1])
    laws, plan = Laws(state), _plan(shape, logits.device)
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
    fits = (plan.depths < state.room[:, None]) & state.live[:, None]
    tree = TokenTree(
        torch.cat(tokens, 1),
        torch.cat([torch.full_like(tokens[0], -1), torch.where(fits, plan.parents, -1)], 1),
        levels=shape.depth,
        shape_is_known=True,
    )
    return Grown(tree, plan.scored.expand(rows, -1))


class Level(NamedTuple):
    """One level of a static tree: c children, of which e have children themselves."""

    ranks_needed: int
    above: Tensor  # (c,) each child's parent among the nodes of the level before that have children
    ranks: Tensor  # (c,)
    going_on: Tensor  # (e,) which of the children have children
    parents: Tensor  # (e,) number of their parent in the drafter's own cache


class Plan(NamedTuple):
    """What a static tree asks for at each level, on the device: worked out once."""

    levels: list[Level]
    depths: Tensor  # (N - 1,) of each node
    parents: Tensor  # (N - 1,)
    scored: Tensor  # (N,) number in the drafter's cache, -1: not scored


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
    scored = [0, *(numbers.get(path, -1) for path in shape.paths)]
    return Plan(levels, put(shape.depths), put(shape.parents), put(scored))


class Candidates(NamedTuple):
    """What a ranked tree is chosen from, (B, C) each, in order of creation."""

    tokens: Tensor
    values: Tensor  # log-probability of the path
    above: Tensor  # the candidate that is the parent, -1 for the root
    scored: Tensor  # number in the drafter's cache, -1: not scored


def _keep_best(root: Tensor, candidates: Candidates, nodes: int, depth: int) -> Grown:
    """The best `nodes` candidates as a tree. A parent's value is at least its child's and it was created earlier, so with
    ties to the lowest index it is always kept."""
    tokens, values, above, scored = candidates
    chosen = top(values, min(nodes, values.shape[1])).sort(1).values
    there = values.gather(1, chosen) > -torch.inf
    final = torch.arange(1, chosen.shape[1] + 1, device=root.device).expand_as(chosen)
    number = torch.zeros_like(tokens).scatter(1, chosen, final)
    parent = above.gather(1, chosen)
    parents = torch.where(parent >= 0, number.gather(1, parent.clamp(min=0)), 0)
    tree = TokenTree(
        torch.cat([root, tokens.gather(1, chosen)], 1),
        torch.cat([torch.full_like(root, -1), torch.where(there, parents, -1)], 1),
        levels=min(depth, chosen.shape[1]),
        shape_is_known=True,
    )
    return Grown(tree, torch.cat([torch.zeros_like(root), scored.gather(1, chosen)], 1))


def adaptive(logits: Tensor, score: Score, state: State, chance: Draws, depth: int, nodes: int) -> Grown:
    """Decide, then draw: each next child goes to the most promising open site of its level, and only then is its token drawn
    from what is left of that site's q (WOR). A site is worth the probability of its path times the mass not yet drawn
    there (DySpec 2410.11744, level by level, so that a level is one forward pass)."""
    laws, tree = Laws(state), TokenTree.root(state.roots)
    # A level's share of the nodes does not depend on how deep the rows beside may still go.
    shares = [nodes // depth + (level < nodes % depth) for level in range(depth)]
    rows, depth, device = len(logits), min(depth, state.deepest), logits.device
    if depth < 1:
        return Grown(TokenTree.root(state.roots, SiblingLaw.WOR), tree.parents)
    every = torch.arange(rows, device=device)
    worth = torch.ones(rows, 1, dtype=torch.float64, device=device)  # of each node of the level: its path's probability
    first, recorded = 0, []
    for level in range(depth):
        q = laws(logits, tree, first)
        open_rows = state.live & (level + 1 < state.room)
        left, site_worth, ranks = q.double().clone(), worth.clone(), torch.zeros_like(worth, dtype=torch.long)
        drawn, above, worths = [], [], []
        for _ in range(shares[level]):
            site = site_worth.argmax(1)  # the decision, before its token is known
            alive = open_rows & (site_worth[every, site] > 0)
            law, rank = left[every, site], ranks[every, site]
            mass = law.sum(-1)
            # A site that is not alive may have nothing left to draw from.
            drawable = torch.where(alive[:, None], law, 1.0)
            at = Sites(every, site + first, rank, torch.full_like(every, level), alive)
            token = chance.categorical(drawable, at, "draft")
            share = law[every, token] / mass.clamp(min=1e-300)
            drawn.append(token)
            above.append(torch.where(alive, site + first, -1))
            worths.append(torch.where(alive, worth[every, site] * q[every, site, token].double(), 0.0))
            left[every, site, token] = torch.where(alive, 0.0, law[every, token])
            some_left = (left[every, site] > 0).any(-1)
            remaining = site_worth[every, site] * (1 - share) * some_left
            site_worth[every, site] = torch.where(alive, remaining, site_worth[every, site])
            ranks[every, site] = rank + alive
        recorded.append(q)
        worth, first = torch.stack(worths, 1), tree.num_nodes
        tree = tree.grow(torch.stack(drawn, 1), torch.stack(above, 1))
        if level + 1 < depth:
            logits = score(tree, first)
    q = torch.cat([*recorded, recorded[0].new_zeros(rows, tree.num_nodes - first, recorded[0].shape[-1])], 1)
    return Grown(tree.drawn_from(SiblingLaw.WOR, q, tree.width), _scored(tree, first))
