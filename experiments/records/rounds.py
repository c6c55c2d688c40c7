"""Rounds of a shape under a rule, over every tree of a record: the production rule, in large
batches.

Letters: T trees, M nodes, A alphabet, D depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from experiments.records.folder import Batch
from experiments.records.laws import Alphabets, Cut, Nodes, alphabets, nodes_of
from experiments.records.shapes import Selected, WideTrees
from specdec import Laws, Sampling, State, TokenTree, Verifier
from specdec.chance import Draws, Keyed, Sites
from specdec.drafting.shape import Shape
from specdec.interfaces import Drafter
from specdec.pairing import pair
from specdec.tree import SiblingLaw, Structure, host_depths

AT_ONCE = 1 << 23  # numbers of p in a batch of trees
SEED = 0x5EED  # so that coins are none of those that drew the texts and the trees
PLAIN = ("greedy", "naive")  # rules that look at p of children only


class Shaped(Drafter):
    """What a rule must know of the drafter of recorded trees. It proposes nothing."""

    def __init__(self, name: str, shape: Shape, greedy: bool, law: SiblingLaw) -> None:
        self.yaml_name = name
        self.chain, self.fixed_width = shape.chain, shape.fixed_width
        self.max_nodes = shape.max_nodes
        self.law = SiblingLaw.DET if greedy else law

    def propose(self, state: State, chance: Draws) -> TokenTree:
        raise ValueError("recorded trees are replayed, not drafted")


def rule_of(
    verifier: str | Mapping[str, Any], drafter: Drafter, temperature: float, vocabulary: int
) -> Verifier:
    """The rule for these trees. Raises Refused for one that is not exact for them, or lossy."""
    chosen: Any = verifier if isinstance(verifier, str) else dict(verifier)
    return pair(drafter, chosen, Sampling(temperature), Keyed(0), vocabulary, False)


@dataclass(frozen=True, eq=False)
class Judged:
    """A round at every recorded tree of a batch."""

    text: np.ndarray  # (T,)
    position: np.ndarray  # (T,)
    parents: np.ndarray  # (T, M)
    path: np.ndarray  # (T, D) accepted nodes, padded with -1
    rest: np.ndarray  # (T,) mass of p that is cut off, mean over the root and accepted nodes

    @property
    def accepted(self) -> np.ndarray:
        """(T,)"""
        counts: np.ndarray = (self.path >= 0).sum(1)
        return counts


class Paths(NamedTuple):
    path: np.ndarray  # (T, D) accepted nodes, padded with -1
    rest: np.ndarray  # (T,)
    odds: np.ndarray  # (T,) of the following token: its share in the bonus law / p


class Following(NamedTuple):
    """The tokens that texts go on with, each behind a node of a tree."""

    node: Tensor  # (T,)
    place: Tensor  # (T,) of the token in the node's alphabet; -1: among what is cut off

    def rows(self, part: slice) -> "Following":
        return Following(self.node[part], self.place[part])

    def odds(self, given: Alphabets, bonus: Tensor) -> np.ndarray:
        """(T,) chance of the token in the law of the bonus (T, A) / in p at the node."""
        width = given.p.shape[2]
        place = torch.where(self.place < 0, width - 2, self.place)[:, None]
        p = given.p[torch.arange(len(place)), self.node].gather(1, place)[:, 0]
        share = bonus.gather(1, place)[:, 0] / bonus.sum(1).clamp(min=1e-30)
        found: np.ndarray = torch.where(p > 0, share / p, 0.0).double().numpy()
        return found


class Seen(Draws):
    """Another's draws; the laws (T, A) that bonus tokens were drawn from are kept."""

    by_place = True

    def __init__(self, inner: Draws, rows: int, width: int) -> None:
        self.inner, self.bonus = inner, torch.zeros(rows, width)

    def bernoulli(self, p: Tensor, at: Sites, purpose: str) -> Tensor:
        return self.inner.bernoulli(p, at, purpose)

    def categorical(self, law: Tensor, at: Sites, purpose: str) -> Tensor:
        if purpose == "bonus":
            rows = at.rows[at.live]
            self.bonus[rows] = law[at.live].float()
        return self.inner.categorical(law, at, purpose)

    def without_replacement(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self.inner.without_replacement(law, k, at, purpose)

    def independent(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self.inner.independent(law, k, at, purpose)


@dataclass(frozen=True)
class Judge:
    """A rule for trees whose siblings were drawn by `law`. certain: p is 1 at one token, as at
    temperature 0. seed: of the rule's coins."""

    rule: Verifier
    law: SiblingLaw
    certain: bool
    seed: int = 0
    cut: Cut = Cut.UNDER

    def __call__(self, batch: Batch, trees: WideTrees, selected: Selected) -> Judged:
        nodes = nodes_of(trees, selected)
        keys = keys_of(batch, trees)
        found = self.paths(batch, nodes, selected.frame, keys)
        return Judged(trees.text, trees.position, selected.parents, found.path, found.rest)

    @torch.inference_mode()
    def paths(
        self,
        batch: Batch,
        nodes: Nodes,
        frame: tuple[int, ...] | None,
        keys: np.ndarray,
        purpose: int = 0,
        following: Following | None = None,
    ) -> Paths:
        """purpose: another one has other coins at the same keys."""
        laws = {} if self.certain else batch.laws
        many = max(1, AT_ONCE // (nodes.token.shape[1] * (_known(laws) + 4)))
        found = [
            self._part(
                laws,
                nodes.rows(part),
                frame,
                keys[part],
                purpose,
                None if following is None else following.rows(part),
            )
            for part in (slice(n, n + many) for n in range(0, len(keys), many))
        ]
        deepest = max(one.path.shape[1] for one in found)
        padded = [
            np.pad(one.path, ((0, 0), (0, deepest - one.path.shape[1])), constant_values=-1)
            for one in found
        ]
        others = (np.concatenate([one[column] for one in found]) for column in (1, 2))
        return Paths(np.concatenate(padded), *others)

    def _part(
        self,
        laws: Mapping[str, np.ndarray],
        nodes: Nodes,
        frame: tuple[int, ...] | None,
        keys: np.ndarray,
        purpose: int,
        following: Following | None,
    ) -> Paths:
        given = alphabets(nodes, laws, self.cut)
        rows, cpu = len(keys), torch.device("cpu")
        if frame is not None:
            whole = bool(nodes.there.all())
            structure = Structure.shared(frame, rows, cpu, None if whole else nodes.there)
        else:
            deepest = int(host_depths(nodes.parents.numpy()).max(initial=0))
            structure = Structure.of(nodes.parents, cpu, depth=deepest)
        law = SiblingLaw.DET if self.certain else self.law
        tree = TokenTree(given.tokens, structure, law, None if law is SiblingLaw.DET else given.q)
        state = State.of([[0]] * rows, Sampling(0.0 if self.certain else 1.0))
        state = replace(state, request_ids=torch.from_numpy(keys))
        p = Laws(given.p if self.certain else given.p.log(), tree, state)
        seen = Seen(Keyed(SEED + self.seed + (purpose << 32)).round(state), rows, given.p.shape[2])
        verdict = self.rule.verify(tree, p, seen)
        if bool(p.faulty.any()):
            raise ValueError("a recorded law is none; the record is broken, record again")
        path = verdict.path.numpy()
        along = np.concatenate([np.zeros((rows, 1), dtype=np.int64), path], 1)
        mass = np.take_along_axis(given.rest.numpy(), along.clip(0), 1)
        inner = (along >= 0) & (mass > 0)
        rest = np.where(inner, mass, 0).sum(1) / np.maximum(inner.sum(1), 1)
        odds = np.ones(rows) if following is None else following.odds(given, seen.bonus)
        return Paths(path, rest, odds)


def _known(laws: Mapping[str, np.ndarray]) -> int:
    return laws["law_tokens"].shape[1] if laws else 0


def keys_of(batch: Batch, trees: WideTrees) -> np.ndarray:
    """(T,) one key for each prompt, turn and position, so that no two rounds share a coin."""
    number = np.array([text.prompt << 40 | text.turn << 32 for text in batch.texts], dtype=np.int64)
    return number[trees.text] | trees.position.astype(np.int64)
