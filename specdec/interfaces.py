"""The contracts. A drafter proposes, a language model scores, a verifier decides. None of them
knows the others.

Letters: B rows (seats), b rows of one call, N nodes, n nodes of one pass, V vocabulary, D depth,
T tokens, K taps, d hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Module

from specdec.chance import Chance, Draws
from specdec.errors import Refused, did_you_mean, integer
from specdec.measuring.chosen import Chosen
from specdec.pricing.costs import Costs
from specdec.pricing.decision import Decision
from specdec.probs import Laws
from specdec.sampling import Sampling
from specdec.state import State, Verdict
from specdec.tree import SiblingLaw, TokenTree

Tap = int | str
"""A hidden state of the target: k = the stream entering layer k, "head" = the LM head's input
after the final norm."""


class Scores(NamedTuple):
    """What one forward pass says about the nodes of a tree, or about tokens that were read."""

    logits: Float[Tensor, "B n V"]
    taps: Float[Tensor, "B n K d"] | None  # the hidden states that were asked for


# ------------------------------------------------------------------------------ language models


Compile = bool | Literal["require"] | None
"""Whether passes are compiled. "require": an error where they cannot be; None: not said, which is
no, or for a draft model what its target does."""


Layout = Literal["contiguous", "paged"]
Kept = Literal["model", "int8"]


@dataclass(frozen=True)
class KV:
    """How a session keeps keys and values.

    layout  "contiguous": every row has room for the longest text; "paged": pages of a pool
    page    tokens of a page
    pages   of the pool; None: it grows
    dtype   "model": as the model computes them; "int8": 8 bits, with a scale per token and head
    among   sessions of one model that are opened with this object have one pool between them

    Raises ValueError for other values, and for pages of a contiguous layout.
    """

    layout: Layout = "contiguous"
    page: int = 16
    pages: int | None = None
    dtype: Kept = "model"
    among: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def asked(cls, value: "KV | str | None") -> "KV":
        """What `specdec.load` takes: a KV, a layout or a dtype by name, or None for the default.

        Raises ValueError for anything else.
        """
        if value is None:
            return cls()
        if isinstance(value, KV):
            return value
        names = [*get_args(Layout), *get_args(Kept)]
        if value not in names:
            hint = did_you_mean(value, names) if isinstance(value, str) else ""
            raise ValueError(f"kv must be a KV or one of {names}, got {value!r}{hint}")
        if value in get_args(Layout):
            return cls(layout=value)  # type: ignore[arg-type]
        return cls(dtype=value)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        for name, value, kind in (("layout", self.layout, Layout), ("dtype", self.dtype, Kept)):
            known = get_args(kind)
            if value not in known:
                hint = did_you_mean(value, known) if isinstance(value, str) else ""
                raise ValueError(f"{name} of kv must be one of {known}, got {value!r}{hint}")
        integer("page of kv", self.page, 1)
        if self.pages is not None:
            integer("pages of kv", self.pages, 1)
            if self.layout == "contiguous":
                raise ValueError(
                    f"kv has pages={self.pages} and layout='contiguous'; pages are those of "
                    "layout='paged'"
                )


class CompiledPass(NamedTuple):
    """What was compiled: a pass of so many nodes, rows, and slots of memory; or a whole draft of up
    to so many nodes, in several passes."""

    model: str
    nodes: int
    rows: int
    slots: int
    seconds: float  # that it took
    steps: int = 1  # passes


@runtime_checkable
class Opened(Protocol):
    """One run's memory of something: the run opens it, and closes it at its end."""

    @property
    def nbytes(self) -> int: ...  # of memory held

    @property
    def forward_seconds(self) -> float: ...  # inside forward passes

    def close(self) -> None: ...


@runtime_checkable
class OpenedCompiled(Opened, Protocol):
    """Memory for passes that may be compiled."""

    @property
    def compiled(self) -> Sequence[CompiledPass]: ...  # what was compiled for it

    def reserve(self, slots: int) -> None:
        """So many tokens per row are to come, the nodes of a tree included. Compiled passes are
        made for a size of memory; without it the memory grows with the texts, through several."""


@runtime_checkable
class OpenedPages(Opened, Protocol):
    """A drafter's memory in pages."""

    reach: int  # slots behind a text that its drafter may write; set by the drafter

    @property
    def token_bytes(self) -> int: ...  # that it keeps of a token

    @property
    def spared(self) -> int: ...  # pages that rows would hold besides, if none were shared

    def release(self, rows: Sequence[int]) -> None:
        """Empty these rows."""


class Session(Opened, Protocol):
    """One run's memory of one language model, for B rows. A context manager.

    Only the session knows where a token is stored. Per row it remembers the committed tokens, and
    after them the nodes of the one tree that is being scored.
    """

    @property
    def part_seconds(self) -> float: ...  # inside drafting passes of parts of the model

    def read(
        self,
        tokens: Int[Tensor, "b T"],
        counts: Sequence[int],
        rows: Sequence[int] | None = None,
        taps: tuple[Tap, ...] = (),
        root: bool = False,
        every: bool = False,
    ) -> Scores:
        """Commit the first `counts` tokens of some rows (None: of all): a prompt, or tokens that a
        draft model has not seen. Logits (b, 1, V) follow each row's last token; taps cover all T.

        root: each row's last token is the root of the coming tree, whose nodes >= 1 are scored.
        every: logits (b, T, V) follow all T.
        """

    def score(self, tree: TokenTree, start: int = 0, taps: tuple[Tap, ...] = ()) -> Scores:
        """Logits and taps of nodes >= start in one forward pass; earlier ones are in memory."""

    def keep(self, path: np.ndarray, counts: Sequence[int]) -> None:
        """Commit the root and the first `counts` nodes of `path` (B, D), and forget the rest. A
        count of -1 leaves a row as it was."""

    def release(self, rows: Sequence[int]) -> None:
        """Empty these rows."""

    def __enter__(self) -> "Session": ...

    def __exit__(self, *_: object) -> None: ...


@runtime_checkable
class Rewinds(Protocol):
    """A session that can take back what was committed: for draft models with another tokenizer,
    where the target's next token changes how the last ones are written."""

    def rewind(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Forget what was committed after the first `lengths[i]` tokens of these rows, and the
        tree."""


class PageUse(NamedTuple):
    """Of a pool of pages, at the moment."""

    pages: int
    in_use: int  # held by a row
    shared: int  # held by several rows
    cached: int  # held by no row, and kept for their text
    peak: int  # held at the same time, at most so far
    evicted: int  # so far: were cached, and were given to other texts
    adopted: int  # tokens so far that rows took over instead of reading them


@runtime_checkable
class Paged(Protocol):
    """A session whose memory is pages of a pool.

    In a pool of a given number of pages, a row holds a text from `adopt` (of anything, also of no
    tokens) or `read` on, until it is released. Other rows get no pages, and what is scored in them
    is padding.
    """

    @property
    def page(self) -> int: ...  # tokens of a page

    @property
    def pages(self) -> int: ...  # of the pool

    @property
    def free(self) -> int: ...  # pages, those that are only kept for their text included

    @property
    def page_use(self) -> PageUse: ...

    def pages_for(self, tokens: int) -> int:
        """Pages of a row of so many tokens."""

    def lacking(self, rows: Sequence[int], nodes: int) -> int:
        """Pages that must become free before each of these rows can score a tree of `nodes` nodes,
        and every other row that holds a text its root."""

    def adopt(self, row: int, tokens: Sequence[int], taps: tuple[Tap, ...] = ()) -> int:
        """An empty row takes over what is known of the beginning of a text. Returns how many of its
        first tokens are committed now: 0 where taps are wanted, which are not kept."""

    def check_integrity(self) -> None:
        """For tests: what must hold between passes."""


@runtime_checkable
class LanguageModel(Protocol):
    """Weights. The memory of a run is in a session; any number of sessions may be open at once."""

    @property
    def name(self) -> str: ...  # for messages

    @property
    def vocabulary(self) -> int: ...

    @property
    def context(self) -> int: ...  # the largest position + 1

    @property
    def hidden_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def tokenizer(self) -> Any: ...  # None where prompts are ids

    @property
    def extra_layers(self) -> int: ...  # layers that change nothing (`specdec.load`)

    def open(self, rows: int, slots: int) -> Session:
        """Memory for `rows` texts of up to `slots` tokens, the nodes of a tree included."""


@runtime_checkable
class CompilableModel(LanguageModel, Protocol):
    """A model whose passes can be compiled."""

    @property
    def compile(self) -> Compile: ...

    def open(self, rows: int, slots: int, compile: Compile = None) -> Session:
        """compile: instead of the model's own setting."""


@runtime_checkable
class ShardedModel(LanguageModel, Protocol):
    """A model that several processes may hold between them (`specdec.ranks`)."""

    @property
    def ranks(self) -> int: ...  # how many; 1: this process has all of it


@runtime_checkable
class KeepsKV(LanguageModel, Protocol):
    """A model whose sessions keep keys and values as they are asked to."""

    @property
    def kv(self) -> KV: ...  # its own setting

    def open(self, rows: int, slots: int, compile: Compile = None, kv: KV | None = None) -> Session:
        """compile, kv: instead of the model's own settings."""

    def with_kv(self, kv: KV) -> "KeepsKV":
        """The same weights with another setting."""

    def bytes_per_token(self, kv: KV | None = None) -> int:
        """Of a session's memory."""


@runtime_checkable
class LendsHead(LanguageModel, Protocol):
    """A model whose embedding and LM head drafters may share."""

    def embed(self, tokens: Int[Tensor, "..."]) -> Float[Tensor, "... d"]: ...

    def final_norm(self, stream: Tensor) -> Tensor | None:
        """The tap "head" of a stream (..., d). None if the model does not show how it makes it."""

    @property
    def head_weight(self) -> Tensor: ...  # (V, d)

    def head(self, states: Tensor) -> Tensor: ...  # logits (..., V) of taps "head" (..., d)

    def check_head(self) -> None:
        """Raise ValueError if the model does more between the tap "head" and its logits than `head`
        does."""


class PartScores(NamedTuple):
    """What a pass of some of a model's layers says about the nodes of a tree."""

    logits: Float[Tensor, "B n V"]
    states: Float[Tensor, "B n d"]  # the stream that leaves the last of these layers


@runtime_checkable
class Part(Protocol):
    """Some of a model's layers, run over that model's own memory. What they write there for the
    nodes of a tree is scratch until all layers have run."""

    def score(
        self, memory: Any, tree: TokenTree, start: int = 0, last_only: bool = False
    ) -> PartScores:
        """Score nodes >= start, over a session of the whole model. `last_only`: the logits are not
        read, so all but the last may be left out."""

    def hand_over(
        self, memory: Any, tree: TokenTree, states: Tensor, source: Tensor | None = None
    ) -> None:
        """Every node of `tree` has gone through these layers, with `states` (B, N, d); scoring the
        tree continues from there. source (B, N): the number under which each node was scored."""


@runtime_checkable
class LendsLayers(LanguageModel, Protocol):
    """A model whose own layers may draft for it."""

    @property
    def layers(self) -> int: ...

    def without(self, attention: Collection[int], mlp: Collection[int]) -> Part:
        """The model without the attention and MLP sublayers of these layers. Raises ValueError for
        sets that leave no layer, and for models that cannot run without these sublayers."""

    def lower(self, layer: int, adapter: Module | None = None) -> Part:
        """The first `layer` layers, an optional adapter, the final norm and the LM head. Raises
        ValueError for models that cannot continue from saved states."""


class Excerpt(Opened, Protocol):
    """Some of the tokens that a session has in memory, copied together: passes over the excerpt
    read no others. It is a run's own, for B rows.

    Of a text of up to `budget` tokens it has all. Of a longer one it has those that were chosen,
    as many as were agreed on, and the last ones up to `budget`.
    """

    @property
    def budget(self) -> int: ...

    def score(self, memory: Any, tree: TokenTree, start: int = 0) -> Float[Tensor, "B n V"]:
        """Logits of nodes >= start, over a session of the whole model. At the root, first copy what
        was committed since. For every live row longer than `budget`, tokens must have been
        chosen."""

    def weights(self, memory: Any, tokens: Int[Tensor, "B n"]) -> list[Float[Tensor, "B H T"]]:
        """How much each row's last n tokens in memory attend to each token there, for each layer
        and KV head; `tokens` are these n. What is past a row's tokens is arbitrary."""

    def choose(self, memory: Any, rows: Sequence[int], positions: Sequence[Tensor]) -> None:
        """These tokens of rows b are chosen, all of them before the row's last ones: positions
        (b, H, C) for each layer, or once for all; H is 1 where heads have the same."""

    def release(self, rows: Sequence[int]) -> None:
        """Empty these rows."""


@runtime_checkable
class LendsMemory(LanguageModel, Protocol):
    """A model that may draft for itself from a part of its memory."""

    @property
    def shows_weights(self) -> bool: ...  # whether its excerpts can say what tokens attend to

    def excerpt(self, rows: int, chosen: int, recent: int, nodes: int) -> Excerpt:
        """Room for `chosen` tokens, the `recent` last ones, and the nodes of a tree."""


def compile_of(target: LanguageModel) -> Compile:
    """Whether the target's passes are compiled."""
    return target.compile if isinstance(target, CompilableModel) else None


def kv_of(target: LanguageModel) -> KV:
    """How the target's sessions keep keys and values."""
    return target.kv if isinstance(target, KeepsKV) else KV()


def open_beside(target: LanguageModel, model: LanguageModel, rows: int) -> Session:
    """Memory of a draft model, which grows with the texts. Its passes are compiled if the target's
    are, unless the draft model was loaded with a setting of its own; it is paged if the target's
    is, with as many pages, and keeps numbers as the draft model was loaded."""
    options: dict[str, Any] = {}
    if isinstance(model, CompilableModel) and model.compile is None:
        options["compile"] = compile_of(target)
    kv = kv_of(target)
    if kv.layout == "paged" and isinstance(model, KeepsKV):
        options["kv"] = replace(kv, dtype=model.kv.dtype)
    return model.open(rows, 0, **options)


def lends_head(target: LanguageModel, borrower: str) -> LendsHead:
    """The target, if it lends its embedding and LM head. Raises ValueError if it does not."""
    if not isinstance(target, LendsHead):
        raise ValueError(
            f"{borrower} shares the target's embedding and LM head and reads its hidden states; "
            f"{type(target).__name__} offers none, load a transformers model"
        )
    return target


def lends_layers(target: LanguageModel, borrower: str) -> LendsLayers:
    """The target, if its layers may draft. Raises ValueError if it does not expose its layers, and
    Refused for extra layers: a part without them would be the whole target at a fraction of its
    cost."""
    if not isinstance(target, LendsLayers):
        raise ValueError(
            f"{borrower} drafts with the target's own layers; {type(target).__name__} gives no "
            "access to any, load a transformers model"
        )
    if target.extra_layers:
        raise Refused(
            f"{borrower} drafts with the target's own layers, and this target has "
            f"{target.extra_layers} extra layers that change nothing: leaving them out would cost "
            "no agreement, a speed-up that says nothing. Load it with extra_layers=0"
        )
    return target


def lends_memory(target: LanguageModel, borrower: str) -> LendsMemory:
    """The target, if it drafts from a part of its memory. Raises ValueError if it does not."""
    if not isinstance(target, LendsMemory):
        raise ValueError(
            f"{borrower} drafts with the target over a part of its memory; {type(target).__name__} "
            "gives no access to it, load a transformers model"
        )
    return target


# ------------------------------------------------------------------------------------- drafters


class Drafter(ABC):
    """Proposes a tree per row. One file, one class, one YAML.

    An object holds settings and weights. The memory of a run is made in `begin`, which is called on
    the run's own copy of the object, so one object serves any number of runs at once. A drafter
    without memory overrides only `propose`.

    A law other than DET is a promise: every token was drawn fresh from the recorded q after the
    decision to draw it, and was never removed or reordered afterwards. A drafter that cannot
    promise this declares DET, which is safe for every tree. At temperature 0 nothing is drawn, so
    the law is DET.

    Certificates and the suite of laws run every drafter on targets with a vocabulary of two to
    eight tokens. No trained weights fit such targets, so they build the drafter with `tiny`.
    `variants` are small settings, besides those of its YAML, that need separate certificates: one
    for each kind of tree.
    """

    weight_arguments: ClassVar[frozenset[str]] = frozenset()  # arguments that only choose weights
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    yaml_name: str | None = None  # what it is called; set by `specdec.plugins.build`
    # proposals depend on earlier runs, until `forget`, or on other rows of the same run
    learns: bool = False

    law: SiblingLaw = SiblingLaw.DET
    other_laws: frozenset[SiblingLaw] = frozenset()  # that the trees of some rounds have instead
    looks_up: bool = False  # its drafts are looked up: asking takes next to nothing
    careful: bool = False  # runs under a bank (`no_harm`), unless the call says False
    chain: bool = False  # every tree is a chain
    fixed_width: bool = False  # a node's number of children is known before the first is drawn
    max_nodes: int = 1  # root included; sizes memory and masks
    taps: tuple[Tap, ...] = ()  # which of the target's hidden states it wants
    runners_up: int = 0  # how many of the best tokens of the root's own law it wants to know
    best_tokens: int = 0  # how many best tokens after every node and every token of a prompt

    opened: Sequence[Opened] = ()
    """Set in `begin`: sessions and memories of this run. The loop closes them at the end."""

    aside: Tensor | None = None
    """Set in `propose`, if the drafter wants some of its own numbers on the host: integers (B, n),
    read together with the verdict. `observe` finds them in `state.last.aside`."""

    expected: Sequence[float] | None = None
    """Set in `propose`, if the drafter knows it: how many accepted tokens it expects from each
    row's tree. Used by a drafter that chooses between others."""

    chosen: Chosen | None = None
    """Set in `propose`, by what chooses whether rounds have drafts, and whose: recorded with the
    round's step."""

    shares: Sequence[Sequence[float]] | None = None
    """Set in `propose`, if the drafter knows it: for each row and drafted node, how often the node
    followed its parent before. Used by a drafter that prunes others' trees."""

    decision: Decision | None = None
    """Set in `propose`, by a drafter that decides by costs: what it expects of the round. Recorded
    with the round's step."""

    costs: Costs | None = None
    """Set in `begin`, by a drafter that decides by costs: the table. The report then says what
    would pay."""

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "Drafter":
        """A drafter for a target of a few tokens, with the YAML's `arguments`, except that those
        named in `weight_arguments` are replaced.

        Weights are random, the same at every call, and fit `target`: its `vocabulary`,
        `hidden_size`, `dtype`. `draft` is a language model over the same tokens. The target is a
        tiny transformers model or a table, whose hidden states, embedding and head are made up.
        Raise ValueError if the drafter cannot run on it.
        """
        return cls(**arguments)

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        """Called once per run, before the prefill, on the run's own copy: check the vocabulary,
        settle `taps`, open sessions. `law`, `chain` and `max_nodes` are final afterwards. Raise
        ValueError to refuse the target."""

    def enter(self, rows: Sequence[int], state: State) -> None:
        """These seats hold new requests, already prefilled. For them, `state.last.taps` and `.best`
        cover the whole prompt except its last token."""

    @abstractmethod
    def propose(self, state: State, chance: Draws) -> TokenTree:
        """One tree per row, no deeper than room - 1. An empty tree is allowed. Do not write to
        `state`; take all randomness from `chance`."""

    def observe(self, state: State) -> None:
        """Called after every commit, including a row's last. A drafter that learns does it here.

        A drafter inside another one may be left out of rounds: then `propose` was not called since
        the last commit, and `state.last.drafted` is 0 everywhere."""

    def leave(self, rows: Sequence[int]) -> None:
        """The requests in these seats have ended, or have lost them for a while: then they enter
        again, with what they have added so far as a part of their prompt."""

    def forget(self) -> None:
        """Drop what was learnt from earlier runs: cold again. For drafters that learn."""

    def account(self) -> dict[str, dict[str, Any]]:
        """For the report of a run: what was decided in it, by the name of what decides; plain
        numbers, and under "says" a sentence. Called on the run's own copy."""
        return {}

    def settings_in_effect(self) -> dict[str, Any]:
        """For the record of a run: the effective values of constructor arguments whose default or
        `null` was resolved to something else."""
        return {}


# ------------------------------------------------------------------------------------ verifiers


class Verifier(ABC):
    """Decides which path survives. The class docstring's first line states the guarantee."""

    laws: ClassVar[frozenset[SiblingLaw]]  # sibling laws for which it is exact
    lossless: ClassVar[bool] = True
    needs_fixed_width: ClassVar[bool] = False
    chain_only: ClassVar[bool] = False
    zero_temperature_only: ClassVar[bool] = False
    coupled: ClassVar[bool] = False  # also exact under coupled chance
    max_vocabulary: ClassVar[int | None] = None
    yaml_name: str | None = None  # what it is called; set by `specdec.plugins.build`

    def settled(self, drafter: Drafter, sampling: Sampling, chance: Chance) -> "Verifier":
        """The rule for a run of this drafter, after its `begin`. `auto` chooses one here."""
        return self

    @abstractmethod
    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        """The accepted path and the bonus token of every row; p: the target's laws. Do not edit
        trees or laws. Do not read from the device: every level has a fixed shape (B, V), and
        finished rows are masked."""
