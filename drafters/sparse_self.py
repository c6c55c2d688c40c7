"""The target drafts for itself from a part of its memory: all its layers, a choice of its cached
tokens. No training, no second model.

MagicDec 2408.11049 (`streaming`, after 2309.17453), SnapKV 2404.14469, TriForce 2404.11912
(`chunks`). Keys keep their positions, so nothing is computed again: the chosen keys and values are
copied together, and a drafting pass reads those. This pays for long texts and many rows, where
reading the memory costs more than reading the weights.

Letters: B rows, b rows that choose, H heads, T tokens in memory, C chosen tokens.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from specdec import LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.shape import FEW_VARIANTS, STOPPED, Shape, ShapeArguments, TreeDrafter
from specdec.errors import integer
from specdec.interfaces import lends_memory
from specdec.probs import top

STREAMING, SNAPKV, CHUNKS = "streaming", "snapkv", "chunks"
SELECTS = (STREAMING, SNAPKV, CHUNKS)
FIRST = 4  # tokens at the beginning of a text that are always chosen: attention sinks
QUERIES = 32  # last tokens of a text whose attention chooses
NEIGHBOURS = 7  # tokens that share the largest weight among them (SnapKV's pooling)
CHUNK = 16  # tokens
REFRESH = 8  # rounds


class SparseSelf(TreeDrafter):
    """Drafts chains and trees (`specdec.drafting.shape.Shape`) with the target over at most
    `budget` tokens of its memory; a shorter text is read whole.

    select   streaming   the first 4 tokens and the last ones
             snapkv      for each KV head half of the budget by the attention of the text's last 32
                         tokens, and the last tokens; chosen once, at the end of the prompt
             chunks      likewise whole chunks of 16 tokens, chosen again every 8 rounds
    refresh  rounds after which snapkv and chunks choose again, which takes a pass over the whole
             memory; null: never for snapkv, 8 for chunks
    """

    variants = (
        {"budget": 3, "depth": 2},
        {"budget": 4, "select": "snapkv", "depth": 1},
        {"budget": 4, "select": "chunks", "refresh": 1, "depth": 1},
        *({"budget": 3, **shape} for shape in (*FEW_VARIANTS, *STOPPED)),
    )

    def __init__(
        self,
        select: str = STREAMING,
        budget: int = 256,
        refresh: int | None = None,
        **shape: Unpack[ShapeArguments],
    ) -> None:
        super().__init__(Shape.asked(shape, depth=3))
        if select not in SELECTS:
            raise ValueError(f"select must be {', '.join(SELECTS)}, got {select!r}")
        if refresh is not None and select == STREAMING:
            raise ValueError(
                f"refresh={refresh!r} is for select=snapkv and chunks; the last tokens, which "
                "streaming reads, follow the text by themselves"
            )
        self.select, self.budget = select, integer("budget", budget, 2)
        default = REFRESH if select == CHUNKS else None
        self.refresh = default if refresh is None else integer("refresh", refresh, 1)
        self.max_nodes = max(self.shape.slots, 0 if select == STREAMING else QUERIES)
        if select == STREAMING:
            self._chosen_count = min(FIRST, budget // 2)
        else:
            self.chunk = 1 if select == SNAPKV else min(CHUNK, budget // 2)
            self._chosen_count = budget // 2 // self.chunk * self.chunk

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        lender = lends_memory(target, "sparse_self")
        if self.select != STREAMING and not lender.shows_weights:
            raise ValueError(
                f"select={self.select} chooses tokens by attention, and the attention of "
                f"{target.name} cannot be watched; take select=streaming"
            )
        recent = self.budget - self._chosen_count
        self._excerpt = lender.excerpt(rows, self._chosen_count, recent, self.shape.slots)
        self.opened = (self._excerpt,)
        self._age: list[int | None] = [None] * rows  # rounds since a row's tokens were chosen

    def enter(self, rows: Sequence[int], state: State) -> None:
        self._excerpt.release(rows)
        for row in rows:
            self._age[row] = None

    def propose(self, state: State, chance: Draws) -> TokenTree:
        root = TokenTree.root(state.roots, self.law)
        if state.deepest < 1:
            return root
        self._choose(state)

        def score(tree: TokenTree, start: int) -> Tensor:
            return self._excerpt.score(state.memory, tree, start)

        return self.grow(score(root, 0), score, state, chance).tree

    def _choose(self, state: State) -> None:
        """For rows that have outgrown the excerpt, and where a choice has come of age."""
        host, due = state.on_host, []
        for row, length in enumerate(host.lengths):
            if host.live[row] and length - 1 > self.budget:  # the root is not in memory
                age = self._age[row]
                if age is None or age == self.refresh:
                    due.append(row)
                    age = 0
                self._age[row] = age + 1
        if due:
            self._excerpt.choose(state.memory, due, self._positions(state, due))

    def _positions(self, state: State, rows: list[int]) -> list[Tensor]:
        """(b, H, C) for each layer, or once."""
        device, stored = state.device, [length - 1 for length in state.on_host.lengths]
        if self.select == STREAMING:
            return [torch.arange(self._chosen_count, device=device).expand(len(rows), 1, -1)]
        last = torch.tensor(stored, device=device)[:, None] + torch.arange(
            -QUERIES, 0, device=device
        )
        weights = self._excerpt.weights(state.memory, state.tokens.gather(1, last.clamp(min=0)))
        recent = self.budget - self._chosen_count
        ends = torch.tensor([stored[row] - recent for row in rows], device=device)
        return [self._best(layer[rows], ends) for layer in weights]

    def _best(self, weights: Tensor, ends: Tensor) -> Tensor:
        """(b, H, C) of weights (b, H, T): tokens before `ends` (b,), in whole chunks."""
        rows, heads, length = weights.shape
        if self.select == SNAPKV:
            weights = F.max_pool1d(weights.float(), NEIGHBOURS, 1, NEIGHBOURS // 2)
        chunks = F.pad(weights.float(), (0, -length % self.chunk)).unflatten(2, (-1, self.chunk))
        after = self.chunk * torch.arange(1, chunks.shape[2] + 1, device=weights.device)
        scores = torch.where(after <= ends[:, None, None], chunks.sum(3), -1.0)
        count = self._chosen_count // self.chunk
        scores[:, :, : min(-(-FIRST // self.chunk), count // 2)] = torch.inf
        best = top(scores.flatten(0, 1), count).view(rows, heads, count, 1) * self.chunk
        return (best + torch.arange(self.chunk, device=best.device)).flatten(2)

    def settings_in_effect(self) -> dict[str, Any]:
        return {"refresh": self.refresh, **super().settings_in_effect()}
