"""How far a lossy rule deviates from the target's law, measured at the nodes that it decides on.

Letters: B rows, V vocabulary.
"""

import torch
from torch import Tensor


class Deviation:
    """Sums, per row, of the total variation and the KL divergence (nats) between what a rule emits
    and p."""

    def __init__(self, rows: Tensor) -> None:
        self._tv = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        self._kl, self._judged = self._tv.clone(), self._tv.clone()

    def add(self, emitted: Tensor, p: Tensor, judged: Tensor) -> None:
        """emitted, p (B, V): the laws at the current node of each row in `judged` (B,). KL is
        infinite if the rule emits a token that p excludes."""
        emitted, p = emitted.double(), p.double()
        tv = (emitted - p).abs().sum(-1) / 2
        kl = torch.where(emitted > 0, emitted * (emitted / p).log(), 0.0).sum(-1)
        self.note(torch.where(judged, tv, 0.0), torch.where(judged, kl, 0.0), judged)

    def note(self, tv: Tensor, kl: Tensor, judged: Tensor) -> None:
        """Add what a rule knows in closed form: sums over `judged` (B,) nodes per row."""
        self._tv += tv
        self._kl += kl
        self._judged += judged

    @property
    def counts(self) -> dict[str, Tensor]:
        return {"tv": self._tv, "kl": self._kl, "nodes_judged": self._judged}
