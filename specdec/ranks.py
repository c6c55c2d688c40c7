"""Several processes (ranks) that hold one model between them, a part of every layer each: tensor
parallel.

Every rank runs the whole loop. The model's passes exchange numbers, so all ranks must run the same
passes, and decide alike. Chance is keyed, and so the same everywhere. What a round has decided is
taken from rank 0, since logits may differ in their last bits. What depends on a rank's own clock is
refused by name.
"""

import torch.distributed
from torch import Tensor

from specdec.errors import Refused
from specdec.interfaces import LanguageModel, ShardedModel


def ranks_of(target: LanguageModel) -> int:
    """How many processes hold the target; 1: this one does."""
    return target.ranks if isinstance(target, ShardedModel) else 1


def agreed(found: Tensor) -> Tensor:
    """What rank 0 has found. `found` is overwritten."""
    torch.distributed.broadcast(found, src=0)
    return found


def check_same_trees(mine: Tensor, firsts: Tensor) -> None:
    """Raises ValueError where this rank has scored other tokens than rank 0."""
    if not torch.equal(mine.cpu(), firsts):
        raise ValueError(
            f"rank {torch.distributed.get_rank()} has drafted other trees than rank 0, so their "
            "passes do not belong together; use a drafter whose drafts depend on nothing but the "
            "text, and the same hardware for all ranks"
        )


def refuse_own_clocks(target: LanguageModel, what: str) -> None:
    """Raises Refused where several ranks would decide by their own clocks."""
    if ranks_of(target) > 1:
        raise Refused(
            f"{what} decides by the clock, and the {ranks_of(target)} ranks that hold "
            f"{target.name} have one each: they would part. Give costs=FILE, or leave it out"
        )
