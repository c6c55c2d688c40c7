"""DFlash: a block of masks behind the root becomes a block of laws in one pass (2602.06036).

The laws are marginal: that at depth d does not know which tokens were drafted before it. Chains,
ranked trees (best-first on products of marginals: DDTree, 2604.12989), static ones, and trees whose
siblings are sampled from these laws are all grown from one pass. Tokens are sampled at the run's
temperature from the recorded law.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from specdec.drafting.shape import HeadShapeArguments
from specdec.heads import block_files
from specdec.heads.block import BlockHead
from specdec.heads.block_drafter import BlockDrafter
from specdec.heads.files import Published
from specdec.interfaces import LendsHead, Tap


class DFlashHead(BlockHead):
    """`specdec.heads.block.BlockHead`, whose root only starts the block."""

    kind = "dflash"
    from_anchor_default = False

    @classmethod
    def for_target(
        cls,
        target: LendsHead,
        layers: int = 2,
        block: int = 7,
        taps: Sequence[Tap] | None = None,
        mask_token: int | None = None,
        anchors: int = 32,
    ) -> "DFlashHead":
        """Untrained. anchors: blocks per window in training."""
        made = cls(**cls.arguments_for(target, layers, block, taps, mask_token))
        return made.prepared(target, anchors)

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """The release's layout, a Qwen3-style config with `dflash_config`, and that of
        `speculators`."""
        if block_files.kind_of(config, weights) != cls.kind:
            return None
        return block_files.published(config, weights, cls.from_anchor_default)


class DFlash(BlockDrafter):
    """heads: a folder, or DFlashHead. Shapes: see `specdec.drafting.shape.Shape`; as deep as the
    block, unless `depth` says less."""

    Kind = DFlashHead

    def __init__(self, heads: str | Path | DFlashHead, **shape: Unpack[HeadShapeArguments]) -> None:
        super().__init__(heads, **shape)
