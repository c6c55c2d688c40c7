"""MTP: the layer for multi-token prediction that a checkpoint brings along (DeepSeek-V3 2412.19437,
GLM-4-MoE and others).

    h' = norm(layer(proj[norm(embedding(x_{t+1})), norm(h_t)]))      logits = the target's head(h')

h_t is the input of the target's LM head. For the second token h' takes the place of h_t, and so on:
one pass of the layer per level of the tree, as EAGLE drafts. Most checkpoints bring one such layer;
of several, the first is used at every level.

transformers' `MtpModel` reads the layer. Its own passes make causal masks and draft one chain, so
trees are scored by a session of ours, over that layer inside the family's decoder.

Letters: B rows, T tokens, d hidden size.
"""

import copy
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import MtpModel

from specdec import LanguageModel, Sampling
from specdec.drafting.shape import FEW_VARIANTS, HeadShapeArguments, TreeDrafter
from specdec.errors import switch
from specdec.heads import speculators
from specdec.heads.decoder_layer import layer_config, published_layer
from specdec.heads.features import FeatureDrafter, FeatureHead, shape_for
from specdec.heads.files import Published
from specdec.heads.head import EMBEDDING, LM_HEAD
from specdec.interfaces import LendsHead
from specdec.models.kept import kept
from specdec.models.language_model import TransformersLM
from specdec.models.support import FULL

DEPTH = 3  # the layer was trained for one token: guesses soon get worse
PUBLISHED = {  # ours -> `speculators`
    "layers.0.": "mtp_layers.0.",
    "enorm.": "mtp_layers.0.token_layernorm.",
    "hnorm.": "mtp_layers.0.hidden_layernorm.",
    "eh_proj.": "mtp_layers.0.input_proj.",
    "post_norm.": "mtp_layers.0.final_layernorm.",
}


class MtpHead(FeatureHead):
    """One layer of the target's family, with norms of what enters and leaves it.

    layer         its config, from `specdec.heads.decoder_layer.layer_config`
    states_first  whether proj takes the state before the embedding
    post_norm     whether what leaves the layer is normed
    """

    kind = "mtp"
    taps = ("head",)

    def __init__(
        self,
        layer: dict[str, Any],
        vocabulary: int,
        states_first: bool = False,
        post_norm: bool = True,
    ) -> None:
        super().__init__()
        self.settings = {
            "layer": layer,
            "vocabulary": vocabulary,
            "states_first": switch("states_first", states_first),
            "post_norm": switch("post_norm", post_norm),
        }
        self.vocabulary, self.states_first = vocabulary, states_first
        self._build(layer)
        norm = getattr(self.layer, "input_layernorm", None)
        if not isinstance(norm, nn.Module):
            raise ValueError(
                f"{type(self.layer).__name__} has no input_layernorm, whose kind of norm is before "
                "an MTP layer; mtp works for Llama-like families"
            )
        size = self.hidden_size
        self.enorm, self.hnorm = copy.deepcopy(norm), copy.deepcopy(norm)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.post_norm = copy.deepcopy(norm) if post_norm else nn.Identity()

    @classmethod
    def for_target(cls, target: LendsHead, steps: int = 1) -> "MtpHead":
        """Untrained. steps: how far training unrolls it on its own states."""
        head = cls(layer_config(target), target.vocabulary)
        head.steps = steps
        return head

    @classmethod
    def of_checkpoint(cls, target: LanguageModel) -> "MtpHead":
        """The layer that the target's checkpoint brings. Raises ValueError where it brings none, or
        one that cannot be read."""
        model = target.model if isinstance(target, TransformersLM) else None
        config = None if model is None else model.config.get_text_config()
        if model is None or not getattr(config, "num_mtp_layers", None):
            raise ValueError(
                f"the target {target.name} brings no MTP layer (its config has no num_mtp_layers); "
                "mtp drafts for checkpoints of families such as DeepSeek-V3 and GLM-4-MoE that do, "
                "or give heads=FOLDER"
            )
        folder = Path(model.config.name_or_path or "")
        return kept((cls, str(folder)), folder, lambda: cls._read(model, target.vocabulary))

    @classmethod
    def _read(cls, model: PreTrainedModel, vocabulary: int) -> "MtpHead":
        where = model.config.name_or_path
        try:
            read = MtpModel.from_pretrained(model, device_map={"": model.device})
        except (OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the MTP layer of {where or 'a model that was not loaded from a folder'} cannot "
                f"be read ({type(error).__name__}: {error}); give a checkpoint that has its "
                "weights"
            ) from error
        # Without norms of its own, each layer is followed by one that all share, or by none.
        config = read.config
        layer: Any = read.layers[0]
        last = layer.post_norm if read.use_post_norm else getattr(read, "shared_post_norm", None)
        first = bool(getattr(config, "mtp_hidden_states_first", False))
        described = {**config.to_dict(), "num_hidden_layers": 1}
        if described.get("layer_types"):
            described["layer_types"] = described["layer_types"][:1]
        head = cls(published_layer(described), vocabulary, first, last is not None)
        parts = {
            head.layer: layer.mtp_block,
            head.enorm: layer.enorm,
            head.hnorm: layer.hnorm,
            head.eh_proj: layer.eh_proj,
            head.post_norm: nn.Identity() if last is None else last,
        }
        for ours, theirs in parts.items():
            ours.load_state_dict(theirs.state_dict(), assign=True)
        return head.to(model.device).eval()

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """Of `speculators`, the type mtp: the layer of a checkpoint by itself, trained further or
        not. Its config has the target's layers, all of them."""
        if speculators.type_of(config) != cls.kind:
            return None
        flat = speculators.flattened(config, ())
        if lacking := [key for key in ("model_type", "vocab_size") if flat.get(key) is None]:
            raise ValueError(f"{speculators.LAYERS} lacks {', '.join(lacking)}")
        if flat.get("num_nextn_predict_layers") not in (None, 1):
            raise ValueError(
                f"the config has num_nextn_predict_layers {flat['num_nextn_predict_layers']}, and "
                "heads of this kind have one layer"
            )
        # In families that mix attention with other layers, the MTP layer has full attention.
        types = flat.get("layer_types") or [FULL]
        own = {"num_hidden_layers": 1, "layer_types": [FULL] if FULL in types else types[:1]}
        settings = {"layer": published_layer({**flat, **own}), "vocabulary": flat["vocab_size"]}
        kept = {name: each for name, each in weights.items() if name not in speculators.NOT_OURS}
        shared = tuple(name for name in (EMBEDDING, LM_HEAD) if name in kept)
        return Published(settings, kept, PUBLISHED, shared, flat.get("num_hidden_layers"))

    def fuse(self, taps: Tensor) -> Tensor:
        return taps[:, :, -1]

    def enter(self, embeddings: Tensor, features: Tensor) -> Tensor:
        parts = [self.enorm(embeddings), self.hnorm(features.to(embeddings.dtype))]
        entered: Tensor = self.eh_proj(torch.cat(parts[::-1] if self.states_first else parts, -1))
        return entered

    def leave(self, out: Tensor) -> Tensor:
        normed: Tensor = self.post_norm(out)
        return normed

    def logits(self, features: Tensor, target: LendsHead) -> Tensor:
        return target.head(features)

    def weights(self) -> dict[str, Tensor]:
        return {name.removeprefix("decoder."): weight for name, weight in self.state_dict().items()}


class Mtp(FeatureDrafter):
    """heads: None for the layer of the target's own checkpoint; else a folder, or MtpHead. The
    other settings are those of `eagle`; by default three levels."""

    Kind = MtpHead
    variants = FEW_VARIANTS

    def __init__(
        self, heads: str | Path | MtpHead | None = None, **shape: Unpack[HeadShapeArguments]
    ) -> None:
        self._of_target = heads is None
        if shape.get("depth") is None:
            shape["depth"] = DEPTH
        if heads is not None:
            super().__init__(heads, **shape)
            return
        TreeDrafter.__init__(self, shape_for(MtpHead, shape, DEPTH))
        self.taps = MtpHead.taps

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        if self._of_target:
            self.heads = MtpHead.of_checkpoint(target)
        super().begin(target, rows, sampling)
