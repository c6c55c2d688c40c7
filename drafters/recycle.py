"""Token recycling: after each token, the best next tokens that the target saw there last.

Luo et al. 2408.08696. No model, no training. A matrix M (V, k) holds those tokens; a draft is a
static tree of ranks, filled by one gather per level: the child of rank r of a node with token t is
M[t, r]. After every pass the rows of all its nodes are written, accepted or not; those of the
accepted path are written last. The prompt's own pass writes too. A token that was never scored has
no row, and nothing is drafted below it.

These are many steps over few numbers. On a CPU they go through numpy, where a step takes a fraction
of the time: `native` is the same memory as an array, and the arithmetic is written the same.

Letters: B rows, N nodes, V vocabulary, k ranks, T tokens of prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec import Drafter, LanguageModel, Sampling, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.rank_tree import RankTree
from specdec.errors import integer
from specdec.models.vocabulary import tokenizer_digest
from specdec.tree import MOST_NODES, Structure

Array = Any  # a numpy array on a CPU, else a tensor
NONE, MEMORY = "none", "memory"
# how often the token of each rank came next, on the demo target; much the same at every depth
ACCURACY = (0.45, 0.14, 0.07, 0.045, 0.035, 0.025, 0.02, 0.018)
DEEPEST = 12  # of trees by `nodes`


class Recycle(Drafter):
    """Siblings are DET: nothing is drawn.

    nodes  size of the tree, built greedily from how often each rank is right, the root not counted
    tree   a list of rank paths instead, e.g. [[0], [1], [0, 0]]
    store  none: each request has its own matrix, empty at first | memory: all requests also share
           a matrix, for tokens that are missing in a request's own
    """

    law = SiblingLaw.DET
    variants = ({"nodes": 3}, {"tree": [[0], [0, 0]]}, {"nodes": 2, "store": "memory"})

    def __init__(
        self, nodes: int = 16, tree: Sequence[Sequence[int]] | None = None, store: str = NONE
    ) -> None:
        integer("nodes", nodes, 1, MOST_NODES)
        if store not in (NONE, MEMORY):
            raise ValueError(f"store must be none or memory, got {store!r}")
        self.tree = RankTree.given(tree) if tree is not None else _by_accuracy(nodes)
        self.chain = self.tree.is_chain
        self.max_nodes = integer("nodes of the tree", self.tree.nodes, 1, MOST_NODES) + 1
        self.best_tokens = max(self.tree.ranks) + 1
        self.learns = store == MEMORY
        self._kept = Kept()

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        shape = self.tree.within(target.vocabulary)
        self._plan = Plan(shape, target.device)
        self._vocabulary = target.vocabulary
        ranks = min(self.best_tokens, target.vocabulary)
        self._own = empty_matrix(rows, target, ranks)
        self._shared = self._kept.matrix_for(target, ranks) if self.learns else None
        # the row of each seat's token 0
        self._first = native(torch.arange(rows, device=target.device)[:, None] * target.vocabulary)
        self._alive = [False] * rows  # in the round that is under way

    def enter(self, rows: Sequence[int], state: State) -> None:
        for row in rows:
            self._own[row * self._vocabulary : (row + 1) * self._vocabulary] = -1
            self._alive[row] = True
        best = state.last.best
        if best is None:
            return
        chosen = torch.tensor(list(rows), device=best.device)
        tokens = state.tokens[chosen, : best.shape[1]]
        read = torch.arange(best.shape[1], device=best.device) < state.lengths[chosen, None] - 1
        late = native(torch.zeros_like(read))
        self._write(self._first[list(rows)], tokens, best, native(read), late)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        if state.deepest < 1:
            return TokenTree.root(state.roots)
        plan, rows, device = self._plan, state.rows, state.device
        tokens = torch.zeros(rows, len(plan.frame), dtype=torch.long, device=device)
        known = torch.zeros(rows, len(plan.frame), dtype=torch.bool, device=device)
        self._fill(state, native(tokens), native(known))
        if state.shallowest < plan.depth:
            known &= plan.depths < state.room[:, None]
        # With all of its nodes a structure repeats; only the device knows that of its own.
        full = device.type == "cpu" and bool(native(known).all())
        structure = Structure.shared(plan.frame, rows, device, None if full else known)
        return TokenTree(tokens, structure)

    def _fill(self, state: State, tokens: Array, known: Array) -> None:
        """Level by level, tokens (B, N) and whether they are known."""
        tokens[:, 0], known[:, 0] = native(state.roots), native(state.live)
        own, first = native(self._own), self._first
        for nodes, above, ranks in self._plan.levels:
            parents = tokens[:, above]
            drafted = own[first + parents, ranks]
            if self._shared is not None:
                earlier = native(self._shared)[parents, ranks]
                drafted = drafted + (earlier + 1) * (drafted < 0)  # unknown is -1
            known[:, nodes] = known[:, above] & (drafted >= 0)
            tokens[:, nodes] = drafted.clip(min=0)

    def observe(self, state: State) -> None:
        last, alive = state.last, self._alive
        self._alive = list(state.on_host.live)
        if last.best is None or last.trees is None or last.verdict is None:
            return
        trees, device = last.trees, last.best.device
        path = last.verdict.path
        on_path = np.zeros((trees.rows, trees.num_nodes), dtype=bool)
        on_path[:, 0] = True
        rows, steps = np.nonzero(path > 0)
        on_path[rows, path[rows, steps]] = True
        scored = native(trees.used) & placed(np.array(alive)[:, None], device)
        self._write(self._first, trees.tokens, last.best, scored, placed(on_path, device))

    def forget(self) -> None:
        self._kept.matrix = None

    def settings_in_effect(self) -> dict[str, Any]:
        return {"nodes": self.tree.nodes, "tree": [list(path) for path in self.tree.paths]}

    def _write(
        self, first: Array, tokens: Tensor, best: Tensor, scored: Array, late: Array
    ) -> None:
        """Write best (b, n, k) after tokens (b, n), where they were `scored`; the `late` ones after
        all others. first (b, 1): where the rows' own matrices begin."""
        given = native(best), scored, late
        write(native(self._own), first + native(tokens), *given)
        if self._shared is not None:
            write(native(self._shared), native(tokens), *given)


def native(tensor: Tensor) -> Array:
    """The same memory as an array, on a CPU."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def placed(values: np.ndarray, device: torch.device) -> Array:
    """The array itself for a CPU, else a tensor on the device."""
    return values if device.type == "cpu" else torch.from_numpy(values).to(device)


def write(matrix: Array, where: Array, best: Array, scored: Array, late: Array) -> None:
    """Rows `where` (b, n) of the matrix become best (b, n, k). If several go to the same row, the
    last in order wins. On a device, discarded entries go to the matrix's last row."""
    values = best.reshape(-1, best.shape[-1])
    if isinstance(matrix, np.ndarray):
        order = np.concatenate([np.flatnonzero(scored & ~late), np.flatnonzero(scored & late)])
        matrix[where.reshape(-1)[order]] = values[order]  # of equal places the last one stays
        return
    nowhere, count = len(matrix) - 1, where.numel()
    places = torch.where(scored, where, nowhere).flatten()
    order = torch.arange(count, device=where.device) + count * late.flatten()
    # One write has no defined order for equal places: sort, and keep the last of each.
    keys = (places * (2 * count) + order).sort().values
    places, order = keys // (2 * count), keys % count
    again = torch.zeros_like(places, dtype=torch.bool)
    again[:-1] = places[1:] == places[:-1]
    matrix[torch.where(again, nowhere, places)] = values[order].to(matrix.dtype)


class Kept:
    """What outlives a run: the matrix of `store: memory`, and whose tokens it holds."""

    def __init__(self) -> None:
        self.matrix: Tensor | None = None
        self.tokenizer: str | None = None

    def matrix_for(self, target: LanguageModel, ranks: int) -> Tensor:
        """The matrix that has been kept, or an empty one. Raises ValueError for one of another
        tokenizer."""
        empty = empty_matrix(1, target, ranks)
        digest = tokenizer_digest(target)
        kept = self.matrix
        if kept is not None and (kept.shape != empty.shape or digest != self.tokenizer):
            raise ValueError(
                f"this recycle drafter has learnt the tokens of another tokenizer than that of the "
                f"target {target.name}; call forget(), or make another drafter"
            )
        if kept is None or kept.device != empty.device:
            self.matrix, self.tokenizer = empty if kept is None else kept.to(empty.device), digest
        assert self.matrix is not None
        return self.matrix


def empty_matrix(rows: int, target: LanguageModel, ranks: int) -> Tensor:
    """(rows x V + 1, k) of unknown tokens, -1. Discarded entries go to the last row."""
    size = (rows * target.vocabulary + 1, ranks)
    return torch.full(size, -1, dtype=torch.int32, device=target.device)


class Plan:
    """The tree on the device, level by level."""

    def __init__(self, shape: RankTree, device: torch.device) -> None:
        self.frame, self.depth = (-1, *shape.parents), shape.depth
        self.depths = torch.tensor([0, *shape.depths], device=device)
        # of each level: its nodes, which are neighbours, their parents, and their ranks
        self.levels: list[tuple[slice, Array, Array]] = []
        first = 0
        for depth in range(1, shape.depth + 1):
            end = first + shape.depths.count(depth)
            above, ranks = (
                native(torch.tensor(each[first:end], device=device))
                for each in (shape.parents, shape.ranks)
            )
            self.levels.append((slice(first + 1, end + 1), above, ranks))
            first = end


def _by_accuracy(nodes: int) -> RankTree:
    return RankTree.greedy([ACCURACY] * DEEPEST, nodes)
