"""The one read of the device in a round: the verdict, the tokens it accepts, and every fault that only values can show."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specdec.interfaces import State, Verdict
from specdec.sampling import Laws
from specdec.tree import TokenTree


class Reading:
    """A round's outcome on the host.

    verdict      the same, on the host
    tokens       per row: accepted tokens and the bonus
    keep         (B,) what the cache keeps behind the root; -1 for rows that were over before the round
    parents      (B, N) numpy; live (B,) numpy bool; counts: the verifier's diagnostics, numpy
    tree_faults  per row: what is wrong with the tree, or ""
    faulty       per row: whether a law that was used is no law
    """

    def __init__(self, verdict: Verdict, trees: TokenTree, laws: Laws, state: State) -> None:
        path, rows = verdict.path, trees.rows
        too_deep = ((trees.depths >= state.room[:, None]) & trees.used).any(1)
        pieces = [
            path,
            trees.tokens.gather(1, path.clamp(min=0)),
            torch.stack([verdict.num_accepted, verdict.bonus, laws.faulty, too_deep.long()], 1),
            trees.content_faults(laws.vocabulary).long(),
            trees.parents,
        ]
        on_device = trees.tokens.device.type != "cpu"
        if on_device:  # on a CPU the tree was checked when it was made
            pieces.append(trees.structure_faults.long())
        read = torch.cat(pieces, 1).cpu().split([piece.shape[1] for piece in pieces], 1)
        path, tokens, numbers, content, parents = read[:5]
        accepted, bonus, faulty, deep = numbers.unbind(1)
        self.verdict = replace(verdict, path=path, num_accepted=accepted, bonus=bonus)
        self.tokens = [
            [*row[:count], extra]
            for row, count, extra in zip(tokens.tolist(), accepted.tolist(), bonus.tolist(), strict=True)
        ]
        self.live = np.array(state.on_host.live)
        self.keep = torch.where(torch.tensor(state.on_host.live), accepted, -1)
        self.parents = parents.numpy()
        self.counts = {name: count.cpu().numpy() for name, count in verdict.counts.items()}
        self.faulty = faulty.tolist()
        self.tree_faults = self._faults(content, read[5] if on_device else None, deep, rows)

    @staticmethod
    def _faults(content: Tensor, structure: Tensor | None, deep: Tensor, rows: int) -> list[str]:
        if not (content.any() or deep.any() or (structure is not None and structure.any())):
            return [""] * rows
        found = []
        for row in range(rows):
            parts = TokenTree.describe(content[row : row + 1])
            parts += TokenTree.describe(structure[row : row + 1]) if structure is not None else []
            parts += ["it is deeper than room - 1, past the wanted length"] if deep[row] else []
            found.append("; ".join(filter(None, parts)))
        return found
