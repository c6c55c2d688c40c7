"""Heads that guess a block of tokens in one pass: a few decoder layers look at the target's states
and at a row of masks behind the root, and each mask becomes a law (DFlash, 2602.06036).

The context has, for each committed token, the target's states there, fused into one. Every layer
gets the same context behind its first norm and takes nothing but keys and values from it. The
block is [root, MASK, MASK, ...], embedded by the target. Its tokens see the context and one
another, earlier and later ones alike. The memory keeps the context; blocks are scratch.

The laws do not depend on the tokens that are drafted: the law at depth d is that of the token d + 1
places behind the root, averaged over what may come between. One pass serves all levels of a tree.

Letters: B rows, T tokens, A anchors (roots of blocks in training), n tokens of a pass, m nodes of a
level, D guessed tokens, K taps, d hidden size, V vocabulary.
"""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from specdec.errors import integer, switch
from specdec.heads import speculators
from specdec.heads.anchors import drawn_anchors, for_attention
from specdec.heads.decoder_head import DecoderHead
from specdec.heads.decoder_layer import decoder_of, layer_config
from specdec.heads.head import Guess
from specdec.heads.packing import Documents, documents_of
from specdec.interfaces import LanguageModel, LendsHead, LendsLayers, Tap
from specdec.models.masks import Masks
from specdec.models.support import layer_kinds


class WithContext(nn.Module):
    """A layer's first norm, which lets the context through as it is: (B, n, d) -> (B, n, d)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.states: Tensor | None = None  # (B, n, d) of the coming pass
        self.is_context: Tensor | None = None  # (B, n, 1) bool: which of them are context

    def forward(self, stream: Tensor) -> Tensor:
        assert self.states is not None
        assert self.is_context is not None
        return torch.where(self.is_context, self.states, self.norm(stream))


class BlockHead(DecoderHead):
    """Decoder layers over (context, block). Keys are those of the published checkpoints:
    layers.*, fc, hidden_norm, norm. Embedding and LM head are the target's.

    layers       the config of the layers, from `specdec.heads.decoder_layer.layer_config`
    vocabulary   the target's
    taps         the layers whose entering states are fused
    block        tokens that are guessed in one pass
    mask_token   whose embedding stands for a token that is not known yet
    from_anchor  whether the root's place guesses too (DSpark: yes, so a block has `block` - 1
                 masks; DFlash: no, it has `block`). Off by one here halves what is accepted
    """

    from_anchor_default: ClassVar[bool]
    anchors: int = 32  # blocks per window in training, drawn anew in each step

    def __init__(
        self,
        layers: dict[str, Any],
        vocabulary: int,
        taps: Sequence[Tap],
        block: int,
        mask_token: int,
        from_anchor: bool,
        **own: Any,
    ) -> None:
        super().__init__()
        self.settings = {
            "layers": layers,
            "vocabulary": vocabulary,
            "taps": list(taps),
            "block": integer("block", block, 1, 256),
            "mask_token": integer("mask_token", mask_token, 0, vocabulary - 1),
            "from_anchor": switch("from_anchor", from_anchor),
            **own,
        }
        if not taps:
            raise ValueError(f"a {self.kind} head reads the target's states; taps names none")
        self.vocabulary, self.taps, self.block = vocabulary, tuple(taps), block
        self.mask_token, self.from_anchor = mask_token, from_anchor
        self.decoder = decoder_of(layers)
        self.hidden_size = int(self.decoder.config.hidden_size)
        norm = self._wrap_norms()
        self.fc = nn.Linear(len(taps) * self.hidden_size, self.hidden_size, bias=False)
        self.hidden_norm, self.norm = copy.deepcopy(norm), copy.deepcopy(norm)

    def _wrap_norms(self) -> nn.Module:
        """Every layer's first norm lets the context through. Returns one of those norms."""
        found = nn.Module()
        for layer in self.decoder.get_submodule("layers").children():
            norm = getattr(layer, "input_layernorm", None)
            if not isinstance(norm, nn.Module):
                raise ValueError(
                    f"{type(layer).__name__} has no input_layernorm, behind which the context "
                    f"enters; {self.kind} heads work for Llama-like families"
                )
            layer.input_layernorm, found = WithContext(norm), norm
        return found

    @classmethod
    @abstractmethod
    def for_target(
        cls, target: LendsHead, layers: int = 2, block: int = 7, *, anchors: int = 32
    ) -> "BlockHead":
        """Untrained. anchors: blocks per window in training."""

    @classmethod
    def arguments_for(
        cls,
        target: LendsHead,
        layers: int,
        block: int,
        taps: Sequence[Tap] | None,
        mask: int | None,
    ) -> dict[str, Any]:
        """The constructor's, for an untrained head of this target. mask None: its first EOS token,
        which is never the root of a block."""
        shown = target.layers if isinstance(target, LendsLayers) else 6
        if mask is None:
            mask = min(target.eos_ids, default=target.vocabulary - 1)
        return {
            "layers": layer_config(target, integer("layers", layers, 1, 64)),
            "vocabulary": target.vocabulary,
            "taps": spread_taps(shown) if taps is None else list(taps),
            "block": block,
            "mask_token": mask,
            "from_anchor": cls.from_anchor_default,
        }

    @torch.no_grad()
    def prepared(self, target: LendsHead, anchors: int) -> Self:
        """For training. The last norm begins with the scale of the target's, if that can be found,
        since the target's LM head reads it out: an optimiser would take long to get there from
        one."""
        self.anchors = integer("anchors", anchors, 1)
        sign = 1.0 - 2.0 * (torch.arange(self.hidden_size) % 2)
        both = torch.stack([sign, -sign])[None]  # RMS 1, and mean 0
        theirs = target.final_norm(both.to(target.device, target.dtype))
        if theirs is None:
            return self
        outs = (theirs.float().cpu(), self.norm(both))
        scale, own = ((out[0, 0] - out[0, 1]) / 2 * sign for out in outs)
        self.norm.get_parameter("weight").add_(scale - own)
        return self

    @property
    def places(self) -> int:
        """Tokens of a block, the root included."""
        return self.block if self.from_anchor else self.block + 1

    def taps_for(self, target: LanguageModel) -> tuple[Tap, ...]:
        layers = target.layers if isinstance(target, LendsLayers) else None
        if layers and any(isinstance(tap, int) and not 0 <= tap < layers for tap in self.taps):
            raise ValueError(
                f"the {self.kind} head reads layers {list(self.taps)}, the target has {layers}"
            )
        return self.taps

    def fuse(self, taps: Tensor) -> Tensor:
        """The context (B, T, d) of the target's states (B, T, K, d)."""
        context: Tensor = self.hidden_norm(self.fc(taps.flatten(2)))
        return context

    def embedded(self, roots: Tensor, target: LendsHead) -> Tensor:
        """(..., places, d) blocks behind roots (...)."""
        tokens = torch.full((*roots.shape, self.places), self.mask_token, device=roots.device)
        tokens[..., 0] = roots
        return target.embed(tokens)

    def forward(
        self,
        states: Tensor,
        is_context: Tensor,
        position_ids: Tensor,
        attention_mask: Masks,
        past_key_values: Cache | None,
        use_cache: bool = True,
    ) -> Tensor:
        """(B, n, d) of context and blocks in one row; only the blocks' outputs mean something.
        states (B, n, d): the context, and the embedded blocks; is_context (B, n, 1) bool."""
        entries: list[Any] = [
            layer.input_layernorm for layer in self.decoder.get_submodule("layers").children()
        ]
        for entry in entries:
            entry.states, entry.is_context = states, is_context
        out: Tensor = self.decoder(
            inputs_embeds=states,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        ).last_hidden_state
        for entry in entries:  # what a compiled pass leaves behind would be one more output
            entry.states = entry.is_context = None
        return out

    def after(self, laws: Tensor, tokens: Tensor) -> Tensor:
        """Logits (..., V) behind nodes with these tokens (...), of the block's logits (..., V) at
        their depths."""
        return laws

    def weights(self) -> dict[str, Tensor]:
        return {
            name.removeprefix("decoder.").replace(".input_layernorm.norm.", ".input_layernorm."): w
            for name, w in self.state_dict().items()
        }

    def to_speculators(
        self, verifier: str, architectures: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        config = speculators.written(
            self.kind,
            self.settings["layers"],
            self.vocabulary,
            self.taps,
            verifier,
            architectures,
            str(self.fc.weight.dtype).removeprefix("torch."),
            tokens=self.block,
            draft_vocab_size=self.vocabulary,
            block_size=self.places,
            aux_hidden_state_layer_ids=list(self.taps),
            mask_token_id=self.mask_token,
            sample_from_anchor=self.from_anchor,
            sliding_window_non_causal=True,  # all tokens of a block see one another
        )
        return config, self.weights()

    # ---------------------------------------------------------------------------------- training

    def guesses(self, ids: Tensor, taps: Tensor, target: LendsHead) -> list[Guess]:
        """Blocks behind some anchors of each window, drawn anew at every call. All blocks of a
        window are one pass: each sees the context before its anchor, and itself."""
        rows, length = ids.shape
        possible = length - self.block
        if possible < 1:
            raise ValueError(
                f"windows of {length} tokens have no room for a block of {self.block}; "
                "raise context"
            )
        anchors = drawn_anchors(rows, possible, self.anchors, ids.device)
        out = self._blocks(ids, self.fuse(taps), anchors, target)
        found = []
        for depth in range(self.block):
            states = self.norm(out[:, :, depth + self.places - self.block])
            before = ids.gather(1, anchors + depth)
            logits = self.after(target.head(states), before)
            found.append(
                Guess(logits, depth, anchors=anchors, confidence=self.confidence(states, before))
            )
        return found

    def confidence(self, states: Tensor, tokens: Tensor) -> Tensor | None:
        """Logits (...) of the guessed share of a draft that is accepted behind tokens (...), if the
        head guesses it; states (..., d) are the block's outputs."""
        return None

    def _blocks(self, ids: Tensor, context: Tensor, anchors: Tensor, target: LendsHead) -> Tensor:
        """(B, A, places, d) outputs of the blocks behind `anchors` (B, A)."""
        (rows, count), length, places = anchors.shape, ids.shape[1], self.places
        blocks = self.embedded(ids.gather(1, anchors), target)
        states = torch.cat([context, blocks.flatten(1, 2).to(context.dtype)], 1)
        is_context = torch.zeros(1, states.shape[1], 1, dtype=torch.bool, device=ids.device)
        is_context[:, :length] = True
        place = torch.arange(places, device=ids.device)
        documents = documents_of(ids, target.eos_ids if self.apart else ())
        start = documents.position.gather(1, anchors)
        positions = torch.cat([documents.position, (start[:, :, None] + place).flatten(1)], 1)
        out: Tensor = self(
            states,
            is_context.expand(rows, -1, -1),
            positions,
            self._mask(anchors, positions, documents),
            None,
            use_cache=False,
        )
        return out[:, length:].view(rows, count, places, -1)

    def _mask(self, anchors: Tensor, positions: Tensor, documents: Documents) -> Masks:
        """Masks (B, 1, n, n), one per kind of layer, a dict where there are several: bool, or
        additive for eager attention. positions (B, n), of context and blocks.

        Where a layer has a window, a block sees what it will see when it drafts. Context tokens are
        nobody's queries; each sees itself, since a row of a mask may not be empty.
        """
        (rows, count), device = anchors.shape, anchors.device
        length = documents.number.shape[1]
        own = torch.arange(count, device=device).repeat_interleave(self.places)
        key = torch.arange(length, device=device).expand(rows, -1)
        start = anchors.repeat_interleave(self.places, 1)
        context = (key[:, None] < start[:, :, None]) & documents.same(start, key)
        seen = torch.cat([context, (own[:, None] == own).expand(rows, -1, -1)], 2)
        alone = torch.eye(length, length + len(own), dtype=torch.bool, device=device)
        found: dict[str, Tensor | None] = {}
        for kind in layer_kinds(self.decoder.config):
            near = seen
            if kind.size is not None:
                near = seen & kind.reaches(positions[:, length:, None], positions[:, None])
            mask = torch.cat([alone.expand(rows, -1, -1), near], 1)[:, None]
            found[kind.name] = for_attention(mask, self.decoder.config)
        return found if len(found) > 1 else next(iter(found.values()))


def spread_taps(layers: int) -> list[Tap]:
    """The states that leave the layers round(1 + i (L - 4) / 4), i = 0 .. 4 (DFlash 2602.06036).
    Below 12 layers, where those are not five, the streams that enter the last five layers."""
    if layers < 12:
        return list(range(max(1, layers - 5), layers))
    return [1 + round(1 + i * (layers - 4) / 4) for i in range(5)]
