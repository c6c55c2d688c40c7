"""Trees grown inside a whole draft (`specdec.models.whole`): what of a state and of its chance goes
in as tensors, and how a tree comes out again.

Letters: B rows, N nodes, V vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor

from specdec.chance import Draws, KeyedDraws, NumberedDraws
from specdec.drafting.by_level import Grown, Score, numbers
from specdec.drafting.shape import Grower, Shape, grow
from specdec.sampling import Sampling
from specdec.state import State
from specdec.tree import SiblingLaw, Structure, TokenTree

NUMBERS = "numbers"  # u of every place at which a tree may draw


@dataclass(frozen=True, eq=False)
class Outline:
    """The part of a `State` that growing a tree needs, every number of which is a tensor."""

    roots: Tensor  # (B,)
    room: Tensor  # (B,)
    live: Tensor  # (B,)
    sampling: Sampling
    deepest: int
    shallowest: int  # -1: any row may have less room
    all_live: bool
    grammars: None = None
    failures: None = None

    @property
    def rows(self) -> int:
        return len(self.roots)

    @property
    def device(self) -> torch.device:
        return self.roots.device


class Facts(NamedTuple):
    """What is known of a grown tree whatever its tokens are."""

    structure: Structure | None  # if it is always the same
    bounds: tuple[int, int, bool]  # depth, width, is_chain
    law: SiblingLaw
    scored: int
    names: tuple[str, ...]  # of its tensors


@dataclass(frozen=True)
class WholeShape:
    """A shape that can be grown in a whole draft, in a run with this law and sampling."""

    shape: Shape
    law: SiblingLaw
    sampling: Sampling

    @cached_property
    def key(self) -> tuple[str, ...]:
        return repr(self.shape), self.law, repr(self.sampling)

    def tensors(self, state: State, chance: Draws) -> dict[str, Tensor] | None:
        """What goes in besides new tokens; None in a round that has to go level by level. Numbers
        are hashed out here: of products of 64 bits with frozen constants, Inductor makes others."""
        if self.law is not SiblingLaw.DET and type(chance) is not KeyedDraws:
            return None
        if state.grammars is not None or state.deepest < 1:
            return None
        found = {}
        if not self.shape.chain:
            host = state.on_host
            found["room"] = torch.tensor([host.room, host.live], device=state.device)
        if self.law is not SiblingLaw.DET and isinstance(chance, KeyedDraws):
            found[NUMBERS] = numbers(chance, state, self.shape.children, self.law)
        return found

    def grow(
        self, logits: Tensor, score: Score, roots: Tensor, given: dict[str, Tensor]
    ) -> tuple[list[Tensor], Facts]:
        """Inside: the tree. A chain is grown to its end, and cut afterwards (`grown`): what is
        drawn at a place does not depend on what is drawn elsewhere."""
        depth, chain = self.shape.depth, self.shape.chain
        room, live = given.get("room", torch.stack([roots, roots])).unbind(0)
        outline = Outline(
            roots, room, live > 0, self.sampling, depth, depth if chain else -1, chain
        )
        draws = NumberedDraws(given[NUMBERS]) if NUMBERS in given else None
        state = cast(State, outline)
        out = grow(self.shape, self.law, logits, score, state, cast(Draws, draws))
        tree, tensors = out.tree, {"tokens": out.tree.tokens}
        known = tree.structure if tree.structure.full else None
        if known is None:
            tensors |= {"parents": tree.parents, "depths": tree.depths}
            tensors["ancestors"] = tree.ancestors
        if tree.q is not None:
            tensors["q"] = tree.q
        if out.inner is not None:
            tensors["inner"] = out.inner
        if out.values is not None:
            tensors["values"] = out.values
        bounds = (tree.depth, tree.structure.width, tree.is_chain)
        return list(tensors.values()), Facts(known, bounds, tree.law, out.scored, tuple(tensors))

    def grown(self, tensors: list[Tensor], facts: Facts, state: State) -> Grown:
        """Outside: the tree again."""
        found = dict(zip(facts.names, tensors, strict=True))
        tokens, q = found["tokens"], found.get("q")
        if facts.structure is None:
            shape = (found["parents"], found["depths"], found["ancestors"])
            tree = TokenTree(tokens, Structure(*shape, *facts.bounds), facts.law, q)
            return Grown(tree, facts.scored, found.get("inner"), found.get("values"))
        if not self.shape.chain or state.shallowest >= self.shape.depth:
            tree = TokenTree(tokens, facts.structure, facts.law, q)
            return Grown(tree, facts.scored, found.get("inner"))
        depth = min(self.shape.depth, state.deepest)
        limit = None if state.shallowest >= depth else (state.room - 1) * state.live
        if limit is not None:
            limit = limit.clamp(max=depth)
        q = None if q is None else q[:, : depth + 1]
        return Grown(TokenTree.chain(tokens[:, : depth + 1], limit, facts.law, q), depth)


def whole_shape(shape: Shape, law: SiblingLaw, sampling: Sampling) -> WholeShape | None:
    """None for what looks at values while it grows: stop rules, processors of the text, and trees
    that choose a site after each draw."""
    looks = shape.stop is not None or sampling.penalties or shape.draw == "adaptive"
    return None if looks else WholeShape(shape, law, sampling)


class Wholes:
    """Which whole draft comes next in a run: always that of a drafter's own shape or, with a
    grower, that of the shape which this chooses for a round."""

    def __init__(
        self, shape: Shape, grower: Grower | None, law: SiblingLaw, sampling: Sampling
    ) -> None:
        self.grower, self.law, self.sampling = grower, law, sampling
        self._own = whole_shape(shape, law, sampling) if grower is None else None
        self._made: dict[Shape, WholeShape | None] = {}  # of those that the grower chose
        asked = [shape] if grower is None else grower.wholes
        self.deepest = max((each.depth for each in asked), default=0)

    def next(self, state: State) -> WholeShape | None:
        """None for a round that goes level by level."""
        if self.grower is None:
            return self._own
        shape = self.grower.chosen(state)
        if shape is None:
            return None
        if shape not in self._made:
            self._made[shape] = whole_shape(shape, self.law, self.sampling)
        return self._made[shape]

    def grown(self, whole: WholeShape, tensors: list[Tensor], facts: Facts, state: State) -> Grown:
        """The tree that came out of a whole draft."""
        grown = whole.grown(tensors, facts, state)
        return grown if self.grower is None else self.grower.finished(grown, state, whole.shape)
