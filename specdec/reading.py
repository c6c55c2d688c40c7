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
        device = trees.tokens.device
        pieces = [
            verdict.path,
            verdict.num_accepted,
            verdict.bonus,
            laws.faulty,
            trees.tokens,
            trees.parents,
            trees.depths,
        ]
        if trees.q is not None:
            pieces.append(trees.q_faults())
        path, accepted, bonus, faulty, tokens, parents, depths, *q_faults = read(pieces, device)
        self.verdict = (
            verdict if path is verdict.path else replace(verdict, path=path, num_accepted=accepted, bonus=bonus)
        )
        self.tokens = [
            [*(drafted[node] for node in nodes[:count]), extra]
            for drafted, nodes, count, extra in zip(
                tokens.tolist(), path.tolist(), accepted.tolist(), bonus.tolist(), strict=True
            )
        ]
        self.live = np.array(state.on_host.live)
        counts = zip(accepted.tolist(), state.on_host.live, strict=True)
        self.keep = torch.tensor([count if live else -1 for count, live in counts])
        self.parents = parents.numpy()
        self.counts = {name: count.cpu().numpy() for name, count in verdict.counts.items()}
        self.faulty = faulty.tolist()
        self.tree_faults = [""] * trees.rows
        if device.type != "cpu":  # on a CPU the tree was checked when it was made
            shape = TokenTree.structure_faults(tokens.numpy(), self.parents, trees.law, trees.levels)
            self._note(shape, TokenTree.STRUCTURE)
        if q_faults:
            self._note(q_faults[0].numpy(), TokenTree.CONTENT)
        drafted = self.parents >= 0
        deep = drafted & (depths.numpy() >= np.array(state.on_host.room)[:, None])
        outside = drafted & (tokens.numpy() >= laws.vocabulary)
        if deep.any() or outside.any():
            self._note(np.stack([deep.any(1), outside.any(1)], 1), UNFIT)

    def _note(self, faults: np.ndarray, names: tuple[str, ...]) -> None:
        for row in np.flatnonzero(faults.any(1)) if faults.any() else ():
            known = [self.tree_faults[row]] if self.tree_faults[row] else []
            self.tree_faults[row] = "; ".join([*known, TokenTree.describe(faults[row], names)])


UNFIT = ("it is deeper than room - 1, past the wanted length", "a token id lies outside the vocabulary")


def read(pieces: list[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors (B,) or (B, n) on the host, from an accelerator in one copy."""
    if device.type == "cpu":
        return pieces
    columns = [piece.to(device).reshape(len(piece), -1).long() for piece in pieces]
    parts = torch.cat(columns, 1).cpu().split([column.shape[1] for column in columns], 1)
    return [part.reshape(piece.shape) for part, piece in zip(parts, pieces, strict=True)]
