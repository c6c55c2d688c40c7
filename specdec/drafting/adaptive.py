"""Trees whose shape depends on their laws: choose a site, then draw there (DySpec 2410.11744).

Letters: B rows, M nodes of a level, V vocabulary, N nodes.
"""

import torch
from torch import Tensor

from specdec.chance import Draws, Sites
from specdec.drafting.by_level import Grown, Score
from specdec.probs import DraftLaws
from specdec.state import State
from specdec.tree import SiblingLaw, TokenTree


def adaptive(
    logits: Tensor, score: Score, state: State, chance: Draws, depth: int, nodes: int
) -> Grown:
    """Each next child goes to the most promising open site of its level, and only then is its token
    drawn from what is left of that site's q (WOR). A site is worth the probability of its path
    times the mass not yet drawn there (level by level, so that a level is one forward pass)."""
    laws, tree = DraftLaws(state), TokenTree.root(state.roots)
    # A level's share of the nodes does not depend on how deep the other rows may still go.
    shares = [nodes // depth + (level < nodes % depth) for level in range(depth)]
    rows, depth, device = len(logits), min(depth, state.deepest), logits.device
    if depth < 1:
        return Grown(TokenTree.root(state.roots, SiblingLaw.WOR), 1)
    every = torch.arange(rows, device=device)
    worth = torch.ones(rows, 1, dtype=torch.float64, device=device)  # each node's path probability
    first, recorded = 0, []
    for level in range(depth):
        q = laws(logits, tree, first)
        open_rows = state.live & (level + 1 < state.room)
        left, site_worth = q.double().clone(), worth.clone()
        ranks = torch.zeros_like(worth, dtype=torch.long)
        drawn, above, worths = [], [], []
        for _ in range(shares[level]):
            site = site_worth.argmax(1)  # the decision, before its token is known
            alive = open_rows & (site_worth[every, site] > 0)
            law, rank = left[every, site], ranks[every, site]
            mass = law.sum(-1)
            # A dead site may have nothing left to draw from.
            drawable = torch.where(alive[:, None], law, 1.0)
            at = Sites(every, site + first, rank, torch.full_like(every, level), alive)
            token = chance.categorical(drawable, at, "draft")
            share = law[every, token] / mass.clamp(min=1e-300)
            drawn.append(token)
            above.append(torch.where(alive, site + first, -1))
            probable = worth[every, site] * q[every, site, token].double()
            worths.append(torch.where(alive, probable, 0.0))
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
    missing = recorded[0].new_zeros(rows, tree.num_nodes - first, recorded[0].shape[-1])
    return Grown(tree.drawn_from(SiblingLaw.WOR, torch.cat([*recorded, missing], 1)), first)
