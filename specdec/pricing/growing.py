"""Trees whose shape a policy decides on the host, level by level: which sites, how many nodes, how
deep, whether at all.

`ranked` draws nothing: it may look at everything, and prunes what is finished. `sampled` decides
how many children a node gets from the node's own law, before any of them is drawn, and about
another level before that level's laws exist; of a drawn token it reads nothing. Each level is read
from the device once.

Letters: B rows, M nodes of a level, k children, V vocabulary, N nodes, C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from specdec.chance import Draws, Sites
from specdec.drafting.by_level import Grown, Score, places, with_laws
from specdec.drafting.shape import Shape
from specdec.pricing import at_once
from specdec.pricing.noted import Candidates, Noted, best_places, kept, noted_of, on_device, ordered
from specdec.pricing.policy import Policy
from specdec.probs import DraftLaws, top
from specdec.state import State
from specdec.tree import SiblingLaw, TokenTree


@dataclass
class Governed:
    """Grows a run's trees by a policy; `noted` is what it thought of the last one.

    width   nodes of a level of a ranked tree, and children of a node
    wholes  shapes that the drafter could draft in one compiled call
    """

    policy: Policy
    depth: int
    nodes: int
    width: int
    law: SiblingLaw
    chain: bool
    wholes: Sequence[Shape] = ()
    noted: Noted | None = field(default=None, init=False)
    pausing: bool = field(default=False, init=False)  # draft nothing in this round

    @property
    def levels(self) -> int:
        return 0 if self.pausing else self.depth

    def chosen(self, state: State) -> Shape | None:
        return self.policy.choose(self.wholes) if self.wholes and not self.pausing else None

    def finished(self, grown: Grown, state: State, shape: Shape) -> Grown:
        if shape.chain:
            nodes = grown.tree.num_nodes - 1
            self.noted = at_once.of_chain(shape, self.policy.before(shape), nodes, state)
        else:
            grown, self.noted = at_once.of_tree(self.policy, self.nodes, grown, state, shape)
        return grown

    def __call__(self, logits: Tensor, score: Score, state: State, chance: Draws) -> Grown:
        if self.chain:
            grown, self.noted = chains(self, logits, score, state, chance)
        elif self.law is SiblingLaw.DET:
            grown, self.noted = ranked(self, logits, score, state)
        else:
            grown, self.noted = sampled(self, logits, score, state, chance)
        return grown


def ranked(plan: Governed, logits: Tensor, score: Score, state: State) -> tuple[Grown, Noted]:
    """Expand the best nodes of each level while that pays, and keep the best of all: DET."""
    device, rows = logits.device, len(logits)
    laws, tree = DraftLaws(state), TokenTree.root(state.roots)
    depth, greedy = min(plan.levels, state.deepest), state.sampling.greedy
    survival, origin = np.ones((rows, 1)), np.full((rows, 1), -1)
    first, count, levels = 0, 0, list[Candidates]()
    for level in range(depth):
        law = laws(logits, tree, first, across_nodes=True)
        size = law.shape[1]
        best = top(law.flatten(0, 1), min(plan.width, law.shape[-1])).view(rows, size, -1)
        tokens, found = _read(best, law.gather(2, best))
        probable = np.exp(found) if greedy else found
        value = survival[:, :, None] * plan.policy.conditional(probable, level + 1, drawn=False)
        value[probable <= 0] = 0  # processors rule these out
        value = (value * _open(state, level)[:, None, None]).reshape(rows, -1)
        k = best.shape[2]
        unscored = np.full((rows, size * k), -1)
        above = np.repeat(origin, k, 1)
        own = probable.reshape(rows, -1)
        levels.append(Candidates(tokens.reshape(rows, -1), value, own, above, unscored))
        count += size * k
        chosen = np.sort(best_places(value, plan.width), 1)
        frontier = np.take_along_axis(value, chosen, 1)
        if level + 1 == depth:
            break
        so_far = np.concatenate([one.values for one in levels], 1)
        worth = plan.policy.keep(ordered(so_far)[1][:, : plan.nodes])
        if not plan.policy.goes_on(level + 1, worth, frontier):
            break
        parents, first, numbers = chosen // k + first, tree.num_nodes, np.arange(chosen.shape[1])
        np.put_along_axis(unscored, chosen, numbers[None] + first, 1)
        survival, origin = frontier, chosen + count - size * k
        expanded = np.take_along_axis(levels[-1].tokens, chosen, 1)
        tree = tree.grow(on_device(expanded, device), on_device(parents, device))
        logits = score(tree, first)
    if not levels:
        return Grown(tree, 1), Noted.empty(rows)
    whole = Candidates(*(np.concatenate(part, 1) for part in zip(*levels, strict=True)))
    return kept(plan.policy, plan.nodes, whole, state, tree.num_nodes, len(levels))


def chains(
    plan: Governed, logits: Tensor, score: Score, state: State, chance: Draws
) -> tuple[Grown, Noted]:
    """Chains, whose tokens are drawn or, if DET, the best: what `sampled` and `ranked` do with one
    child per node, in fewer steps."""
    laws, tree, rows = DraftLaws(state), TokenTree.root(state.roots), state.rows
    depth = min(plan.levels, plan.nodes, state.deepest)
    if depth < 1:
        return Grown(TokenTree.root(state.roots, plan.law), 1), Noted.empty(rows)
    draws, greedy = places(chance, state, (1,) * depth, plan.law), state.sampling.greedy
    survival = np.array(state.on_host.live, dtype=float)
    deepest = np.array(state.on_host.room) - 1
    recorded = list[Tensor]()
    values, best = list[np.ndarray](), list[np.ndarray]()
    for level in range(depth):
        q = laws(logits, tree, level)[:, 0]
        recorded.append(q)
        # what follows reads the law alone, so that the decision to draw is made before the draw
        probable = _read(q.amax(-1))[0]
        probable = np.exp(probable) if greedy else probable
        likely = plan.policy.conditional(probable[:, None], level + 1, drawn=draws is not None)[
            :, 0
        ]
        value = survival * likely
        if level >= state.shallowest:
            value = value * (level < deepest)
        if not probable.all():
            value = value * (probable > 0)
        if not plan.policy.draws(level, value[:, None]):
            break
        every = bool((value > 0).all())
        live = None if every else on_device(value > 0, q.device)
        part = slice(level * rows, (level + 1) * rows)
        token = top(q, 1) if draws is None else draws.independent(part, q, 1, live)
        values.append(value)
        best.append(probable)
        lengths = None if every else on_device((np.stack(values) > 0).sum(0), q.device)
        tree = TokenTree.chain(torch.cat([tree.tokens, token], 1), lengths)
        survival = value
        if level + 1 == depth or not plan.policy.goes_on(level + 1, level + 1, value[:, None]):
            break
        logits = score(tree, level + 1)
    if not values:
        return Grown(TokenTree.root(state.roots, plan.law), 1), Noted.empty(rows, len(recorded))
    worth = np.stack(values, 1)
    parents = np.where(worth > 0, np.arange(len(values)), -1)
    parents = np.concatenate([np.full((rows, 1), -1), parents], 1)
    drawn = draws is not None
    noted = noted_of(parents, worth, np.stack(best, 1), len(recorded), drawn)
    return with_laws(tree, recorded, len(recorded), plan.law), noted


def sampled(
    plan: Governed, logits: Tensor, score: Score, state: State, chance: Draws
) -> tuple[Grown, Noted]:
    """Children are drawn at the sites that pay, without replacement (WOR) or independently (WR)."""
    device, rows, law = logits.device, len(logits), plan.law
    laws, tree = DraftLaws(state), TokenTree.root(state.roots)
    depth = min(plan.levels, state.deepest)
    survival, used = np.ones((rows, 1)), np.array(state.on_host.live)[:, None]
    first, levels, scored = 0, 0, 1
    recorded = list[Tensor]()
    above, values, best_left = (list[np.ndarray]() for _ in range(3))
    for level in range(depth):
        q = laws(logits, tree, first)
        recorded.append(q)
        levels, scored = level + 1, tree.num_nodes
        width = min(plan.width, q.shape[2])
        best = q.amax(-1, keepdim=True) if width == 1 else q.topk(width, sorted=True).values
        probable = _read(best)[0]
        left = np.ones_like(probable)  # of the law, before each child is drawn
        if width == 1:
            relative = probable
        elif law is SiblingLaw.WOR:
            left[..., 1:] -= probable.cumsum(-1)[..., :-1]
            relative = (probable / left.clip(1e-12)).clip(0, 1)
        else:
            relative = np.repeat(probable[..., :1], width, -1)
        # what follows reads laws alone, so that the decision to draw is made before the draw
        site = survival[:, :, None] * _first_hits(plan.policy, relative, level + 1)
        site = np.minimum.accumulate(site, -1) * (relative > 0)
        site *= (used & _open(state, level)[:, None])[:, :, None]
        flat = site.reshape(rows, -1)
        room = min(plan.nodes - (tree.num_nodes - 1), flat.shape[1])
        order = best_places(flat, room)
        count = plan.policy.draws(tree.num_nodes - 1, np.take_along_axis(flat, order, 1))
        chosen = np.sort(order[:, :count], 1)
        if count == 0:
            break
        value = np.take_along_axis(flat, chosen, 1)
        is_drawn = value > 0
        parents = np.where(is_drawn, chosen // width + first, -1)
        tokens = _drawn(q, parents - first, is_drawn, level, first, law, chance)
        above.append(parents)
        values.append(value)
        best_left.append(np.take_along_axis(relative.reshape(rows, -1), chosen, 1))
        survival, used, first = value, is_drawn, tree.num_nodes
        tree = tree.grow(tokens, on_device(parents, device), _frame(parents))
        nodes = tree.num_nodes - 1
        if nodes >= plan.nodes or level + 1 == depth:
            break
        if not plan.policy.goes_on(level + 1, nodes, value):
            break
        logits = score(tree, first)
    if not values:
        return Grown(TokenTree.root(state.roots, law), 1), Noted.empty(rows, levels)
    missing = tree.num_nodes - sum(each.shape[1] for each in recorded)
    if missing:
        recorded.append(recorded[0].new_zeros(rows, missing, recorded[0].shape[-1]))
    grown = Grown(tree.drawn_from(law, torch.cat(recorded, 1)), scored)
    whole = np.concatenate([np.full((rows, 1), -1), *above], 1)
    of_nodes = np.concatenate(values, 1), np.concatenate(best_left, 1)
    return grown, noted_of(whole, *of_nodes, levels, drawn=True)


def _first_hits(policy: Policy, relative: np.ndarray, depth: int) -> np.ndarray:
    """(B, M, k) the chance that the k-th child is the accepted one."""
    each = policy.conditional(relative, depth, drawn=True)
    missed = np.ones_like(each)
    missed[..., 1:] = (1 - each[..., :-1]).cumprod(-1)
    hits: np.ndarray = each * missed
    return hits


def _drawn(
    q: Tensor,
    parents: np.ndarray,
    is_drawn: np.ndarray,
    level: int,
    first: int,
    law: SiblingLaw,
    chance: Draws,
) -> Tensor:
    """(B, m) tokens of children, whose parents (B, m), numbered within the level, are in order.
    Nodes with as many children are drawn at together."""
    rows, size, vocabulary = q.shape
    index = np.where(is_drawn, np.arange(rows)[:, None] * size + parents, -1)
    counts = np.bincount(index[is_drawn], minlength=rows * size)
    flat, tokens = q.reshape(-1, vocabulary), torch.zeros(index.shape, dtype=torch.long)
    tokens = tokens.to(q.device)
    for k in np.unique(counts[counts > 0]).tolist():
        nodes = np.flatnonzero(counts == k)
        put = on_device(nodes, q.device)
        zero = torch.zeros_like(put)
        alive = torch.ones_like(put, dtype=torch.bool)
        at = Sites(put // size, put % size + first, zero, zero + level, alive)
        draw = chance.independent if k == 1 or law is SiblingLaw.WR else chance.without_replacement
        where = np.isin(index, nodes)
        tokens[on_device(where, q.device)] = draw(flat[put], k, at, "draft").flatten()
    return tokens


def _open(state: State, level: int) -> np.ndarray:
    """(B,) bool: rows that draft, and may have nodes below this level."""
    host = state.on_host
    return np.array(host.live) & (level + 1 < np.array(host.room))


def _read(*values: Tensor) -> list[np.ndarray]:
    """Tensors of one shape on the host, in one read."""
    if values[0].device.type == "cpu":
        return [
            each.double().numpy() if each.is_floating_point() else each.numpy() for each in values
        ]
    whole = torch.stack([each.double() for each in values]).cpu().numpy()
    return [
        part if each.is_floating_point() else part.astype(np.int64)
        for part, each in zip(whole, values, strict=True)
    ]


def _frame(parents: np.ndarray) -> Sequence[int] | None:
    """The parents that all rows share, if they do."""
    same = (parents == parents[:1]).all() and (parents >= 0).all()
    return parents[0].tolist() if same else None
