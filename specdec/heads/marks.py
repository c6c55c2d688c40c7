"""The mark of a target: a few numbers by which a head recognises the model it was trained for.

Sizes alone do not distinguish two models of a family, and the drafts of a head for another target
are never accepted.
"""

from typing import TypedDict

import torch
from torch import Tensor

from specdec.interfaces import LendsHead
from specdec.models.vocabulary import tokenizer_digest

ROWS, COLUMNS = 8, 4  # of the embedding


class Mark(TypedDict):
    hidden_size: int
    vocabulary: int
    tokenizer: str | None  # digest of its vocabulary; None for a target without a tokenizer
    embedding: list[list[float]]  # some of its numbers


def mark_of(target: LendsHead) -> Mark:
    """Of the target that a head is trained for, to be saved with the head (`notes`)."""
    numbers = [[round(value, 6) for value in row] for row in _sample(target).tolist()]
    sizes = target.hidden_size, target.vocabulary
    return Mark(
        hidden_size=sizes[0],
        vocabulary=sizes[1],
        tokenizer=tokenizer_digest(target),
        embedding=numbers,
    )


def check_mark(mark: Mark, target: LendsHead, head: str) -> None:
    """Raise ValueError where a head's mark is another target's. The types of weights do not
    matter."""
    digest = tokenizer_digest(target)
    if mark.get("tokenizer") and digest and mark["tokenizer"] != digest:
        raise ValueError(
            f"{head} was trained for a target with another tokenizer (digest {mark['tokenizer']}, "
            f"the target's is {digest}); load the target that it was trained for, or train one for "
            "this"
        )
    ours, theirs = torch.tensor(mark["embedding"]), _sample(target)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0.02, atol=1e-4):
        raise ValueError(
            f"{head} was trained for another target: the embedding of {target.name} is not the one "
            "that it remembers. Load the target that it was trained for, or train a head for this "
            "one with python -m experiments.train"
        )


@torch.inference_mode()
def _sample(target: LendsHead) -> Tensor:
    """(ROWS, COLUMNS) numbers of the embedding, evenly spread over tokens."""
    ids = torch.linspace(0, target.vocabulary - 1, min(ROWS, target.vocabulary)).long()
    return target.embed(ids.to(target.device))[:, :COLUMNS].float().cpu()
