"""Some of a memory's tokens, copied together, so that a pass reads no more than those.

The order of stored tokens means nothing to attention: each key carries its position. So an excerpt
of C chosen and R recent tokens has the chosen ones in slots 0 to C - 1, and the token at position p
in slot C + p mod R, in the place of the one that is R tokens older. A round copies only what it
committed. The nodes of a tree come behind. A text of up to C + R tokens is stored whole, in order.

Letters: B rows, b rows of one call, n tokens of one pass, T tokens in memory, H heads, V
vocabulary, C chosen tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.models.attention import noted_weights
from specdec.models.memory import Memory, as_it_is, each_of
from specdec.models.session import Runnable, TransformersSession
from specdec.tree import TokenTree


class MemoryExcerpt(Memory):
    """`specdec.interfaces.Excerpt`. noting: the model with an attention that notes its weights,
    if it can have one. Layers with a window also see tokens that are past it, if they were
    chosen."""

    def __init__(
        self,
        model: Runnable,
        noting: PreTrainedModel | None,
        rows: int,
        chosen: int,
        recent: int,
        nodes: int,
    ) -> None:
        kinds = [kind._replace(size=None) for kind in model.layout.kinds]
        layout = replace(model.layout, kinds=kinds)
        super().__init__(layout, rows, chosen + recent + nodes, model.dtype, model.device)
        self.model, self.noting = model, noting
        self.chosen, self.recent = chosen, recent
        self._positions_of_roots = [0] * rows
        self._has_chosen = [False] * rows

    @property
    def budget(self) -> int:
        return self.chosen + self.recent

    def score(self, memory: TransformersSession, tree: TokenTree, start: int = 0) -> Tensor:
        if start == 0:
            self._follow(memory.memory)
        over = self.scoring(tree, start)
        runner = as_it_is(self.model.runner)
        logits: Tensor = self.run(runner, over, input_ids=tree.tokens[:, start:]).logits
        return logits

    def weights(self, memory: TransformersSession, tokens: Tensor) -> list[Tensor]:
        assert self.noting is not None, "the drafter has asked `shows_weights`"
        over = memory.memory.again(tokens.shape[1])
        with noted_weights() as noted:
            memory.run_part(self.noting, over, input_ids=tokens)
        # Latent attention keeps fewer heads than it attends with.
        shapes = self.layout.shapes
        return [
            weights.unflatten(1, (shape.heads, -1)).sum(2)
            for weights, shape in zip(noted, shapes, strict=True)
        ]

    def choose(
        self, memory: TransformersSession, rows: Sequence[int], positions: Sequence[Tensor]
    ) -> None:
        count = positions[0].shape[2]
        row = torch.tensor(rows, device=self.device).repeat_interleave(count)
        slots = torch.arange(count, device=self.device).repeat(len(rows))
        of_blocks = [
            torch.stack(
                [positions[layer % len(positions)].transpose(0, 1).flatten(1) for layer in members]
            )
            for members in self._members
        ]
        self._copy(memory.memory, row, of_blocks, slots)
        for each in rows:
            self._has_chosen[each] = True
            # All of its last tokens are copied again, into the slots of a longer text.
            self._positions_of_roots[each] = memory.memory.roots[each] - self.recent

    def release(self, rows: Sequence[int]) -> None:
        super().release(rows)
        for row in rows:
            self._positions_of_roots[row], self._has_chosen[row] = 0, False

    def _positions(self, first: list[int], depths: Tensor) -> Tensor:
        """Those in the text."""
        return super()._positions(self._positions_of_roots, depths)

    def _follow(self, source: Memory) -> None:
        """Copy what was committed since."""
        rows: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for row, root in enumerate(source.roots):
            copied = self._positions_of_roots[row]
            if self._has_chosen[row]:
                new = range(max(copied, root - self.recent), root)
                slots += [self.chosen + position % self.recent for position in new]
            elif root <= self.budget:
                new = range(copied, root)
                slots += new
            else:  # a row that has ended: nothing was chosen for it
                continue
            rows += [row] * len(new)
            positions += new
            self._positions_of_roots[row] = root
            self.lengths[row] = self.roots[row] = min(root, self.budget)
        if rows:
            row, position, slot = torch.tensor([rows, positions, slots], device=self.device)
            self._copy(source, row, [position] * len(self.blocks), slot)

    def _copy(
        self, source: Memory, rows: Tensor, positions: Sequence[Tensor], slots: Tensor
    ) -> None:
        stored = source.stored(rows, positions)
        for block, values in zip(self.blocks, stored, strict=True):
            block[each_of(block, rows, slots)] = values
