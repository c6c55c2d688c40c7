"""Trained heads: small modules that a drafter adds to a target. A head is trained for one target
and useless without it.

The config holds the arguments of a head's class, including the taps that it reads, so that a loaded
head uses exactly the settings it was trained with. Each head class reads the layouts that others
publish (`from_published`) and converts them in memory.

Letters: B rows, T tokens, K taps, d hidden size, V vocabulary, V' a head's own.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from specdec.drafting.rank_tree import RankTree
from specdec.heads import speculators
from specdec.heads.files import Published, fill, folder_of, read_folder, write_folder
from specdec.heads.marks import Mark, check_mark
from specdec.heads.packing import Documents
from specdec.interfaces import LanguageModel, LendsHead, LendsLayers, Tap
from specdec.models.kept import kept
from specdec.plugins import construct
from specdec.state import State

EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"  # of the target, in published files
# errors that hand-written settings may raise
UNFIT = (ValueError, TypeError, KeyError, AttributeError, RuntimeError)
AnyHead = TypeVar("AnyHead", bound="Head")


class Guess(NamedTuple):
    """A head's prediction for one step ahead, in training: logits[:, j] predict the law at position
    j + offset of the text, which is the law of token j + offset + 1."""

    logits: Tensor  # (B, T', V'), V' fewer than V for a head with a vocabulary of its own
    offset: int
    # (B, T', d) its guess at the target's "head" state, if it makes one
    states: Tensor | None = None
    # (B, T') positions that stand for j, if the head guesses at some of them only
    anchors: Tensor | None = None
    # (B, T') logits of its guess at the share of its drafts that is accepted, if it makes one
    confidence: Tensor | None = None

    def counts(self, documents: Documents) -> Tensor:
        """(B, T') bool: guesses about the document that they were made in."""
        length = self.logits.shape[1]
        anchors = self.anchors
        if anchors is None:
            rows = documents.number.shape[0]
            anchors = torch.arange(length, device=documents.number.device).expand(rows, -1)
        number, truth = documents.number, anchors + self.offset
        ended = documents.ends.gather(1, truth)  # what follows is another document
        return (number.gather(1, anchors) == number.gather(1, truth)) & ~ended

    def truth(self, values: Tensor) -> Tensor:
        """(B, T', ...) of values (B, T, ...) at the positions whose law is predicted."""
        if self.anchors is None:
            return values[:, self.offset : self.offset + self.logits.shape[1]]
        rows = torch.arange(len(values), device=values.device)[:, None]
        return values[rows, self.anchors + self.offset]


class Head(nn.Module):
    """A module that can be written and read. `settings` are the JSON arguments that make it
    again."""

    kind: ClassVar[str]
    settings: dict[str, Any]
    hidden_size: int
    vocabulary: int  # the target's
    taps: tuple[Tap, ...]
    """Which of the target's hidden states it reads; empty where a file leaves that to the
    target."""

    shared: Mapping[str, Tensor] = MappingProxyType({})
    """Rows of what its file holds of the target's own: `check_target` compares them."""

    notes: Mapping[str, Any] = MappingProxyType({})
    """What training wrote beside the settings, such as the accuracies that static trees are built
    from; under "target", the mark of the target that it was trained for (`specdec.heads.marks`)."""

    target_layers: int | None = None
    """How many layers its target has, where its file says it."""

    from_file: bool = False  # loaded; else made here, and then known to fit

    apart: bool = False
    """In training: documents that share a window do not see one another
    (`specdec.heads.packing`)."""

    @property
    def token_ids(self) -> Tensor | None:
        """(V',) the target's ids of its own vocabulary, where that is a part of the target's."""
        return None

    def taps_for(self, target: LanguageModel) -> tuple[Tap, ...]:
        """`taps`, or the default for this target if the file names none."""
        return self.taps

    def on(self, device: torch.device, dtype: torch.dtype) -> Self:
        """This head on `device` and in `dtype`: itself, or a copy that all runs share."""
        first = next(self.parameters())
        if (first.device, first.dtype) == (device, dtype):
            return self
        with _lock:
            versions = tuple(weight._version for weight in self.parameters())
            copies = _copies.setdefault(self, {})
            if copies.get("versions") != versions:  # trained since
                copies.clear()
                copies["versions"] = versions
            if (device, dtype) not in copies:
                copies[device, dtype] = copy.deepcopy(self).to(device=device, dtype=dtype)
            found: Self = copies[device, dtype]
            return found

    def guesses(self, ids: Tensor, taps: Tensor, target: LendsHead) -> list[Guess]:
        """For training: what the head says about each step ahead, given ids (B, T) and the target's
        states there (B, T, K, d)."""
        raise NotImplementedError(f"{type(self).__name__} says nothing that could be trained")

    # ------------------------------------------------------------------------------------- files

    def save(self, folder: str | Path, **notes: Any) -> None:
        """Write `folder` as a whole or not at all. `notes` are kept in the config."""
        config = {"specdec_head": self.kind, "settings": self.settings, **notes}
        write_folder(folder, config, self.weights())

    @classmethod
    def load_kept(cls, name: str | Path) -> Self:
        """`load` for a drafter: one that was loaded before is shared (`specdec.models.kept`)."""
        if not isinstance(name, (str, Path)):
            return cls.load(name)
        return kept((cls, str(name)), folder_of(name), lambda: cls.load(name))

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Raises ValueError, naming keys, for anything that is not exactly a head of this kind."""
        if not isinstance(name, (str, Path)):
            raise ValueError(f"heads must be a folder or {cls.__name__}, got {type(name).__name__}")
        folder = folder_of(name)
        config, weights = read_folder(folder)
        try:
            published = cls.described(config, weights)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        try:
            head: Self = construct(f"a {cls.kind} head", cls, published.settings)
        except UNFIT as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{folder}: its settings make no {cls.kind} head ({why})") from error
        shared = published.shared
        own = {key: weight for key, weight in published.weights.items() if key not in shared}
        types = {weight.dtype for weight in own.values() if weight.is_floating_point()}
        if len(types) == 1:
            head.to(types.pop())
        fill(head.weights(), own, f"a {cls.kind} head", str(folder), published.names)
        head.target_layers = published.target_layers
        head.shared = {key: head._sample(key, published.weights[key], folder) for key in shared}
        if "specdec_head" in config:
            own_keys = ("specdec_head", "settings")
            head.notes = {key: value for key, value in config.items() if key not in own_keys}
        head.from_file = True
        return head.eval()

    @classmethod
    def described(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published:
        """What a folder holds. Raises ValueError where that is no head of this kind."""
        if config.get("specdec_head") == cls.kind:
            if not isinstance(config.get("settings"), dict):
                raise ValueError(
                    "config.json has no `settings`, the arguments that the head is made with; "
                    "write the folder again with the head's save()"
                )
            return Published(config["settings"], weights)
        published = cls.from_published(config, weights) if "specdec_head" not in config else None
        if published is None:
            said = ("specdec_head", "architectures", "model_type")
            found = next((config[key] for key in said if config.get(key)), "an unknown model")
            advice = ""
            if named := speculators.type_of(config):
                found = f"a speculators head of type {named!r}"
                advice = speculators.advice(named, cls.kind)
            raise ValueError(f"it holds {found}, expected a head of kind {cls.kind!r}{advice}")
        return published

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """What a folder in a layout that others publish holds, or None if it is no head of this
        kind. Raises ValueError for one that says what this class cannot do."""
        return None

    def to_speculators(
        self, verifier: str, architectures: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """config.json and weights in the `speculators` layout. Raises ValueError for what it has no
        place for."""
        raise ValueError(
            f"a {self.kind} head cannot be written in the speculators layout; of the heads here, "
            f"it has a place for {', '.join(speculators.ARCHITECTURES)}"
        )

    def weights(self) -> dict[str, Tensor]:
        """What belongs in the file: all of it, but for what is the target's."""
        return dict(self.state_dict())

    def _sample(self, name: str, weight: Tensor, folder: Path) -> Tensor:
        """Some rows of a (V, d) weight that is the target's."""
        expected = (self.vocabulary, self.hidden_size)
        if weight.shape != expected:
            raise ValueError(
                f"the weights in {folder} do not fit a {self.kind} head; wrong shape: {name} is "
                f"{tuple(weight.shape)}, expected {expected}, that of the target's"
            )
        return weight[spread(self.vocabulary)].clone()


_lock = threading.Lock()
_copies: WeakKeyDictionary[Head, dict[Any, Any]] = WeakKeyDictionary()


def spread(size: int, most: int = 256) -> Tensor:
    """Up to `most` numbers below `size`, evenly spread."""
    return torch.linspace(0, size - 1, min(size, most)).long()


@torch.no_grad()
def check_target(head: Head, target: LendsHead) -> None:
    """Raise ValueError, naming both sides, where a head was made for another target."""
    name = f"the {head.kind} head"
    own = {"hidden size": target.hidden_size, "vocabulary": target.vocabulary}
    trained = {"hidden size": head.hidden_size, "vocabulary": head.vocabulary}
    for what, size in trained.items():
        if own[what] != size:
            raise ValueError(
                f"{name} was trained for a {what} of {size}, the target has {own[what]}; train one "
                "for it"
            )
    layers = target.layers - target.extra_layers if isinstance(target, LendsLayers) else None
    if None not in (head.target_layers, layers) and head.target_layers != layers:
        raise ValueError(
            f"{name} was trained for a target of {head.target_layers} layers, {target.name} has "
            f"{layers}; load the target that it was trained for, or train a head for this one"
        )
    for key, rows in head.shared.items():
        ids = spread(head.vocabulary).to(target.device)
        theirs = (target.embed(ids) if key == EMBEDDING else target.head_weight[ids]).float()
        ours = rows.to(theirs)
        if not torch.allclose(ours, theirs, rtol=0.02, atol=1e-5):  # files are rounded to 16 bits
            off = float((ours - theirs).abs().max())
            raise ValueError(
                f"{name} brings {key}, which is not the target's (they differ by up to {off:.3g}): "
                "it was trained for another target or another revision of it, or with an "
                "embedding of its own. Here a head uses the target's; load the target that it "
                "names"
            )
    mark: Mark | None = head.notes.get("target")
    if mark is not None:
        check_mark(mark, target, name)


class FirstRounds:
    """Warns if none of a head's first drafted tokens is accepted. For heads whose file names no
    target: the head may belong to another one."""

    ROUNDS = 50

    def __init__(self, head: Head) -> None:
        self.head, self.left = head, self.ROUNDS
        if not head.from_file or "target" in head.notes:
            self.left = 0

    def see(self, state: State) -> None:
        """After every commit."""
        if self.left == 0 or not any(state.last.drafted or ()):
            return
        self.left = 0 if any(state.last.num_accepted) else self.left - 1
        if self.left == 0 and not any(state.last.num_accepted):
            warnings.warn(
                f"nothing that the {self.head.kind} head drafted in {self.ROUNDS} rounds was "
                "accepted, and its file does not say which target it was trained for: is it this "
                "one, with this chat template?",
                stacklevel=2,
            )


def random_head(make: Callable[[], AnyHead], dtype: torch.dtype, deviation: float = 0.5) -> AnyHead:
    """A head with random weights, the same at every call, spread widely so that its laws are far
    from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = make()
        with torch.no_grad():
            for weight in head.parameters():
                weight.normal_(std=deviation)
    return head.to(dtype).eval()


# ------------------------------------------------------------------------------- for drafters


def static_tree(
    head: Head | type[Head],
    nodes: int | None,
    tree: Sequence[Sequence[int]] | None,
    branching: Sequence[int] | None,
    depth: int,
) -> RankTree:
    """The tree that the arguments of a drafter ask for. Raises ValueError for one deeper than the
    head guesses."""
    if tree is not None and branching is not None:
        raise ValueError(
            "give the tree as `tree` (rank paths) or as `branching` (Cartesian), not both"
        )
    if tree is not None:
        found = RankTree.given(tree)
    elif branching is not None:
        found = RankTree.cartesian(branching)
    else:
        accuracies = head.notes.get("accuracies") or usual_accuracies(depth)
        found = RankTree.greedy(accuracies[:depth], 24 if nodes is None else nodes)
    if found.depth > depth:
        raise ValueError(
            f"the tree is {found.depth} deep, the {head.kind} head guesses {depth} tokens"
        )
    return found


def usual_accuracies(depth: int, ranks: int = 10) -> list[list[float]]:
    """A table (depth x rank) for heads whose file has none (training measures one). It has the
    shape measured for the bundled heads: rank r falls as 1 / (r + 1)^2, and each depth is 0.8 of
    the one above."""
    return [[0.6 * 0.8**level / (rank + 1) ** 2 for rank in range(ranks)] for level in range(depth)]


def newest_states(state: State) -> Tensor | None:
    """(B, d) the state of the token before each row's root, of the last tap. None if no row has
    any."""
    taps = state.last.taps
    if taps is None:
        return None
    accepted = torch.tensor(state.last.num_accepted, device=taps.device)
    return taps[torch.arange(len(taps), device=taps.device), accepted, -1]


def with_states(state: State) -> State:
    """The same state, with only those rows live for which a head can draft. After a prompt of one
    token there is no state before the root, so it cannot."""
    host = state.on_host
    if min(host.lengths) > 1:
        return state
    live = [live and length > 1 for live, length in zip(host.live, host.lengths, strict=True)]
    return replace(state, on_host=host._replace(live=live))
