"""EAGLE-2's dynamic tree (2406.16858): expand the best nodes of each level, keep the best of all.

Letters: B rows, M nodes of a level, V vocabulary, N nodes, C candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from specdec.drafting.by_level import Grown, Score
from specdec.probs import DraftLaws, top
from specdec.state import State
from specdec.tree import Structure, TokenTree


class Candidates(NamedTuple):
    """What a ranked tree is chosen from, (B, C) each, in order of creation."""

    tokens: Tensor
    values: Tensor  # log-probability of the path
    above: Tensor  # the candidate that is the parent, -1 for the root
    scored: Tensor  # number in the drafter's memory, -1: not scored


def ranked(
    logits: Tensor, score: Score, state: State, depth: int, expand: int, nodes: int
) -> Grown:
    """At each level expand the `expand` best nodes by cumulative probability with as many of their
    best tokens, at the end keep the best `nodes` of all candidates. Nothing is drawn: DET."""
    device, laws = logits.device, DraftLaws(state)
    rows, depth = len(logits), min(depth, state.deepest)
    tree = TokenTree.root(state.roots)  # what the drafter has scored, in its own numbers
    if depth < 1:
        return Grown(tree, 1)
    first, size = 0, 1  # of the frontier
    value = torch.zeros(rows, 1, dtype=torch.float32, device=device)  # of the frontier's paths
    origin = torch.full((rows, 1), -1, device=device)  # the candidate that each frontier node is
    levels: list[Candidates] = []
    for level in range(depth):
        q = laws(logits, tree, first, across_nodes=True)
        log_q = q if state.sampling.greedy else q.log()
        best = top(log_q.flatten(0, 1), min(expand, q.shape[-1])).view(rows, size, -1)
        total = (log_q.gather(2, best) + value[:, :, None]).flatten(1).float()
        if state.shallowest <= level:
            deeper = state.live & (level + 1 < state.room)
            total = torch.where(deeper[:, None], total, -torch.inf)
        k, count = best.shape[2], sum(each.tokens.shape[1] for each in levels)
        tokens, unscored = best.flatten(1), torch.full((rows, size * k), -1, device=device)
        levels.append(Candidates(tokens, total, origin.repeat_interleave(k, 1), unscored))
        if level + 1 == depth:
            break
        chosen = top(total, min(expand, total.shape[1])).sort(1).values  # in order of creation
        parents = chosen // k + first
        first, size = tree.num_nodes, chosen.shape[1]
        numbers = (torch.arange(size, device=device) + first).expand(rows, -1)
        levels[-1] = levels[-1]._replace(scored=unscored.scatter(1, chosen, numbers))
        value, origin = total.gather(1, chosen), chosen + count
        tree = tree.grow(tokens.gather(1, chosen), parents)
        logits = score(tree, first)
    candidates = Candidates(*(torch.cat(part, 1) for part in zip(*levels, strict=True)))
    return _best(state.roots[:, None], candidates, nodes, depth, tree.num_nodes)


def _best(root: Tensor, candidates: Candidates, nodes: int, depth: int, scored: int) -> Grown:
    """The best `nodes` candidates as a tree. A parent's value is at least its child's and it was
    created earlier, so with ties to the lowest index it is always kept."""
    tokens, values, above, numbers = candidates
    chosen = top(values, min(nodes, values.shape[1])).sort(1).values
    kept = values.gather(1, chosen)
    there = kept > -torch.inf
    final = torch.arange(1, chosen.shape[1] + 1, device=root.device).expand_as(chosen)
    number = torch.zeros_like(tokens).scatter(1, chosen, final)
    parent = above.gather(1, chosen)
    parents = torch.where(parent >= 0, number.gather(1, parent.clamp(min=0)), 0)
    structure = Structure.of(
        torch.cat([torch.full_like(root, -1), torch.where(there, parents, -1)], 1), depth=depth
    )
    tree = TokenTree(torch.cat([root, tokens.gather(1, chosen)], 1), structure)
    inner = torch.cat([torch.zeros_like(root), numbers.gather(1, chosen)], 1)
    return Grown(tree, scored, inner, kept)
