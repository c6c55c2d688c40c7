"""DSpark: DFlash's backbone, laws that know the token before them, and a guess at what will be
accepted (2607.05147).

The law behind a node at depth d is softmax(U_d + W1[token] W2): U_d are the block's logits, W1 W2
is a matrix of low rank, token by token. So a tree's laws are conditional on the path's last token,
at the cost of one small product per level.

The root's own place guesses the first token. A confidence head guesses, from the place's output and
the token before, which share of a draft there is accepted: `stop={"confidence": 0.5}` ends a chain
where this share is smaller. It looks at nothing that is drawn later, so the laws stay exact.

Letters: B rows, m nodes of a level, D guessed tokens, d hidden size, r rank, V vocabulary.
"""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from specdec import LanguageModel, Sampling
from specdec.drafting.shape import HeadShapeArguments
from specdec.drafting.stop_rules import StopRule, share
from specdec.errors import integer, switch
from specdec.heads import block_files
from specdec.heads.block import BlockHead
from specdec.heads.block_drafter import SAMPLED, Arranged, BlockDrafter
from specdec.heads.files import Published, renamed
from specdec.interfaces import LendsHead, Tap


class Markov(nn.Module):
    """What the token before says about the next: W1[token] W2."""

    def __init__(self, vocabulary: int, rank: int) -> None:
        super().__init__()
        self.W1 = nn.Parameter(torch.randn(vocabulary, rank) * rank**-0.5)
        self.W2 = nn.Parameter(torch.zeros(rank, vocabulary))


class DSparkHead(BlockHead):
    """`specdec.heads.block.BlockHead` with markov_head.W1 (V, r), markov_head.W2 (r, V) and
    confidence_head (1, d + r)."""

    kind = "dspark"
    from_anchor_default = True

    def __init__(
        self,
        layers: dict[str, Any],
        vocabulary: int,
        taps: Sequence[Tap],
        block: int,
        mask_token: int,
        from_anchor: bool,
        rank: int = 256,
    ) -> None:
        rank = integer("rank", rank, 1, vocabulary)
        super().__init__(layers, vocabulary, taps, block, mask_token, from_anchor, rank=rank)
        self.markov_head = Markov(vocabulary, rank)
        self.confidence_head = nn.Linear(self.hidden_size + rank, 1)

    @classmethod
    def for_target(
        cls,
        target: LendsHead,
        layers: int = 2,
        block: int = 7,
        taps: Sequence[Tap] | None = None,
        mask_token: int | None = None,
        rank: int | None = None,
        anchors: int = 32,
    ) -> "DSparkHead":
        """Untrained. rank None: 256, or a small vocabulary's size. anchors: blocks per window in
        training."""
        rank = min(256, target.vocabulary) if rank is None else rank
        made = cls(**cls.arguments_for(target, layers, block, taps, mask_token), rank=rank)
        return made.prepared(target, anchors)

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """The release's layout, DFlash's with the further weights, and that of `speculators`."""
        if block_files.kind_of(config, weights) != cls.kind:
            return None
        found = block_files.published(config, weights, cls.from_anchor_default)
        return block_files.with_markov(found, config)

    def to_speculators(
        self, verifier: str, architectures: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        config, weights = super().to_speculators(verifier, architectures)
        weights["markov_head.W2"] = weights["markov_head.W2"].T
        names = block_files.DSPARK_NAMES
        own = {
            "markov_rank": self.settings["rank"],
            "markov_head_type": "vanilla",
            "enable_confidence_head": True,
            "confidence_head_with_markov": True,
        }
        return {**config, **own}, {renamed(key, names): value for key, value in weights.items()}

    def after(self, laws: Tensor, tokens: Tensor) -> Tensor:
        markov = self.markov_head
        return laws + (markov.W1[tokens] @ markov.W2).to(laws.dtype)

    def confidence(self, states: Tensor, tokens: Tensor) -> Tensor:
        seen = torch.cat([states, self.markov_head.W1[tokens].to(states.dtype)], -1)
        found: Tensor = self.confidence_head(seen)[..., 0]
        return found


class Confidence(StopRule):
    """Stops where the head expects less than `least` of a draft to be accepted."""

    def __init__(self, least: float) -> None:
        self.least = share("confidence", least)
        self.expected: Tensor | None = None  # (B,) at the nodes that are asked about; the drafter's

    def __call__(self, q: Tensor, depth: int) -> Tensor:
        assert self.expected is not None
        return self.expected < self.least


MARGINAL = 64  # tokens that laws are averaged over, the most probable ones


class DSpark(BlockDrafter):
    """heads: a folder, "demo-dspark", or DSparkHead. Shapes: see `specdec.drafting.shape.Shape`;
    chains also take stop={"confidence": 0.5}.

    conditional: whether laws know the token before them. If not, those below the first level are
    averaged over it, so that every node of a depth has one law, as DFlash's have."""

    Kind = DSparkHead
    variants: ClassVar[Sequence[Mapping[str, Any]]] = (
        *SAMPLED,
        {"depth": 3, "draw": "wor", "branching": 1, "stop": {"confidence": 0.5}},
        {"depth": 2, "branching": [2, 1], "draw": "wor", "conditional": False},
    )

    def __init__(
        self,
        heads: str | Path | DSparkHead = "demo-dspark",
        conditional: bool = True,
        **shape: Unpack[HeadShapeArguments],
    ) -> None:
        self.conditional = switch("conditional", conditional)
        stop = shape.get("stop")
        if isinstance(stop, Mapping) and set(stop) == {"confidence"}:
            shape["stop"] = Confidence(stop["confidence"])
        super().__init__(heads, **shape)

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        self._confidence = self._stop if isinstance(self._stop, Confidence) else None

    def _take(self, out: Tensor, kept: Arranged, roots: Tensor) -> None:
        super()._take(out, kept, roots)
        if not self.conditional:
            self._known = self._averaged(self._known, roots)

    @property
    def _own_key(self) -> Hashable:
        return self.conditional

    def _averaged(self, known: Tensor, roots: Tensor) -> Tensor:
        """(B, D, V) logits of laws averaged over the token before: m_d = sum_x m_{d-1}(x) softmax(
        U_d + W1[x] W2), over the most probable x. The root is known, so the first needs no mean."""
        known = known.to(torch.promote_types(known.dtype, torch.float32))
        found = [self._heads.after(known[:, 0], roots)]
        for depth in range(1, known.shape[1]):
            before = found[-1].softmax(-1)
            mass, tokens = before.topk(min(MARGINAL, before.shape[-1]))
            laws = self._heads.after(known[:, depth, None], tokens).softmax(-1)
            share = mass / mass.sum(-1, keepdim=True)
            found.append((share[:, None] @ laws)[:, 0].clamp(min=1e-30).log())
        return torch.stack(found, 1)

    def _behind(self, depths: Tensor, tokens: Tensor) -> Tensor:
        if self._confidence is not None:  # a chain: one node per row
            rows = torch.arange(len(tokens), device=tokens.device)[:, None]
            share = self._heads.confidence(self._outputs[rows, depths], tokens)
            assert share is not None
            self._confidence.expected = share[:, 0].float().sigmoid()
        if not self.conditional:
            rows = torch.arange(len(tokens), device=tokens.device)[:, None]
            return self._known[rows, depths]
        return super()._behind(depths, tokens)
