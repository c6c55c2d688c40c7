"""EAGLE: one decoder layer over (embedding, feature) with the target's own embedding and LM head.

Feature = the LM head's input. EAGLE-1 (Li et al. 2401.15077) drafts a static tree, EAGLE-2
(2406.16858) a dynamic one from the same weights: here `draw="static"` and `draw="ranked"`. Chains
and trees with sampled siblings come with the other draws.
"""

from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from specdec.drafting.shape import FEW_VARIANTS, HeadShapeArguments
from specdec.errors import switch
from specdec.heads import speculators
from specdec.heads.decoder_layer import layer_config, published_layer
from specdec.heads.features import FeatureDrafter, FeatureHead
from specdec.heads.files import Published
from specdec.heads.head import EMBEDDING, LM_HEAD
from specdec.interfaces import LendsHead


class EagleHead(FeatureHead):
    """fc(embedding, feature) -> one layer without its first norm -> the next feature. Keys are
    those of the published checkpoints: fc.*, layers.0.*.

    layer: the target's config for one layer, from `specdec.heads.decoder_layer.layer_config`.
    """

    kind = "eagle"
    taps = ("head",)

    def __init__(self, layer: dict[str, Any], vocabulary: int, bias: bool = True) -> None:
        super().__init__()
        self.settings = {"layer": layer, "vocabulary": vocabulary, "bias": switch("bias", bias)}
        self.vocabulary = vocabulary
        self._build(layer)
        self.layer.input_layernorm = nn.Identity()
        self.fc = nn.Linear(2 * self.hidden_size, self.hidden_size, bias=bias)

    @classmethod
    def for_target(cls, target: LendsHead, steps: int = 1, bias: bool = True) -> "EagleHead":
        """Untrained. steps: how far training unrolls it on its own states."""
        head = cls(layer_config(target), target.vocabulary, bias)
        head.steps = steps
        return head

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """EAGLE-1 and 2: the config of one layer, `bias` (of fc; true if it is not said), keys that
        are ours. The target's embedding and LM head may lie beside them."""
        of_others = ("draft_vocab_size", "dflash_config", "target_layer_ids")
        if not {"hidden_size", "vocab_size"} <= set(config) or set(of_others) & set(config):
            return None
        if speculators.type_of(config):
            return None
        if not any(name.startswith("fc.") for name in weights):  # an ordinary model
            return None
        shared = tuple(name for name in (EMBEDDING, LM_HEAD) if name in weights)
        settings = {
            "layer": published_layer(config),
            "vocabulary": config["vocab_size"],
            "bias": config.get("bias", True),
        }
        return Published(settings, weights, shared=shared)

    def fuse(self, taps: Tensor) -> Tensor:
        return taps[:, :, -1]

    def enter(self, embeddings: Tensor, features: Tensor) -> Tensor:
        entered: Tensor = self.fc(torch.cat([embeddings, features.to(embeddings.dtype)], -1))
        return entered

    def logits(self, features: Tensor, target: LendsHead) -> Tensor:
        return target.head(features)

    def guessed_states(self, features: Tensor) -> Tensor:
        return features

    def weights(self) -> dict[str, Tensor]:
        return {name.removeprefix("decoder."): weight for name, weight in self.state_dict().items()}


class Eagle(FeatureDrafter):
    """heads: a folder, "demo-eagle", or EagleHead. draw: ranked (EAGLE-2, DET), static (EAGLE-1,
    DET: `tree` as rank paths, or the best `nodes` by the accuracies that training measured), or any
    of `specdec.drafting.shape.Shape`, which also explains depth, branching, nodes and stop."""

    Kind = EagleHead
    variants = (*FEW_VARIANTS, {"depth": 2, "draw": "static", "tree": [[0], [1], [0, 0]]})

    def __init__(
        self, heads: str | Path | EagleHead = "demo-eagle", **shape: Unpack[HeadShapeArguments]
    ) -> None:
        super().__init__(heads, **shape)
