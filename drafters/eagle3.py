"""EAGLE-3: low, middle and high states of the target fused, one decoder layer whose attention sees the embedding beside the
state, and a head of its own over the most frequent tokens (Li et al. 2503.01840). Trained on its own states.

Letters: B rows, T tokens, K taps, d hidden size, V' tokens of its own vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specdec.features import FeatureDrafter, FeatureHead
from specdec.interfaces import Tap
from specdec.one_layer import layer_config
from specdec.shape import FEW_VARIANTS
from specdec.stopping import Stop

RENAMED = {  # ours -> the published checkpoints'
    "decoder.layers.0.input_layernorm.embedding.": "midlayer.input_layernorm.",
    "decoder.layers.0.input_layernorm.hidden.": "midlayer.hidden_norm.",
    "decoder.layers.0.": "midlayer.",
}


class Beside(nn.Module):
    """The norm before attention, which here puts the embedding beside the state: (B, T, d) -> (B, T, 2d)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.embedding, self.hidden = copy.deepcopy(norm), copy.deepcopy(norm)
        self.embeddings: Tensor | None = None  # of the coming pass

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.embedding(self.embeddings), self.hidden(hidden)], -1)


class Eagle3Head(FeatureHead):
    """Keys are those of the published checkpoints: midlayer.*, fc.weight, norm.weight, lm_head.weight, d2t (offsets from own
    to target ids), t2d (which target ids it knows).

    layer  the target's config for one layer, from `specdec.one_layer.layer_config`
    taps   three layers whose entering states it reads; stored, never worked out again
    """

    kind = "eagle3"
    d2t: Tensor
    t2d: Tensor

    def __init__(self, layer: dict[str, Any], vocabulary: int, draft_vocabulary: int, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.settings = {
            "layer": layer,
            "vocabulary": vocabulary,
            "draft_vocabulary": draft_vocabulary,
            "taps": list(taps),
        }
        self.vocabulary, self.taps = vocabulary, tuple(taps)
        self._build(layer)
        attention = self.layer.get_submodule("self_attn")
        for name in ("q_proj", "k_proj", "v_proj"):
            narrow = getattr(attention, name, None)
            if not isinstance(narrow, nn.Linear):
                raise ValueError(
                    f"{type(attention).__name__} has no {name}, so its attention cannot be widened to look at embedding and "
                    "state; eagle3 works for Llama-like families"
                )
            setattr(attention, name, nn.Linear(2 * self.hidden_size, narrow.out_features, narrow.bias is not None))
        norm = self.layer.get_submodule("input_layernorm")
        self.layer.input_layernorm = Beside(norm)
        self.fc = nn.Linear(len(self.taps) * self.hidden_size, self.hidden_size, bias=False)
        self.norm = copy.deepcopy(norm)
        self.lm_head = nn.Linear(self.hidden_size, draft_vocabulary, bias=False)
        self.register_buffer("d2t", torch.zeros(draft_vocabulary, dtype=torch.long))
        self.register_buffer("t2d", torch.arange(vocabulary) < draft_vocabulary)

    @classmethod
    def for_target(
        cls,
        target: Any,
        steps: int = 1,
        draft_vocabulary: int | None = None,
        frequency: Tensor | None = None,
        taps: Sequence[Tap] | None = None,
    ) -> "Eagle3Head":
        """Untrained. Its vocabulary: the `draft_vocabulary` (default: all) tokens of highest `frequency` (V,). Its head begins
        as those rows of the target's."""
        size = draft_vocabulary or target.vocabulary
        if not 1 <= size <= target.vocabulary:
            raise ValueError(f"draft_vocabulary must be in 1 .. {target.vocabulary}, the target's, got {size}")
        head = cls(layer_config(target), target.vocabulary, size, default_taps(target) if taps is None else taps)
        head.steps = steps
        counts = torch.zeros(target.vocabulary) if frequency is None else frequency
        kept = counts.argsort(descending=True, stable=True)[:size].sort().values.to(head.d2t.device)
        with torch.no_grad():
            head.d2t.copy_(kept - torch.arange(size))
            head.t2d.zero_()[kept] = True
            head.lm_head.weight.copy_(target.head_weight[kept])
        return head

    @property
    def kept(self) -> Tensor:
        """(V',) target ids of its own tokens."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def fuse(self, taps: Tensor) -> Tensor:
        return self.fc(taps.flatten(2))

    def enter(self, embeddings: Tensor, features: Tensor) -> Tensor:
        beside = self.layer.input_layernorm
        assert isinstance(beside, Beside)
        beside.embeddings = embeddings
        return features

    def logits(self, features: Tensor, target: Any) -> Tensor:
        return self.lm_head(self.norm(features))

    def weights(self) -> dict[str, Tensor]:
        return {published(name): weight for name, weight in self.state_dict().items()}


def published(name: str) -> str:
    for ours, theirs in RENAMED.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def default_taps(target: Any) -> tuple[Tap, ...]:
    """The states entering layers 2, L/2 and L - 3; below 8 layers 1, L/2 and L - 1, three of their own where there are."""
    layers = target.config.num_hidden_layers if hasattr(target, "config") else 6
    return (2, layers // 2, layers - 3) if layers >= 8 else (1, layers // 2, layers - 1)


class Eagle3(FeatureDrafter):
    """heads: a folder, "demo-eagle3", or Eagle3Head. The other settings are those of `eagle`."""

    Kind = Eagle3Head
    variants = FEW_VARIANTS

    def __init__(
        self,
        heads: str | Path | Eagle3Head = "demo-eagle3",
        depth: int = 5,
        branching: int | Sequence[int] | None = None,
        draw: str = "ranked",
        nodes: int | None = None,
        tree: Sequence[Sequence[int]] | None = None,
        stop: Stop | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(heads, depth, branching, draw, nodes, tree, stop)
