"""Trees of several drafters in one run: the sibling law that all of them can be declared with.

A tree has one sibling law. Where all drafters draft chains, a token that was looked up counts as a
draw from the point mass on it, so the law is that of those that sample. Every other mixture
declares DET, which is safe for all trees.

Letters: B rows, N nodes, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from specdec.interfaces import Drafter
from specdec.tree import SiblingLaw

SAMPLED = (SiblingLaw.WOR, SiblingLaw.WR)


def common_law(drafters: Sequence[Drafter]) -> SiblingLaw:
    laws = {law for each in drafters for law in (each.law, *each.other_laws)}
    if len(laws) == 1:
        return laws.pop()
    sampled = laws - {SiblingLaw.DET}
    if all(each.chain for each in drafters) and len(sampled) == 1 and sampled <= set(SAMPLED):
        return sampled.pop()
    return SiblingLaw.DET


def point_masses(tokens: Tensor, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """(B, N, V): for chains of tokens (B, N), the law that gives the next node's token for sure."""
    return one_hot(tokens.roll(-1, 1), vocabulary).to(dtype)
