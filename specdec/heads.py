"""Trained heads on disk: a folder with config.json and model.safetensors, written atomically and read key by key.

A head is what a drafter adds to a target: small, trained for that target, and useless without it. The config holds the arguments
of its class, the taps that it reads among them, so that a loaded head never recomputes what it was trained with. Layouts that
others publish are known to the heads themselves (`from_published`) and are converted in memory.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specdec.interfaces import State, Tap
from specdec.load import DEMO
from specdec.rank_tree import RankTree

CONFIG, WEIGHTS = "config.json", "model.safetensors"
EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"  # of the target, in published files
AnyHead = TypeVar("AnyHead", bound="Head")


def place_of(name: str | Path) -> Path:
    """The folder of a head: one that is bundled ("demo-medusa" and so on), or a path."""
    bundled = DEMO / "heads" / str(name).removeprefix("demo-")
    return bundled if str(name).startswith("demo-") and bundled.is_dir() else Path(name).expanduser()


class Published(NamedTuple):
    """What a folder holds, for a class of heads to be made of."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]  # as the file calls them
    names: Mapping[str, str] = MappingProxyType({})  # beginnings of our names -> the file's
    shared: tuple[str, ...] = ()  # weights that are the target's own: EMBEDDING, LM_HEAD


class Head(nn.Module):
    """A module that can be written and read. `settings` are the JSON arguments that make it again."""

    kind: ClassVar[str]
    settings: dict[str, Any]
    hidden_size: int
    vocabulary: int  # the target's
    taps: tuple[Tap, ...]
    """Which of the target's hidden states it reads."""

    shared: Mapping[str, Tensor] = MappingProxyType({})
    """Rows of what its file holds of the target's own: `check_target` compares them."""

    @property
    def kept(self) -> Tensor | None:
        """(V',) the target's ids of its own vocabulary, where that is a part of the target's."""
        return None

    def save(self, folder: str | Path, **notes: Any) -> None:
        """Write `folder` as a whole or not at all. `notes` are kept in the config and not read back."""
        write_folder(folder, {"specdec_head": self.kind, "settings": self.settings, **notes}, self.weights())

    @classmethod
    def load(cls, name: str | Path) -> Self:
        """Raises ValueError, naming keys, for anything that is not exactly a head of this kind."""
        if not isinstance(name, (str, Path)):
            raise ValueError(f"heads must be a folder or {cls.__name__}, got {type(name).__name__}")
        folder = place_of(name)
        config, weights = read_folder(folder)
        try:
            published = cls.from_published(config, weights) if "specdec_head" not in config else None
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        if config.get("specdec_head") == cls.kind:
            published = Published(config["settings"], weights)
        if published is None:
            said = ("specdec_head", "speculators_model_type", "architectures", "model_type")
            found = next((config[key] for key in said if config.get(key)), "an unknown model")
            raise ValueError(f"{folder} holds {found}, expected a head of kind {cls.kind!r}")
        head = cls(**published.settings)
        own = {name: weight for name, weight in published.weights.items() if name not in published.shared}
        fill(head, own, str(folder), published.names)
        head.shared = {name: samples(name, published.weights[name], head, folder) for name in published.shared}
        if "specdec_head" in config:
            head.notes = {key: value for key, value in config.items() if key not in ("specdec_head", "settings")}
        return head.eval()

    def guesses(self, ids: Tensor, taps: Tensor, target: Any) -> list["Guess"]:
        """For training: what the head says about each step ahead, given ids (B, T) and the target's states there (B, T, taps,
        d). `target` lends embed and head."""
        raise NotImplementedError

    @classmethod
    def from_published(cls, config: dict[str, Any], weights: dict[str, Tensor]) -> Published | None:
        """What a folder in a layout that others publish holds, or None if it is no head of this kind. Raises ValueError for
        one that says what this class cannot do."""
        return None

    def to_speculators(self, verifier: str, architectures: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """config.json and weights in the `speculators` layout. Raises ValueError for what it has no place for."""
        raise ValueError(f"a {self.kind} head cannot be written in the speculators layout, which is for eagle3 here")

    def meet(self, target: Any) -> None:
        """Before the prefill: settle what a file left to the target, such as `taps`."""

    notes: Mapping[str, Any] = MappingProxyType({})
    """What training wrote beside the settings, such as the accuracies that static trees are built from."""

    def weights(self) -> dict[str, Tensor]:
        """What belongs in the file: all of it, but for what is the target's."""
        return dict(self.state_dict())


def write_folder(folder: str | Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Both files, beside `folder` first and then in its place."""
    place = Path(folder)
    fresh, old = place.with_name(place.name + ".new"), place.with_name(place.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, fresh / WEIGHTS)
    (fresh / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.replace(place, old)
    os.replace(fresh, place)
    shutil.rmtree(old, ignore_errors=True)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and every safetensors file of a folder. Pickles are refused."""
    if not (folder / CONFIG).is_file():
        bundled = sorted(f"demo-{path.name}" for path in (DEMO / "heads").glob("*"))
        raise ValueError(f"no head at {folder}: a folder with {CONFIG} is expected, or one of {', '.join(bundled)}")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} must hold a JSON object, got {type(config).__name__}")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)]
        if pickles:
            raise ValueError(
                f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when it is read; convert it once, "
                "where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
            )
        raise ValueError(f"{folder} has a {CONFIG} but no weights (*.safetensors)")
    weights: dict[str, Tensor] = {}
    for path in files:
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file ({error}); copy it again") from None
    return config, weights


def fill(head: Head, weights: Mapping[str, Tensor], where: str, names: Mapping[str, str] | None = None) -> None:
    """Every weight of the head from `weights`, in its dtype, no key left over and none missing. names: beginnings of the head's
    names -> what `weights` calls them.

    The weights start as NaN, so that one which is forgotten is seen.
    """
    named = names or {}
    own = {renamed(name, named): value for name, value in head.weights().items()}
    with torch.no_grad():
        for value in own.values():
            if value.is_floating_point():
                value.fill_(torch.nan)
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    wrong = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if missing or extra or wrong:
        told = [
            f"missing: {_some(missing)}" if missing else "",
            f"not expected: {_some(extra)}" if extra else "",
            f"wrong shape: {_some(wrong)}" if wrong else "",
        ]
        raise ValueError(f"the weights in {where} do not fit a {head.kind} head; {'; '.join(filter(None, told))}")
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(kinds) == 1:
        head.to(kinds.pop())
    with torch.no_grad():
        for name, value in head.weights().items():
            value.copy_(weights[renamed(name, named)])


def renamed(name: str, names: Mapping[str, str]) -> str:
    """`name` with the first of these beginnings that it has replaced."""
    for ours, theirs in names.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def samples(name: str, weight: Tensor, head: Head, folder: Path, most: int = 256) -> Tensor:
    """Up to `most` rows, evenly spread, of a (V, d) weight that is the target's."""
    if weight.shape != (head.vocabulary, head.hidden_size):
        raise ValueError(
            f"the weights in {folder} do not fit a {head.kind} head; wrong shape: {name} is {tuple(weight.shape)}, expected "
            f"{(head.vocabulary, head.hidden_size)}, that of the target's"
        )
    return weight[spread(head.vocabulary, most)].clone()


def spread(size: int, most: int = 256) -> Tensor:
    return torch.linspace(0, size - 1, min(size, most)).long()


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def check_target(head: Head, target: Any) -> None:
    """Raise ValueError, naming both sides, where a head was made for another target."""
    name = f"the {head.kind} head"
    if not hasattr(target, "hidden_size"):
        raise ValueError(f"{name} reads the target's hidden states; {type(target).__name__} offers none")
    own = {"hidden size": target.hidden_size, "vocabulary": target.vocabulary}
    for what, size in {"hidden size": head.hidden_size, "vocabulary": head.vocabulary}.items():
        if own[what] != size:
            raise ValueError(f"{name} was trained for a {what} of {size}, the target has {own[what]}; train one for it")
    for key, rows in head.shared.items():
        ids = spread(head.vocabulary).to(target.device)
        theirs = (target.embed(ids) if key == EMBEDDING else target.head_weight[ids]).float()
        ours = rows.to(theirs)
        if not torch.allclose(ours, theirs, rtol=0.02, atol=1e-5):  # files are rounded to 16 bits
            raise ValueError(
                f"{name} brings {key}, which is not the target's (they differ by up to {float((ours - theirs).abs().max()):.3g}): "
                "it was trained for another target or another revision of it, or with an embedding of its own. Here a head uses "
                "the target's; load the target that it names"
            )


def random_head(make: Callable[[], AnyHead], dtype: torch.dtype, spread: float = 0.5) -> AnyHead:
    """A head with random weights, the same at every call, spread widely so that its laws are far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = make()
        with torch.no_grad():
            for weight in head.parameters():
                weight.normal_(std=spread)
    return head.to(dtype).eval()


class Guess(NamedTuple):
    """What a head says, while it is trained, about one step ahead: logits[:, j] are about the law at position j + offset of
    the text, the law of token j + offset + 1."""

    logits: Tensor  # (B, T', V'), V' fewer than V for a head with a vocabulary of its own
    offset: int
    states: Tensor | None = None  # (B, T', d) its guess at the target's "head" state there, if it makes one


def static_tree(
    head: Head, nodes: int | None, tree: Sequence[Sequence[int]] | None, branching: Sequence[int] | None, depth: int
) -> RankTree:
    """The tree that the arguments of a drafter ask for. Raises ValueError for one deeper than the head guesses."""
    if tree is not None and branching is not None:
        raise ValueError("give the tree as `tree` (rank paths) or as `branching` (Cartesian), not both")
    if tree is not None:
        found = RankTree.given(tree)
    elif branching is not None:
        found = RankTree.cartesian(branching)
    else:
        accuracies = head.notes.get("accuracies") or usual_accuracies(depth)
        found = RankTree.greedy(accuracies[:depth], 24 if nodes is None else nodes)
    if found.depth > depth:
        raise ValueError(f"the tree is {found.depth} deep, the {head.kind} head guesses {depth} tokens")
    return found


def usual_accuracies(depth: int, ranks: int = 10) -> list[list[float]]:
    """Depth x rank, for heads whose file has no table of its own (training measures one): the shape of those that were measured
    for the bundled heads, rank r falling as 1 / (r + 1)^2, each depth 0.8 of the one above."""
    return [[0.6 * 0.8**level / (rank + 1) ** 2 for rank in range(ranks)] for level in range(depth)]


def last_states(state: State) -> Tensor | None:
    """(B, d) the newest state of the last tap that each row has: that of the token before the root. None if no row has one."""
    taps = state.last.taps
    if taps is None:
        return None
    verdict = state.last.verdict
    newest = state.lengths - 2 if verdict is None else verdict.num_accepted.to(taps.device)
    return taps[torch.arange(len(taps), device=taps.device), newest.clamp(min=0), -1]


def has_state(state: State) -> State:
    """The same state with those rows live that a head can draft for: a prompt of one token has no state before its root."""
    host = state.on_host
    if min(host.lengths) > 1:
        return state
    live = [live and length > 1 for live, length in zip(host.live, host.lengths, strict=True)]
    return replace(state, on_host=host._replace(live=live))
