"""Walking down trees, all rows at once: what most rules of acceptance share. It decides nothing.

Every level has a fixed shape (B, V); rows that have stopped are masked by `open`, so nothing is
read from the device.

Letters: B rows, N nodes, D levels, V vocabulary.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.chance import Draws, Sites
from specdec.probs import Laws
from specdec.state import State, Verdict
from specdec.tree import TokenTree


class Walk:
    """Where each row is: `node` (B,), and whether it still descends: `open` (B,)."""

    def __init__(self, trees: TokenTree, live: Tensor) -> None:
        self.trees = trees
        self.rows = torch.arange(trees.rows, device=trees.tokens.device)
        self.node = torch.zeros_like(self.rows)
        self.open = live
        self.path: list[Tensor] = []

    def sites(
        self, nodes: Tensor | None = None, ranks: Tensor | int = 0, live: Tensor | None = None
    ) -> Sites:
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
        """(B,) the first child in sampling order that carries `token`, 0 where there is none. Later
        copies are dead."""
        here = (self.trees.parents == self.node[:, None]) & (self.trees.tokens == token[:, None])
        return here.int().argmax(1) * here.any(1)

    def token(self, node: Tensor) -> Tensor:
        return self.trees.tokens[self.rows, node]

    def step(self, node: Tensor, taken: Tensor) -> None:
        """Rows in `taken` descend to `node`, the others stop."""
        self.path.append(torch.where(taken, node, -1))
        self.node = torch.where(taken, node, self.node)
        self.open = taken

    def verdict(self, bonus: Tensor, **counts: Tensor) -> Verdict:
        path = torch.stack(self.path, 1) if self.path else self.rows.new_empty(len(self.rows), 0)
        return Verdict(path, (path >= 0).sum(1), bonus, counts)


class Judged(NamedTuple):
    """A rule's decision about the children of each row's current node."""

    child: Tensor  # (B,) the accepted child, 0: none
    left: Tensor  # (B, V) the law of the extra token where none is accepted; p at a leaf
    empty: Tensor  # (B,) how often nothing was left of a law but rounding


Judge = Callable[[Walk, Tensor, Tensor | None, Draws], Judged]


def descend(
    trees: TokenTree, laws: Laws, chance: Draws, judge: Judge, matching: bool = False
) -> Verdict:
    """From the root down, `judge(walk, p, q, chance)` accepts one child of each row's node or none;
    with none the target adds a token and the row stops. p (B, V) is the target's law there, q (B,
    V) the drafter's, None for DET.

    matching: the target's token may be a child that was never tested, which is then accepted.
    """
    walk = Walk(trees, laws.state.live)
    nobody = torch.zeros_like(walk.node)
    bonus, zero_residuals = nobody, nobody
    draws = chance.places(everywhere(trees, laws.state), "bonus")
    for level in range(trees.depth + 1):
        p = laws.at(walk.node)
        judged = Judged(nobody, p, nobody)
        if level < trees.depth:
            q = None if trees.q is None else trees.q[walk.rows, walk.node]
            judged = judge(walk, p, q, chance)
        child, left, empty = judged
        ending = walk.open & (child == 0)
        here = walk.rows * trees.num_nodes + walk.node
        token = draws.categorical(here, left, ending)
        bonus, zero_residuals = torch.where(ending, token, bonus), zero_residuals + empty
        if level < trees.depth:
            if matching:
                child = torch.where(ending, walk.find(token), child)
            walk.step(child, walk.open & (child > 0))
    return walk.verdict(bonus, zero_residuals=zero_residuals)


# ----------------------------------------------------------------------------- token matching


# Laws of all nodes are drawn from at once up to so many numbers. On a CPU numbers cost more than
# calls; on an accelerator it is the other way round.
AT_ONCE = {"cpu": 1 << 16}
AT_ONCE_ELSEWHERE = 1 << 21


def matched(trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
    """Draw the target's token at a node, descend to the child that carries it, and so on; the first
    token without a child is the bonus.

    If a draw depends on its place alone, all nodes draw at once, because unused draws change
    nothing. While outcomes are enumerated, or if the laws of all nodes would be large, a node draws
    only when it is reached. The tokens are the same.
    """
    rows, nodes = trees.tokens.shape
    most = AT_ONCE.get(trees.tokens.device.type, AT_ONCE_ELSEWHERE)
    draws = chance.places(everywhere(trees, laws.state), "target")
    if chance.by_place and rows * nodes * laws.vocabulary <= most:
        choice = draws.categorical(slice(None), laws.everywhere.flatten(0, 1), None)
        return followed(trees, choice.view(rows, nodes), laws.state)
    walk = Walk(trees, laws.state.live)
    bonus = torch.zeros_like(walk.node)
    for level in range(trees.depth + 1):
        here = walk.rows * nodes + walk.node
        token = draws.categorical(here, laws.at(walk.node), walk.open)
        bonus = torch.where(walk.open, token, bonus)
        if level < trees.depth:
            child = walk.find(token)
            walk.step(child, walk.open & (child > 0))
    return walk.verdict(bonus)


def everywhere(trees: TokenTree, state: State) -> Sites:
    """One draw at every node, row by row."""
    rows, numbers, zeros = _grid(*trees.tokens.shape, trees.tokens.device)
    live = trees.used if state.all_live else state.live[:, None] & trees.used
    return Sites(rows, numbers, zeros, trees.depths.flatten(), live.flatten())


@lru_cache(64)
def _grid(rows: int, nodes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, nodes and ranks of `everywhere`."""
    index = torch.arange(rows * nodes, device=device)
    return index // nodes, index % nodes, torch.zeros_like(index)


def followed(trees: TokenTree, choice: Tensor, state: State) -> Verdict:
    """The path of children that carry the target's choice (B, N) at their parent. If two siblings
    carry the same token, the first counts, and nothing below the second can be reached."""
    if trees.num_nodes == 1:
        return Verdict(choice[:, 1:], torch.zeros_like(choice[:, 0]), choice[:, 0])
    live, rows = state.live, torch.arange(trees.rows, device=choice.device)
    above = trees.parents.clamp(min=0)
    fits = (trees.tokens == choice.gather(1, above)) & (trees.parents >= 0)
    if trees.is_chain:  # a chain's nodes are in order: count until the first that does not fit
        accepted = fits[:, 1:].long().cumprod(1).sum(1) * live
        numbers = torch.arange(1, trees.num_nodes, device=choice.device)
        path = torch.where(numbers <= accepted[:, None], numbers, -1)
        return Verdict(path, accepted, choice[rows, accepted])
    if trees.width > 1:
        twins = (trees.parents[:, :, None] == trees.parents[:, None]) & (
            trees.tokens[:, :, None] == trees.tokens[:, None]
        )
        fits = fits & ~twins.tril(-1).any(2)
    fits[:, 0] = True
    reached = ~(trees.ancestors & ~fits[:, None]).any(2) & live[:, None]
    leaf = (trees.depths * reached).argmax(1)
    return verdict_at(trees, leaf, choice[rows, leaf])


def bonus_alone(trees: TokenTree, laws: Laws, chance: Draws, **counts: Tensor) -> Verdict:
    """What a rule says of empty trees: nothing is accepted, and the bonus token has the root's law.
    A plain round costs no more than that."""
    rows, nothing = laws.rows, torch.zeros_like(laws.rows)
    at = Sites(rows, nothing, nothing, nothing, laws.state.live)
    bonus = chance.categorical(laws[rows, nothing], at, "bonus")
    return Verdict(trees.tokens[:, :0], nothing, bonus, counts)


def verdict_at(trees: TokenTree, node: Tensor, bonus: Tensor, **counts: Tensor) -> Verdict:
    """The verdict that accepts the path to `node` (B,), for rules that do not walk from the
    root."""
    rows = torch.arange(trees.rows, device=node.device)
    numbers = torch.arange(trees.num_nodes, device=node.device)
    on_path = trees.ancestors[rows, node] & (numbers > 0)
    ordered = torch.where(on_path, numbers, trees.num_nodes).sort(1).values[:, : trees.depth]
    path = torch.where(ordered < trees.num_nodes, ordered, -1)
    return Verdict(path, (path >= 0).sum(1), bonus, counts)


# ------------------------------------------------------------------------------------ residuals


NOTHING = 1e-12  # a residual below this share of its mass exists by rounding only


def residual(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """norm((p - q)+) for p (n, V) and q (n, V), and where nothing was left (n,): there p itself,
    reached only by rounding."""
    left = (p - q).clamp_(min=0)
    mass = left.sum(-1, keepdim=True)
    empty = mass <= NOTHING * p.sum(-1, keepdim=True)
    return torch.where(empty, p, left / mass.clamp(min=torch.finfo(p.dtype).tiny)), empty[:, 0]


def one_hot(token: Tensor, like: Tensor) -> Tensor:
    """(n, V) laws that are certain of `token` (n,): what a DET sibling was drawn from."""
    return torch.zeros_like(like).scatter_(1, token[:, None], 1.0)


def drawn_out(q: Tensor, token: Tensor) -> Tensor:
    """q (n, V) after `token` (n,) has been drawn and is not put back; 0 once nothing is left."""
    left = q.scatter(1, token[:, None], 0.0)
    return left / left.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)


def ratio(p: Tensor, q: Tensor, token: Tensor) -> Tensor:
    """(n,) p(x) / q(x) at `token`; 0 where q(x) = 0, which content checks report."""
    above, below = (law.gather(1, token[:, None])[:, 0] for law in (p, q))
    return torch.where(below > 0, above / below, 0.0)
