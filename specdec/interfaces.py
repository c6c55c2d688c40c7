"""The contracts. A drafter proposes, a language model scores, a verifier decides; none of them knows another one.

Letters: B rows, N nodes, V vocabulary, D depth, L tokens, T taps, d hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from specdec.chance import Draws
from specdec.tree import SiblingLaw, TokenTree

if TYPE_CHECKING:
    from specdec.sampling import Laws, Sampling

Tap = int | str
"""A hidden state of the target: k = the stream entering layer k, "head" = the LM head's input after the final norm."""


class Scores(NamedTuple):
    """What one forward pass says about the nodes of a tree."""

    logits: Tensor  # (B, N, V)
    taps: Tensor | None  # (B, N, T, d), the hidden states that were asked for


@dataclass(frozen=True, eq=False)
class Verdict:
    """What survives of a round. A verifier may answer on the device; `State.last` holds it on the host."""

    path: Tensor  # (B, D) accepted node numbers from below the root downwards, padded with -1
    num_accepted: Tensor  # (B,)
    bonus: Tensor  # (B,) the one token that the target adds
    counts: Mapping[str, Tensor] = field(default_factory=dict)  # diagnostics per row (B,), e.g. "zero_residuals"


class Last(NamedTuple):
    """The round before, for drafters that read it. Before the first round, trees and verdict are None."""

    trees: TokenTree | None
    verdict: Verdict | None
    taps: Tensor | None
    """(B, L, T, d). At first the states of prompt[:-1], of which lengths - 1 are valid. Later [:, 0] is the root's state
    and [:, i] that of the i-th accepted node: num_accepted + 1 are valid. The bonus token (the new root) has none yet."""


class OnHost(NamedTuple):
    """The same numbers as Python values, so that control flow need not ask the device."""

    lengths: list[int]
    live: list[bool]
    room: list[int]


@dataclass(frozen=True, eq=False)
class State:
    """What is committed. Drafters read it and never write it."""

    on_host: OnHost
    tokens: Tensor  # (B, L) right-padded
    request_ids: Tensor  # (B,)
    sampling: "Sampling"
    last: Last

    @cached_property
    def lengths(self) -> Tensor:
        """(B,) committed tokens, the root included."""
        return torch.tensor(self.on_host.lengths, device=self.tokens.device)

    @cached_property
    def live(self) -> Tensor:
        """(B,) bool: the row still decodes."""
        return torch.tensor(self.on_host.live, device=self.tokens.device)

    @cached_property
    def room(self) -> Tensor:
        """(B,) tokens that the row may still add."""
        return torch.tensor(self.on_host.room, device=self.tokens.device)

    @property
    def deepest(self) -> int:
        """The largest depth that any row's tree may have: the bonus token takes one of the places in `room`."""
        return (
            max((room for room, live in zip(self.on_host.room, self.on_host.live, strict=True) if live), default=1) - 1
        )

    @property
    def roots(self) -> Tensor:
        """(B,) the last committed tokens."""
        lengths = self.on_host.lengths
        if len(lengths) == 1:
            return self.tokens[:, lengths[0] - 1]
        return self.tokens.gather(1, self.lengths[:, None] - 1)[:, 0]


class LanguageModel(Protocol):
    """A decoder with a KV cache that takes trees. One cache per call of generate, opened with `open`.

    Slots and positions: committed token i lies in slot i at position i. A tree's node i lies in slot root + i at position
    root + depth, where `root` is the root's slot.
    """

    vocabulary: int
    context: int  # the largest position + 1
    device: torch.device
    dtype: torch.dtype

    @property
    def cache_bytes(self) -> int: ...

    def open(self, rows: int, slots: int) -> None:
        """Forget everything; make room for `slots` tokens in each of `rows` rows."""

    def read(self, tokens: Tensor, counts: Tensor, taps: tuple[Tap, ...] = ()) -> Scores:
        """Commit tokens (B, L), of which counts (B,), on the host, are valid. Logits (B, 1, V) follow each row's last token; taps are
        those of all L. The last token read may then serve as the root of a tree whose nodes >= 1 are scored."""

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        """Logits and taps of nodes >= start in one forward pass; the earlier ones already lie in their slots."""

    def keep(self, path: Tensor, counts: Tensor) -> None:
        """The root and the first `counts` (B,) nodes of `path` (B, D), both on the host, become committed, the rest is forgotten."""


class Drafter(ABC):
    """Proposes a tree per row. One file, one class, one YAML.

    A law other than DET is a promise: every token was drawn fresh from the recorded q after the decision to draw it, and
    was never removed or reordered afterwards. A drafter that cannot promise this declares DET, which is exact for every
    tree.

    Certificates and the suite of laws run every drafter on targets of two to eight tokens, which no trained weights fit.
    They make it by `tiny`: a drafter with weights of its own gives itself small random ones there, and names in `weights`
    the arguments that say where the trained ones lie. `variants` are settings beside those of its YAML that deserve
    certificates of their own, small ones: one for each kind of tree.
    """

    weights: ClassVar[frozenset[str]] = frozenset()  # constructor arguments that choose weights and no law
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ({},)  # small settings, one for each kind of tree

    yaml_name: str | None = None  # what it is called; set by `specdec.plugins.build`
    learns: ClassVar[bool] = False  # what it proposes depends on earlier calls of generate, until `forget`

    law: SiblingLaw = SiblingLaw.DET
    chain: bool = False  # every tree is a chain
    fixed_width: bool = False  # the number of a node's children is known before its first child is drawn
    max_nodes: int = 1  # the root included; sizes the cache
    taps: tuple[Tap, ...] = ()  # which of the target's hidden states it wants

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Drafter":
        """One for a target of a few tokens, with the YAML's `arguments`, those named in `weights` replaced.

        Weights are random, the same at every call, and fit `target`: its `vocabulary`, `hidden_size`, `dtype`. `draft` is a
        language model over the same tokens, for drafters that need one. The target is a tiny transformers model or a table,
        whose hidden states, `embed` and `head` are made up and which has no layers. Raise ValueError where it cannot serve.
        """
        return cls(**arguments)

    def meet(self, target: Any) -> None:
        """Once per generate, before the prefill: settle `taps`, where they depend on the target."""

    def begin(self, target: Any, state: State) -> None:
        """Once per generate, after the prefill: check the vocabulary, forget other requests. `law` and `chain` are final
        afterwards. Raise ValueError to refuse the target."""

    def forget(self) -> None:
        """Drop what was learnt from earlier calls: cold again. For drafters that learn."""

    @abstractmethod
    def propose(self, state: State, chance: Draws) -> TokenTree:
        """One tree per row, no deeper than room - 1. An empty tree is a fair answer. `state` is only read, and all
        chance comes from `chance`."""


class Verifier(ABC):
    """Decides which path survives. The class docstring's first line states the guarantee."""

    laws: ClassVar[frozenset[SiblingLaw]]
    lossless: ClassVar[bool] = True
    needs_fixed_width: ClassVar[bool] = False
    chain_only: ClassVar[bool] = False
    zero_temperature_only: ClassVar[bool] = False
    coupled: ClassVar[bool] = False  # also exact under coupled chance
    max_vocabulary: ClassVar[int | None] = None
    yaml_name: str | None = None  # what it is called; set by `specdec.plugins.build`

    @abstractmethod
    def verify(self, trees: TokenTree, laws: "Laws", chance: Draws) -> Verdict:
        """The accepted path and the bonus token of every row. Neither trees nor laws are edited."""
