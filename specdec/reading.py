"""The one read of the device in a round: the verdict, the tokens it accepts, and every fault that only values can show."""

from dataclasses import replace

import numpy as np
import torch

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
        numbers = torch.stack([verdict.num_accepted, verdict.bonus, laws.faulty], 1)
        pieces = [numbers, verdict.path, trees.tokens, trees.parents, trees.depths]
        if trees.q is not None:
            pieces.append(trees.q_faults())
        read = torch.cat(pieces, 1).cpu()  # the one read
        numbers, path, tokens, parents, depths, *q_faults = read.split([piece.shape[1] for piece in pieces], 1)
        accepted, bonus = numbers[:, 0], numbers[:, 1]
        self.verdict = replace(verdict, path=path, num_accepted=accepted, bonus=bonus)
        self.tokens = [
            [*(drafted[node] for node in nodes[:count]), extra]
            for drafted, nodes, count, extra in zip(
                tokens.tolist(), path.tolist(), accepted.tolist(), bonus.tolist(), strict=True
            )
        ]
        self.live = np.array(state.on_host.live)
        self.keep = torch.where(torch.from_numpy(self.live), accepted, -1)
        self.parents = parents.numpy()
        self.counts = {name: count.cpu().numpy() for name, count in verdict.counts.items()}
        self.faulty = numbers[:, 2].tolist()
        self.tree_faults = [""] * trees.rows
        on_device = trees.tokens.device.type != "cpu"
        if on_device:  # on a CPU the tree was checked when it was made
            shape = TokenTree.structure_faults(tokens.numpy(), self.parents, trees.law, trees.levels)
            self._note(shape, TokenTree.STRUCTURE)
        if q_faults:
            self._note(q_faults[0].numpy(), TokenTree.CONTENT)
        room, drafted = np.array(state.on_host.room)[:, None], self.parents >= 0
        unfit = [(drafted & (depths.numpy() >= room)).any(1), (drafted & (tokens.numpy() >= laws.vocabulary)).any(1)]
        self._note(
            np.stack(unfit, 1),
            ("it is deeper than room - 1, past the wanted length", "a token id lies outside the vocabulary"),
        )

    def _note(self, faults: np.ndarray, names: tuple[str, ...]) -> None:
        for row in np.flatnonzero(faults.any(1)) if faults.any() else ():
            known = [self.tree_faults[row]] if self.tree_faults[row] else []
            self.tree_faults[row] = "; ".join([*known, TokenTree.describe(faults[row], names)])
