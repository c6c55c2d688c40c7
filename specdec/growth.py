"""Growing token trees level by level from a model's laws: what all drafters with a q share.

A drafter brings `score(tree, start)`, the logits of nodes >= start in one forward pass; there is one per level, never one
per node. What is drawn, and in which order, keeps the promise of the sibling law: first the decision, then the draw.

Letters: B rows, M nodes of a level, k children, V vocabulary, N nodes, C candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.chance import Draws, Sites
from specdec.interfaces import State
from specdec.sampling import prefixes, top
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

    def __call__(self, logits: Tensor, tree: TokenTree, start: int) -> Tensor:
        """(B, M, V) laws of nodes start .. start + M - 1. At temperature 0: log-probabilities for ranking instead."""
        rows, nodes, vocabulary = logits.shape
        flat = logits.reshape(-1, vocabulary)
        index = torch.arange(rows * nodes, device=logits.device)

        def paths() -> list[Tensor]:
            return prefixes(self.state, tree, index // nodes, index % nodes + start)

        if self.sampling.greedy:
            return self.sampling.logits(flat, paths).log_softmax(-1).view(rows, nodes, -1)
        return self.sampling.law(flat, paths).view(rows, nodes, -1)


def levels(logits: Tensor, score: Score, state: State, chance: Draws, branching: list[int], draw: SiblingLaw) -> Grown:
    """Every node of depth d gets branching[d] children, as many as its law has tokens for. `logits` (B, 1, V) are the root's."""
    device, laws = logits.device, Laws(state)
    root = state.roots[:, None]
    tokens, parents = root, torch.full_like(root, -1)
    used = state.live[:, None]
    depth, first, recorded = min(len(branching), state.deepest), 0, []
    if depth < 1:
        return Grown(TokenTree.root(state.roots, draw), parents)
    chain = max(branching) == 1
    for level in range(depth):
        k, nodes = branching[level], tokens.shape[1] - first
        q = laws(logits, TokenTree(tokens, parents, levels=level, width=1, shape_is_known=True), first)
        drawn, drawable = _draw(q, k, state, chance, draw, first, level, used)
        fits = (level + 1 < state.room)[:, None, None]  # decided before anything is drawn
        grown = drawable & fits & used[:, :, None]
        above = (torch.arange(nodes, device=device) + first)[None, :, None].expand_as(drawn)
        first = tokens.shape[1]
        tokens = torch.cat([tokens, torch.where(grown, drawn, 0).flatten(1)], 1)
        parents = torch.cat([parents, torch.where(grown, above, -1).flatten(1)], 1)
        used = grown.flatten(1)
        recorded.append(q)
        if level + 1 < depth:
            so_far = TokenTree(tokens, parents, levels=level + 1, width=max(branching), shape_is_known=True)
            logits = score(so_far, first)
    whole = None
    if draw is not SiblingLaw.DET:
        last = tokens.shape[1] - first
        whole = torch.cat([*recorded, recorded[0].new_zeros(len(tokens), last, recorded[0].shape[-1])], 1)
    inner = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    inner = torch.where(inner < first, inner, -1)
    width = 1 if chain else max(branching[:depth])
    return Grown(TokenTree(tokens, parents, draw, whole, depth, width, shape_is_known=True), inner)


def _draw(
    q: Tensor, k: int, state: State, chance: Draws, draw: SiblingLaw, first: int, level: int, used: Tensor
) -> tuple[Tensor, Tensor]:
    """k children of each of M nodes: tokens (B, M, k), and which of them the law has room for."""
    rows, nodes, vocabulary = q.shape
    flat = q.reshape(-1, vocabulary)
    if k > vocabulary and draw is not SiblingLaw.WR:
        raise ValueError(f"{k} distinct children of a node were asked for, the vocabulary has {vocabulary} tokens")
    index = torch.arange(rows * nodes, device=q.device)
    live = (used & (level + 1 < state.room)[:, None]).flatten()
    at = Sites(index // nodes, index % nodes + first, torch.zeros_like(index), torch.full_like(index, level), live)
    rank = torch.arange(k, device=q.device)
    if draw is SiblingLaw.DET:
        drawn = top(flat, k)
        fits = flat.gather(1, drawn) > (-torch.inf if state.sampling.greedy else 0)
    elif draw is SiblingLaw.WR:
        drawn = chance.independent(flat, k, at, "draft")
        fits = torch.ones_like(drawn, dtype=torch.bool)
    else:
        support = (flat > 0).sum(1, keepdim=True)
        if draw is SiblingLaw.WOR:
            drawn = (
                chance.without_replacement(flat, k, at, "draft") if k > 1 else chance.independent(flat, 1, at, "draft")
            )
        else:
            drawn = _hub(flat, k, support, chance, at)
        fits = rank < support
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
    root = state.roots[:, None]
    if depth < 1:
        return Grown(TokenTree.root(state.roots), torch.full_like(root, -1))
    frontier_first, frontier_size = 0, 1
    inner_tokens, inner_parents = root, torch.full_like(root, -1)  # what the drafter has scored, in its own numbers
    value = torch.zeros(rows, 1, dtype=torch.float32, device=device)  # log-probability of the frontier's paths
    origin = torch.full_like(root, -1)  # (B, scored) the candidate that each scored node is, -1 for the root
    tokens: list[Tensor] = []  # per level: candidates (B, M * k)
    values: list[Tensor] = []
    above: list[Tensor] = []  # the candidate that is the parent, -1 for the root
    scored: list[Tensor] = []  # number in the drafter's cache, -1: not scored
    for level in range(depth):
        tree = TokenTree(inner_tokens, inner_parents, levels=level, width=width, shape_is_known=True)
        q = laws(logits, tree, frontier_first)
        log_q = q if state.sampling.greedy else q.log()
        best = top(log_q.flatten(0, 1), min(width, q.shape[-1])).view(rows, frontier_size, -1)
        total = (log_q.gather(2, best) + value[:, :, None]).flatten(1).float()
        total = torch.where((level + 1 < state.room)[:, None] & state.live[:, None], total, -torch.inf)
        k, count = best.shape[2], sum(part.shape[1] for part in tokens)
        tokens.append(best.flatten(1))
        values.append(total)
        above.append(origin[:, frontier_first:].repeat_interleave(k, 1))
        scored.append(torch.full_like(best.flatten(1), -1))
        if level + 1 == depth:
            break
        chosen = top(total, min(width, total.shape[1]))
        chosen = chosen.sort(1).values  # in order of creation
        parent_numbers = torch.arange(total.shape[1], device=device) // k + frontier_first
        frontier_first, frontier_size = inner_tokens.shape[1], chosen.shape[1]
        numbers = torch.arange(frontier_size, device=device) + frontier_first
        scored[-1] = scored[-1].scatter(1, chosen, numbers.expand(rows, -1))
        value = total.gather(1, chosen)
        inner_parents = torch.cat([inner_parents, parent_numbers[chosen]], 1)
        inner_tokens = torch.cat([inner_tokens, tokens[-1].gather(1, chosen)], 1)
        origin = torch.cat([origin, chosen + count], 1)
        grown = TokenTree(inner_tokens, inner_parents, levels=level + 1, width=width, shape_is_known=True)
        logits = score(grown, frontier_first)
    return _keep_best(
        root, torch.cat(tokens, 1), torch.cat(values, 1), torch.cat(above, 1), torch.cat(scored, 1), nodes, depth
    )


def _keep_best(
    root: Tensor, tokens: Tensor, values: Tensor, above: Tensor, scored: Tensor, nodes: int, depth: int
) -> Grown:
    """The best `nodes` of C candidates as a tree. A parent's value is at least its child's and it was created earlier, so
    with ties to the lowest index it is always kept."""
    chosen = top(values, min(nodes, values.shape[1])).sort(1).values
    there = values.gather(1, chosen) > -torch.inf
    number = torch.zeros_like(tokens).scatter(
        1, chosen, torch.arange(1, chosen.shape[1] + 1, device=root.device).expand_as(chosen)
    )
    parent_candidate = above.gather(1, chosen)
    parent = torch.where(parent_candidate >= 0, number.gather(1, parent_candidate.clamp(min=0)), 0)
    kept = torch.where(there, tokens.gather(1, chosen), 0)
    tree = TokenTree(
        torch.cat([root, kept], 1),
        torch.cat([torch.full_like(root, -1), torch.where(there, parent, -1)], 1),
        levels=min(depth, chosen.shape[1]),
        shape_is_known=True,
    )
    return Grown(tree, torch.cat([torch.zeros_like(root), scored.gather(1, chosen)], 1))


def adaptive(logits: Tensor, score: Score, state: State, chance: Draws, depth: int, nodes: int) -> Grown:
    """Decide, then draw: each next child goes to the most promising open site of its level, and only then is its token drawn
    from what is left of that site's q (WOR). A site is worth the probability of its path times the mass not yet drawn
    there (DySpec 2410.11744, level by level, so that a level is one forward pass)."""
    laws = Laws(state)
    rows, depth, device = len(logits), min(depth, state.deepest), logits.device
    root = state.roots[:, None]
    if depth < 1:
        return Grown(TokenTree.root(state.roots, SiblingLaw.WOR), torch.full_like(root, -1))
    every = torch.arange(rows, device=device)
    tokens, parents = root, torch.full_like(root, -1)
    worth = torch.ones(rows, 1, dtype=torch.float64, device=device)
    first, recorded = 0, []
    for level in range(depth):
        budget = nodes // depth + (level < nodes % depth)
        q = laws(logits, TokenTree(tokens, parents, levels=level, shape_is_known=True), first)
        recorded.append(q)
        left, site_worth, ranks = q.double(), worth.clone(), torch.zeros_like(worth, dtype=torch.long)
        open_rows = state.live & (level + 1 < state.room)
        level_first, child_worth = tokens.shape[1], []
        for _ in range(budget):
            site = site_worth.argmax(1)  # the decision, before its token is known
            alive = open_rows & (site_worth[every, site] > 0)
            law = left[every, site]
            at = Sites(every, site + first, ranks[every, site], torch.full_like(every, level), alive)
            token = chance.categorical(law / law.sum(-1, keepdim=True).clamp(min=1e-300), at, "draft")
            mass = law.sum(-1)
            share = torch.where(mass > 0, law[every, token] / mass.clamp(min=1e-300), 0.0)
            tokens = torch.cat([tokens, torch.where(alive, token, 0)[:, None]], 1)
            parents = torch.cat([parents, torch.where(alive, site + first, -1)[:, None]], 1)
            child_worth.append(torch.where(alive, worth[every, site] * q[every, site, token].double(), 0.0))
            left[every, site, token] = torch.where(alive, 0.0, left[every, site, token])
            remaining = site_worth[every, site] * (1 - share)
            exhausted = ~(left[every, site] > 0).any(-1)
            site_worth[every, site] = torch.where(
                alive, torch.where(exhausted, 0.0, remaining), site_worth[every, site]
            )
            ranks[every, site] += alive
        worth, first = torch.stack(child_worth, 1), level_first
        if level + 1 < depth:
            logits = score(TokenTree(tokens, parents, levels=level + 1, shape_is_known=True), first)
    recorded.append(recorded[0].new_zeros(rows, tokens.shape[1] - first, recorded[0].shape[-1]))
    inner = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    tree = TokenTree(tokens, parents, SiblingLaw.WOR, torch.cat(recorded, 1), depth, shape_is_known=True)
    return Grown(tree, torch.where(inner < first, inner, -1))
