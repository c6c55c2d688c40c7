"""Cells: a partition of all continuations of a prompt into few enough that each can be counted.

A continuation that is likely has a cell of its own. The rest share cells: at every likely prefix,
all next tokens that would make it unlikely are one cell. With `least` = 0.15:

    ()--- a 0.6 --- aa 0.4          a cell
     |        |---- ab, ac 0.2      one cell, "a and another token"
     |--- b 0.3 --- ba 0.3          a cell
     |        |---- bb, bc 0        one cell that no sample may be in
     '--- c 0.1                     one cell, "another token"

So the counts test the law of a sampler with any vocabulary, and nothing of the sampler is cut off.

Letters: V vocabulary, n prefixes, K cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from experiments.certificates.sampled import next_laws
from specdec.sampling import Sampling

OTHERS = -1  # in place of a last token: all that have no cell of their own
ROWS = 16  # of a forward pass

Continuation = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells and the target's law on them."""

    numbers: dict[Continuation, int]  # of a continuation, or of a prefix and OTHERS
    law: np.ndarray  # (K,)

    def cell(self, tokens: Sequence[int]) -> int:
        """The number of the cell that a continuation is in."""
        for length in range(1, len(tokens) + 1):
            head = tuple(tokens[:length])
            if head in self.numbers:  # as long as any, or ended
                return self.numbers[head]
            if (*head, OTHERS) not in self.numbers:  # not followed
                return self.numbers[(*head[:-1], OTHERS)]
        raise AssertionError(f"{list(tokens)} is the beginning of several cells")


@torch.inference_mode()
def cells_of(
    model: PreTrainedModel,
    prompt: Sequence[int],
    tokens: int,
    sampling: Sampling,
    ends: frozenset[int],
    least: float,
) -> Cells:
    """The cells of all continuations of `tokens` tokens, fewer where one of `ends` comes before.

    A prefix of at least the probability `least` is followed. The laws come from plain passes of the
    stock model in the dtype that it has: no cache, no mask, no tree.
    """
    numbers: dict[Continuation, int] = {}
    law: list[float] = []

    def add(continuation: Continuation, probability: float) -> None:
        numbers[continuation] = len(law)
        law.append(probability)

    likely: dict[Continuation, float] = {(): 1.0}
    for length in range(1, tokens + 1):
        prefixes = list(likely)
        ids = torch.tensor([[*prompt, *prefix] for prefix in prefixes], device=model.device)
        followed: dict[Continuation, float] = {}
        for start in range(0, len(ids), ROWS):
            laws = next_laws(model, ids[start : start + ROWS], sampling).double().cpu().numpy()
            for prefix, row in zip(prefixes[start : start + ROWS], laws, strict=True):
                own = likely[prefix] * row >= least
                for token in np.flatnonzero(own).tolist():
                    continuation, probability = (*prefix, token), likely[prefix] * row[token]
                    if length == tokens or token in ends:
                        add(continuation, float(probability))
                    else:
                        followed[continuation] = float(probability)
                add((*prefix, OTHERS), float(likely[prefix] * row[~own].sum()))
        likely = followed
        if not likely:
            break
    return Cells(numbers, np.array(law))
