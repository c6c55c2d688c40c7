"""Walking down trees, all rows at once: what most rules of acceptance share. It decides nothing.

Every level has a fixed shape (B, V); rows that have come to rest are masked by `open`, so that no device has to be asked.

Letters: B rows, N nodes, D levels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.chance import Draws, Sites
from specdec.interfaces import Verdict
from specdec.sampling import Laws
from specdec.tree import TokenTree


class Descent:
    """Where each row stands: `node` (B,), and whether it still descends: `open` (B,)."""

    def __init__(self, trees: TokenTree, live: Tensor) -> None:
        self.trees = trees
        self.rows = torch.arange(trees.rows, device=trees.tokens.device)
        self.node = torch.zeros_like(self.rows)
        self.open = live.clone()
        self.path: list[Tensor] = []
        self._on_host = trees.tokens.device.type == "cpu"

    @property
    def over(self) -> bool:
        """Whether every row is known to rest. Asked on a CPU only, where asking is free."""
        return self._on_host and not bool(self.open.any())

    def sites(self, nodes: Tensor | None = None, ranks: Tensor | int = 0, live: Tensor | None = None) -> Sites:
        """Places of draws: at the current nodes, or at others of the same rows."""
        at = self.node if nodes is None else nodes
        depths = self.trees.depths[self.rows, at]
        ranks = torch.full_like(at, ranks) if isinstance(ranks, int) else ranks
        return Sites(self.rows, at, ranks, depths, self.open if live is None else live)

    def child(self, rank: int) -> Tensor:
        """(B,) the child of sibling rank `rank`, 0 where there is none."""
        here = self.trees.parents == self.node[:, None]
        if rank:
            here &= self.trees.ranks == rank
        return here.int().argmax(1) * here.any(1)

    def find(self, token: Tensor) -> Tensor:
        """(B,) the first child in sampling order that carries `token`, 0 where there is none. Later copies are dead."""
        here = (self.trees.parents == self.node[:, None]) & (self.trees.tokens == token[:, None])
        return here.int().argmax(1) * here.any(1)

    def token(self, node: Tensor) -> Tensor:
        return self.trees.tokens[self.rows, node]

    def step(self, node: Tensor, taken: Tensor) -> None:
        """Rows in `taken` descend to `node`, the others come to rest."""
        self.path.append(torch.where(taken, node, -1))
        self.node = torch.where(taken, node, self.node)
        self.open = taken

    def verdict(self, bonus: Tensor, **counts: Tensor) -> Verdict:
        path = torch.stack(self.path, 1) if self.path else self.rows.new_empty(len(self.rows), 0)
        return Verdict(path, (path >= 0).sum(1), bonus, counts)


class Judged(NamedTuple):
    """What a rule says of the children of the nodes where rows stand."""

    child: Tensor  # (B,) the accepted child, 0: none
    left: Tensor  # (B, V) the law of the extra token where none is accepted; p itself below a node without children
    empty: Tensor  # (B,) how often nothing was left of a law but rounding


Judge = Callable[[Descent, Tensor, Tensor | None, Draws], Judged]


def descend(trees: TokenTree, laws: Laws, chance: Draws, judge: Judge, matching: bool = False) -> Verdict:
    """From the root down, `judge(walk, p, q, chance)` accepts one child of each row's node or none; with none the target adds a
    token and the row rests. p (B, V) is the target's law there, q (B, V) the drafter's, None for DET.

    matching  the target's token may be a child, which is then accepted (children that were never tested)
    """
    walk = Descent(trees, laws.state.live)
    nobody = torch.zeros_like(walk.node)
    bonus, zero_residuals = nobody, nobody
    for level in range(trees.levels + 1):
        p = laws[walk.rows, walk.node]
        judged = Judged(nobody, p, nobody)
        if level < trees.levels:
            q = None if trees.q is None else trees.q[walk.rows, walk.node]
            judged = judge(walk, p, q, chance)
        child, left, empty = judged
        ending = walk.open & (child == 0)
        token = chance.categorical(left, walk.sites(live=ending), "bonus")
        bonus, zero_residuals = torch.where(ending, token, bonus), zero_residuals + empty
        if level < trees.levels:
            if matching:
                child = torch.where(ending, walk.find(token), child)
            walk.step(child, walk.open & (child > 0))
        if walk.over:
            break
    return walk.verdict(bonus, zero_residuals=zero_residuals)


def verdict_at(trees: TokenTree, node: Tensor, bonus: Tensor, **counts: Tensor) -> Verdict:
    """The verdict that accepts the path to `node` (B,), for rules that do not walk from the root."""
    rows = torch.arange(trees.rows, device=node.device)
    numbers = torch.arange(trees.num_nodes, device=node.device)
    on_path = trees.ancestors[rows, node] & (numbers > 0)
    ordered = torch.where(on_path, numbers, trees.num_nodes).sort(1).values[:, : trees.levels]
    path = torch.where(ordered < trees.num_nodes, ordered, -1)
    return Verdict(path, (path >= 0).sum(1), bonus, counts)


NOTHING = 1e-12  # a residual below this share of its mass exists by rounding only


def residual(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """norm((p - q)+) for p (n, V) and q (n, V), and where nothing was left (n,): there p itself, reached only by rounding."""
    left = (p - q).clamp_(min=0)
    mass = left.sum(-1, keepdim=True)
    empty = mass <= NOTHING * p.sum(-1, keepdim=True)
    return torch.where(empty, p, left / mass.clamp(min=torch.finfo(p.dtype).tiny)), empty[:, 0]


def one_hot(token: Tensor, like: Tensor) -> Tensor:
    """(n, V) laws that are certain of `token` (n,): what a DET sibling was drawn from."""
    return torch.zeros_like(like).scatter_(1, token[:, None], 1.0)


def without(q: Tensor, token: Tensor) -> Tensor:
    """q (n, V) after `token` (n,) has been drawn and is not put back; 0 everywhere once nothing is left."""
    left = q.scatter(1, token[:, None], 0.0)
    return left / left.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)


def ratio(p: Tensor, q: Tensor, token: Tensor) -> Tensor:
    """(n,) p(x) / q(x) at `token`; 0 where q(x) = 0, which content checks report."""
    above, below = (law.gather(1, token[:, None])[:, 0] for law in (p, q))
    return torch.where(below > 0, above / below, 0.0)
