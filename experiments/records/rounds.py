"""Rounds of a shape under a rule, over every tree of a record: the production rule, in large
batches.

Letters: T trees, M nodes, A alphabet, D depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from experiments.records.folder import Batch
from experiments.records.laws import Cut, alphabets
from experiments.records.shapes import Selected, WideTrees
from specdec import Laws, Sampling, State, TokenTree, Verifier
from specdec.chance import Draws, Keyed
from specdec.drafting.shape import Shape
from specdec.interfaces import Drafter
from specdec.pairing import pair
from specdec.tree import SiblingLaw, Structure

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
    accepted: np.ndarray  # (T,)
    rest: np.ndarray  # (T,) mass of p that is cut off, mean over the root and accepted nodes


@torch.inference_mode()
def judge(
    batch: Batch,
    trees: WideTrees,
    selected: Selected,
    rule: Verifier,
    law: SiblingLaw,
    greedy: bool,
    seed: int = 0,
    cut: Cut = Cut.UNDER,
) -> Judged:
    """`law`: how the siblings of these trees were drawn. seed: of the rule's coins."""
    nodes = selected.numbers.shape[1]
    known = batch.laws["law_tokens"].shape[1] if batch.laws else 0
    many = max(1, AT_ONCE // (nodes * (known + 4)))
    found = [
        _part(batch, trees, selected, slice(first, first + many), rule, law, greedy, seed, cut)
        for first in range(0, len(trees), many)
    ]
    paths, rests = zip(*found, strict=True)
    path = np.concatenate(paths)
    return Judged(
        trees.text,
        trees.position,
        selected.parents,
        path,
        (path >= 0).sum(1),
        np.concatenate(rests),
    )


def _part(
    batch: Batch,
    trees: WideTrees,
    selected: Selected,
    part: slice,
    rule: Verifier,
    law: SiblingLaw,
    greedy: bool,
    seed: int,
    cut: Cut,
) -> tuple[np.ndarray, np.ndarray]:
    """(t, D) accepted paths, and (t,) the mass that is cut off along them."""
    given = alphabets(trees, selected, batch.laws, part, cut)
    rows, nodes = given.tokens.shape
    parents = torch.from_numpy(selected.parents[part])
    cpu = torch.device("cpu")
    if selected.frame is not None:
        used = (parents >= 0).index_fill(1, torch.tensor([0]), True)
        structure = Structure.shared(
            selected.frame, rows, cpu, None if bool(used.all()) else used
        )
    else:
        structure = Structure.of(parents, cpu, depth=int(_depths(trees, selected, part).max()))
    tree = TokenTree(given.tokens, structure, law, None if law is SiblingLaw.DET else given.q)
    state = State.of([[0]] * rows, Sampling(0.0 if greedy else 1.0))
    state = replace(state, request_ids=torch.from_numpy(_keys(batch, trees, part)))
    laws = Laws(given.p if greedy else given.p.log(), tree, state)
    verdict = rule.verify(tree, laws, Keyed(SEED + seed).round(state))
    if bool(laws.faulty.any()):
        raise ValueError("a recorded law is none; the record is broken, record again")
    path, depth = verdict.path.numpy(), structure.depth
    whole = np.full((rows, max(depth, path.shape[1])), -1, dtype=np.int64)
    whole[:, : path.shape[1]] = path
    along = np.concatenate([np.zeros((rows, 1), dtype=np.int64), whole], 1)
    mass = np.take_along_axis(given.rest.numpy(), along.clip(0), 1)
    inner = (along >= 0) & (mass > 0)
    return whole, np.where(inner, mass, 0).sum(1) / np.maximum(inner.sum(1), 1)


def _depths(trees: WideTrees, selected: Selected, part: slice) -> np.ndarray:
    numbers = selected.numbers[part]
    depths = np.take_along_axis(trees.columns["depth"][part], numbers.clip(0), 1)
    return np.where(numbers >= 0, depths, 0)


def _keys(batch: Batch, trees: WideTrees, part: slice) -> np.ndarray:
    """(t,) one key for each prompt, turn and position, so that no two rounds share a coin."""
    number = np.array([text.prompt << 40 | text.turn << 32 for text in batch.texts], dtype=np.int64)
    return number[trees.text[part]] | trees.position[part].astype(np.int64)
