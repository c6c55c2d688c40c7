"""EAGLE-3: low, middle and high states of the target fused, one decoder layer whose attention sees
the embedding beside the state, and a head of its own over the most frequent tokens (Li et al.
2503.01840). Trained on its own states.

Letters: B rows, T tokens, K taps, d hidden size, V' tokens of its own vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from specdec import LanguageModel
from specdec.drafting.shape import FEW_VARIANTS, HeadShapeArguments
from specdec.errors import integer, switch
from specdec.heads import peagle_files, speculators
from specdec.heads.block_drafter import SAMPLED
from specdec.heads.decoder_layer import layer_config, published_layer, published_layers
from specdec.heads.features import FeatureHead
from specdec.heads.files import Published, renamed
from specdec.heads.head import EMBEDDING, Guess, random_head
from specdec.heads.parallel import ParallelDrafter, parallel_guesses
from specdec.interfaces import LendsHead, LendsLayers, Tap, lends_head

RENAMED = {  # ours -> the published checkpoints'
    "decoder.layers.0.input_layernorm.embedding.": "midlayer.input_layernorm.",
    "decoder.layers.0.input_layernorm.hidden.": "midlayer.hidden_norm.",
    "decoder.layers.0.": "midlayer.",
    "decoder.": "",  # further layers
}
NOT_HERE = {  # what a published config may ask for
    "fc_norm": "norms each tap before it is fused",
    "norm_output": "feeds its normed output back",
}


class Beside(nn.Module):
    """The norm before attention, which here puts the embedding beside the state: (B, T, d) -> (B,
    T, 2d).

    The layer adds its output to what comes in here: the state as it is, or (before_residual) the
    state that is normed already.
    """

    def __init__(self, norm: nn.Module, before_residual: bool) -> None:
        super().__init__()
        self.embedding, self.hidden = copy.deepcopy(norm), copy.deepcopy(norm)
        self.before_residual = before_residual
        self.embeddings: Tensor | None = None  # of the coming pass

    def enter(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        self.embeddings = embeddings
        return self.hidden(hidden) if self.before_residual else hidden

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat(
            [
                self.embedding(self.embeddings),
                hidden if self.before_residual else self.hidden(hidden),
            ],
            -1,
        )


class Eagle3Head(FeatureHead):
    """Keys are those of the published checkpoints: midlayer.*, fc.weight, norm.weight,
    lm_head.weight, d2t (offsets from own to target ids), t2d (which target ids it knows).

    layer  the target's config for one layer, from `specdec.heads.decoder_layer.layer_config`
    taps   three layers whose entering states it reads; stored, never recomputed. None if a
           published file does not name them: then `default_taps` of the first target that the
           head is used with
    depths  tokens that one pass guesses (P-EAGLE 2602.01469); above 1 it has mask_embedding (d) and
            mask_hidden (3 d), which stand for a token, and for the states before it, that are not
            known yet
    norm_before_residual, norm_before_fc   whether the state is normed before the layer adds to it,
                                           and the taps before they are fused (input_norm.weight):
                                           no in the paper, often yes in heads trained with
                                           `speculators`
    own_embedding  whether it embeds tokens itself (embed_tokens.weight), not as the target does
    """

    kind = "eagle3"
    d2t: Tensor
    t2d: Tensor

    def __init__(
        self,
        layer: dict[str, Any],
        vocabulary: int,
        draft_vocabulary: int,
        taps: Sequence[Tap] | None,
        norm_before_residual: bool = False,
        norm_before_fc: bool = False,
        depths: int = 1,
        own_embedding: bool = False,
    ) -> None:
        super().__init__()
        self.settings = {
            "layer": layer,
            "vocabulary": vocabulary,
            "draft_vocabulary": draft_vocabulary,
            "taps": None if taps is None else list(taps),
            "norm_before_residual": switch("norm_before_residual", norm_before_residual),
            "norm_before_fc": switch("norm_before_fc", norm_before_fc),
            "depths": integer("depths", depths, 1, 256),
            "own_embedding": switch("own_embedding", own_embedding),
        }
        self.vocabulary, self.taps = vocabulary, tuple(taps or ())
        self._build(layer)
        missing = [
            part
            for part in ("self_attn", "input_layernorm")
            if getattr(self.layer, part, None) is None
        ]
        if missing:
            raise ValueError(
                f"{type(self.layer).__name__} has no {' and no '.join(missing)}, so it cannot be "
                "made to look at embedding and state; eagle3 works for Llama-like families"
            )
        attention = self.layer.get_submodule("self_attn")
        for name in ("q_proj", "k_proj", "v_proj"):
            narrow = getattr(attention, name, None)
            if not isinstance(narrow, nn.Linear):
                raise ValueError(
                    f"{type(attention).__name__} has no {name}, so its attention cannot be widened "
                    "to look at embedding and state; eagle3 works for Llama-like families"
                )
            setattr(
                attention,
                name,
                nn.Linear(2 * self.hidden_size, narrow.out_features, narrow.bias is not None),
            )
        norm = self.layer.get_submodule("input_layernorm")
        self.layer.input_layernorm = Beside(norm, norm_before_residual)
        width = (len(self.taps) or 3) * self.hidden_size
        self.fc = nn.Linear(width, self.hidden_size, bias=False)
        self.input_norm: nn.Module | None = None
        if norm_before_fc:
            self.input_norm = copy.deepcopy(norm)
            self.input_norm.weight = nn.Parameter(torch.ones(width))
        self.norm = copy.deepcopy(norm)
        self.lm_head = nn.Linear(self.hidden_size, draft_vocabulary, bias=False)
        self.embed_tokens = nn.Embedding(vocabulary, self.hidden_size) if own_embedding else None
        self.depths = depths
        if depths > 1:
            self.mask_embedding = nn.Parameter(torch.randn(self.hidden_size))
            self.mask_hidden = nn.Parameter(torch.randn(width))
        self.register_buffer("d2t", torch.zeros(draft_vocabulary, dtype=torch.long))
        self.register_buffer("t2d", torch.arange(vocabulary) < draft_vocabulary)

    @classmethod
    def for_target(
        cls,
        target: LendsHead,
        steps: int = 1,
        draft_vocabulary: int | None = None,
        frequency: Tensor | None = None,
        taps: Sequence[Tap] | None = None,
        depths: int = 1,
    ) -> "Eagle3Head":
        """Untrained. Its vocabulary: the `draft_vocabulary` (default: all) tokens of highest
        `frequency` (V,). Its head begins as those rows of the target's."""
        size = draft_vocabulary or target.vocabulary
        if not 1 <= size <= target.vocabulary:
            raise ValueError(
                f"draft_vocabulary must be in 1 .. {target.vocabulary}, the target's, got {size}"
            )
        head = cls(
            layer_config(target),
            target.vocabulary,
            size,
            default_taps(target) if taps is None else taps,
            depths=depths,
        )
        head.steps = steps
        counts = torch.zeros(target.vocabulary) if frequency is None else frequency
        kept = counts.argsort(descending=True, stable=True)[:size].sort().values.to(head.d2t.device)
        with torch.no_grad():
            head.d2t.copy_(kept - torch.arange(size))
            head.t2d.zero_()[kept] = True
            head.lm_head.weight.copy_(target.head_weight[kept])
        return head

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """The native layout (a Llama-style config of one layer with `draft_vocab_size`) and, of
        `speculators`, the types eagle3 and peagle."""
        named = speculators.type_of(config)
        known = (None, cls.kind, peagle_files.TYPE)
        if named not in known or (named is None and "draft_vocab_size" not in config):
            return None
        parallel = named == peagle_files.TYPE
        if parallel:
            config = speculators.flattened(config, peagle_files.NEEDED)
        elif named:
            config = speculators.flattened(config, ("draft_vocab_size", "norm_before_residual"))
        if unable := [why for key, why in NOT_HERE.items() if config.get(key)]:
            raise ValueError(f"the head {' and '.join(unable)}, which is not supported here")
        layer = published_layers(config) if parallel else published_layer(config)
        vocabulary = config.get("vocab_size")
        if vocabulary is None:
            raise ValueError("the config lacks vocab_size, the target's vocabulary")
        if config.get("target_hidden_size") not in (None, layer["hidden_size"]):
            raise ValueError(
                f"the head is {layer['hidden_size']} wide and its target "
                f"{config['target_hidden_size']}; here both are the same"
            )
        size = vocabulary if config["draft_vocab_size"] is None else config["draft_vocab_size"]
        if size == vocabulary:  # the tables may be left out
            weights = {
                "d2t": torch.zeros(size, dtype=torch.long),
                "t2d": torch.ones(size, dtype=torch.bool),
                **weights,
            }
        check_tables(weights, vocabulary, size)
        norms = {
            key: bool(config.get(key, False)) for key in ("norm_before_residual", "norm_before_fc")
        }
        settings = {
            "layer": layer,
            "vocabulary": vocabulary,
            "draft_vocabulary": size,
            "taps": published_taps(config),
            "own_embedding": bool(config.get("embed_requires_grad", parallel)),
            **norms,
        }
        if parallel:
            settings["depths"] = peagle_files.depths(config)
            weights = peagle_files.with_masks(config, weights, vocabulary, layer["hidden_size"])
        native = any(name.startswith("midlayer.") for name in weights)
        shared = (EMBEDDING,) if EMBEDDING in weights and not settings["own_embedding"] else ()
        return Published(settings, weights, {} if native else speculators.EAGLE3_NAMES, shared)

    def to_speculators(
        self, verifier: str, architectures: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.depths > 1:
            raise ValueError(
                f"the head guesses {self.depths} tokens in one pass; what is written here is the "
                "layout of eagle3 heads that guess one"
            )
        config = speculators.written(
            self.kind,
            self.settings["layer"],
            self.vocabulary,
            self.taps,
            verifier,
            architectures,
            str(self.fc.weight.dtype).removeprefix("torch."),
            tokens=5,
            draft_vocab_size=len(self.d2t),
            norm_before_residual=self.settings["norm_before_residual"],
            norm_before_fc=self.settings["norm_before_fc"],
            eagle_aux_hidden_state_layer_ids=list(self.taps) or None,
            **({} if self.embed_tokens is None else {"embed_requires_grad": True}),
        )
        return config, {
            renamed(name, speculators.EAGLE3_NAMES): weight
            for name, weight in self.weights().items()
        }

    def taps_for(self, target: LanguageModel) -> tuple[Tap, ...]:
        taps, layers = self.taps or default_taps(target), num_layers(target)
        if layers and any(isinstance(tap, int) and not 0 <= tap < layers for tap in taps):
            raise ValueError(f"the eagle3 head reads layers {list(taps)}, the target has {layers}")
        return taps

    @property
    def token_ids(self) -> Tensor:
        """(V',) target ids of its own tokens."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def embed(self, tokens: Tensor, target: LendsHead) -> Tensor:
        if self.embed_tokens is None:
            return super().embed(tokens, target)
        embedded: Tensor = self.embed_tokens(tokens)
        return embedded

    def fuse(self, taps: Tensor) -> Tensor:
        fused = taps.flatten(2)
        features: Tensor = self.fc(fused if self.input_norm is None else self.input_norm(fused))
        return features

    def enter(self, embeddings: Tensor, features: Tensor) -> Tensor:
        beside = self.layer.input_layernorm
        assert isinstance(beside, Beside)
        return beside.enter(embeddings, features)

    def logits(self, features: Tensor, target: LendsHead) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(features))
        return logits

    def masks(self) -> tuple[Tensor, Tensor]:
        states = self.mask_hidden.view(1, 1, -1, self.hidden_size)
        return self.mask_embedding, self.fuse(states)[0, 0]

    def guesses(self, ids: Tensor, taps: Tensor, target: LendsHead) -> list[Guess]:
        if self.depths > 1:
            return parallel_guesses(self, ids, taps, target)
        return super().guesses(ids, taps, target)

    def weights(self) -> dict[str, Tensor]:
        return {renamed(name, RENAMED): weight for name, weight in self.state_dict().items()}


def published_taps(config: Mapping[str, Any]) -> list[Tap] | None:
    """The layers whose entering states a published config names: as such (vLLM's convention), or,
    under `eagle_config`, the layers whose outputs they are (SGLang's convention). None where it
    names none. Raises ValueError for any but three."""
    named, outputs = (
        config.get("eagle_aux_hidden_state_layer_ids"),
        config.get("eagle_config") or {},
    )
    if not named and outputs.get("eagle_aux_hidden_state_layer_ids"):
        named = [layer + 1 for layer in outputs["eagle_aux_hidden_state_layer_ids"]]
    if not named:
        return None
    if len(named) != 3:
        raise ValueError(
            f"eagle_aux_hidden_state_layer_ids names {len(named)} layers ({named}), expected three"
        )
    return list(named)


def check_tables(weights: Mapping[str, Tensor], vocabulary: int, size: int) -> None:
    """Raise ValueError unless d2t leads to `size` different tokens of the target, those that t2d
    marks. Missing tables and wrong shapes are reported elsewhere."""
    d2t, t2d = weights.get("d2t"), weights.get("t2d")
    if d2t is None or d2t.shape != (size,):
        return
    ids = d2t.long() + torch.arange(size)
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary or len(ids.unique()) < size:
        raise ValueError(f"d2t does not lead to {size} different tokens in 0 .. {vocabulary - 1}")
    if (
        t2d is not None
        and t2d.shape == (vocabulary,)
        and t2d.bool().nonzero().flatten().tolist() != ids.sort().values.tolist()
    ):
        raise ValueError("d2t and t2d disagree about which tokens the head knows")


def num_layers(target: LanguageModel) -> int | None:
    """None where a target shows none."""
    return target.layers if isinstance(target, LendsLayers) else None


def default_taps(target: LanguageModel) -> tuple[Tap, ...]:
    """The states entering layers 2, L/2 and L - 3; below 8 layers 1, L/2 and L - 1."""
    layers = num_layers(target) or 6
    return (2, layers // 2, layers - 3) if layers >= 8 else (1, layers // 2, layers - 1)


class Eagle3(ParallelDrafter):
    """heads: a folder, "demo-eagle3", or Eagle3Head. The other settings are those of `eagle`.

    parallel  all depths in one pass, with a head that was trained for it (P-EAGLE)
    """

    Kind = Eagle3Head
    variants = (
        *FEW_VARIANTS,
        *({**settings, "parallel": True} for settings in SAMPLED),
        {"depth": 2, "draw": "static", "tree": [[0], [1], [0, 0]], "parallel": True},
    )

    def __init__(
        self,
        heads: str | Path | Eagle3Head = "demo-eagle3",
        parallel: bool | None = None,
        **shape: Unpack[HeadShapeArguments],
    ) -> None:
        super().__init__(heads, parallel, **shape)

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Eagle3":
        lender, depths = lends_head(target, cls.Kind.kind), 3 if arguments.get("parallel") else 1
        heads = random_head(lambda: Eagle3Head.for_target(lender, depths=depths), target.dtype)
        return cls(**{**arguments, "heads": heads})
