"""Decoding that drafts a wide tree at every position, scores it, notes it and accepts nothing.

Each round adds the one token that plain decoding would add, by the same random number. So the text
is that of plain decoding, and there is a tree at every position of it.

Letters: B rows, N nodes, M scored nodes, V vocabulary, n inner nodes, K recorded tokens.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec import Laws, Sampling, State, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.drafting.by_level import Grown, Score
from specdec.drafting.shape import TreeDrafter
from specdec.interfaces import Drafter, LanguageModel
from specdec.outcome import fetched
from specdec.pairing import name_of
from specdec.plugins import build
from specdec.probs import DraftLaws
from specdec.tree import SiblingLaw

Noted = dict[str, np.ndarray]


class Wide(Drafter):
    """A drafter of trees that drafts at every `every`-th position of the output only, and notes the
    laws that its trees were grown from.

    Raises ValueError for a drafter that grows no trees from laws of its own, and for chains with a
    stop rule, whose length is not known beforehand.
    """

    def __init__(self, inner: Drafter, every: int = 1) -> None:
        if not isinstance(inner, TreeDrafter):
            raise ValueError(
                f"drafter {name_of(inner)!r} grows no trees from laws of its own, which a record "
                "holds. Record small_model, eagle, eagle3, hydra_heads, layer_skip or early_exit; "
                "for lookups, run with keep_texts=true and replay the outputs"
            )
        if inner.shape.stop_rule is not None:
            raise ValueError("a chain with a stop rule is not recorded; drop drafter.stop")
        self.inner, self.every = inner, every
        self.yaml_name = name_of(inner)
        self.max_nodes = inner.max_nodes

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        inner: Any = copy.copy(self.inner)
        inner.begin(target, rows, sampling)
        inner.grow = partial(self._grow, inner.grow)  # of this run's own copy
        self.running: TreeDrafter = inner
        self.law, self.chain, self.fixed_width = inner.law, inner.chain, inner.fixed_width
        self.max_nodes, self.taps, self.opened = inner.max_nodes, inner.taps, inner.opened
        self.starts = [0] * rows  # length of each row's prompt
        self.logits: Tensor | None = None
        self.grown: Grown | None = None
        self.inner_nodes: TokenTree | None = None
        self.drafted: TokenTree | None = None

    def enter(self, rows: Sequence[int], state: State) -> None:
        for row in rows:
            self.starts[row] = state.on_host.lengths[row]
        self.running.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        """The target scores only nodes with children: the law behind a leaf is not recorded. The
        whole tree is `drafted`."""
        self.logits = self.grown = self.inner_nodes = None
        tree = self.drafted = self.running.propose(self._due(state), chance)
        self.aside, inner = self.running.aside, self.inner_nodes
        if inner is None:
            return tree
        return inner.drawn_from(tree.law, None if tree.q is None else tree.q[:, : inner.num_nodes])

    def observe(self, state: State) -> None:
        self.running.observe(state)

    def leave(self, rows: Sequence[int]) -> None:
        self.running.leave(rows)

    def positions(self, state: State) -> list[int]:
        """Output tokens of each row so far; -1 where none is to be recorded."""
        host = state.on_host
        numbers = [length - start for length, start in zip(host.lengths, self.starts, strict=True)]
        return [
            number if live and number % self.every == 0 else -1
            for number, live in zip(numbers, host.live, strict=True)
        ]

    def _due(self, state: State) -> State:
        """The same state, in which only rows that are to be recorded have room for drafts."""
        host = state.on_host
        room = [
            room if number >= 0 else min(room, 1)
            for room, number in zip(host.room, self.positions(state), strict=True)
        ]
        return state if room == host.room else replace(state, on_host=host._replace(room=room))

    def _grow(
        self,
        grow: Callable[[Tensor, Score, State, Draws], Grown],
        logits: Tensor,
        score: Score,
        state: State,
        chance: Draws,
    ) -> Grown:
        """Notes all logits that a tree grows from, in the drafter's own numbers, and the tree of
        the nodes that they belong to, where its numbers are those of the whole tree."""
        parts, last = [logits], TokenTree.root(state.roots)

        def scored(tree: TokenTree, start: int) -> Tensor:
            nonlocal last
            parts.append(score(tree, start))
            last = tree
            return parts[-1]

        self.grown = grow(logits, scored, state, chance)
        self.logits = torch.cat(parts, 1)
        self.inner_nodes = last if self.grown.inner is None else None
        return self.grown

    def laws(self, state: State) -> tuple[Tensor, Tensor] | None:
        """Of the nodes M that may have children: (B, M, V) the drafter's laws, arbitrary at nodes
        that have none. Of all nodes: (B, N) log q of their tokens, as a ranked tree ranks by it.
        None where nothing was grown. At temperature 0: those of temperature 1."""
        tree = self.drafted
        if tree is None or self.logits is None or self.grown is None or tree.num_nodes == 1:
            return None
        rows = torch.arange(tree.rows, device=tree.tokens.device)[:, None]
        places = rows, tree.parents.clamp(min=0), tree.tokens
        if tree.q is not None:
            return tree.q, tree.q[places].log()
        logits, numbers = self.logits, self.grown.inner
        if numbers is not None:
            logits = logits[rows, numbers.clamp(0, logits.shape[1] - 1)]
        found = DraftLaws(state)(logits, tree, 0, across_nodes=True)
        if state.sampling.greedy:
            return found.exp(), found[places]
        return found, found[places].log()


class Keeper(Verifier):
    """Lossless: decodes plainly, and hands what it sees of each round to `note`. `wide` is the
    run's own drafter: set it before the first round."""

    laws = frozenset(SiblingLaw)
    wide: Wide

    def __init__(self, top: int, note: Callable[[Noted], None]) -> None:
        self.top, self.note = top, note
        self.rules: Mapping[bool, Verifier] = {
            True: build("verifier", "greedy"),
            False: build("verifier", "naive"),
        }

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        state = p.state
        root = TokenTree.root(trees.tokens[:, 0], trees.law)
        alone = Laws(p.scores[:, :1], root, state)
        verdict = self.rules[state.sampling.greedy].verify(root, alone, chance)
        positions = torch.tensor(self.wide.positions(state))
        if bool((positions >= 0).any()):
            drafted = self.wide.drafted
            assert drafted is not None
            self.note(self._seen(drafted, p, positions, verdict.bonus))
        return verdict

    def _seen(self, trees: TokenTree, p: Laws, positions: Tensor, following: Tensor) -> Noted:
        """The whole trees of the rows that are to be recorded, on the host: see `folder.py` for
        names. following (B,): the tokens that the texts go on with."""
        device, nodes = trees.tokens.device, trees.num_nodes
        due = (positions >= 0).to(device)
        used = trees.used & due[:, None]
        drafted, above = used.clone(), trees.parents.clamp(min=0)
        drafted[:, 0] = False
        inner = torch.zeros_like(used, dtype=torch.long).scatter_add_(1, above, drafted.long()) > 0
        rows, at = inner.nonzero(as_tuple=True)
        value = torch.zeros(used.shape, dtype=torch.float32, device=device)
        p_at, q_at = value.clone(), value.clone()
        p_at[:, 0] = p.at(torch.zeros_like(following)).gather(1, following[:, None])[:, 0]
        kept: dict[str, Tensor] = {}
        laws = self.wide.laws(p.state) if len(rows) else None
        if laws is not None:
            q, steps = laws
            law = p[rows, at]
            number = torch.zeros_like(above).index_put_(
                (rows, at), torch.arange(len(rows), device=device)
            )
            mine = number.gather(1, above)  # each node's parent among the inner ones
            p_at = torch.where(drafted, law[mine, trees.tokens].float(), p_at)
            every = torch.arange(trees.rows, device=device)[:, None]
            q_at = torch.where(drafted, q[every, above, trees.tokens].float(), 0.0)
            q_at[:, 0] = q[every[:, 0], 0, following]
            for depth in range(1, trees.depth + 1):
                here = drafted & (trees.depths == depth)
                value = torch.where(here, (steps + value.gather(1, above)).float(), value)
            if not p.sampling.greedy:
                kept = largest(law, q[rows, at], self.top)
        shape = {
            "row": torch.arange(trees.rows, device=device)[:, None].expand(-1, nodes),
            "node": torch.arange(nodes, device=device).expand(trees.rows, -1),
            "parent": trees.parents,
            "depth": trees.depths,
            "rank": trees.ranks,
            "token": trees.tokens,
            "inner": inner,
            "p": p_at.double(),
            "q": q_at.double(),
            "value": value.double(),
        }
        found = fetched({name: column[used] for name, column in shape.items()})
        found["position"] = positions.numpy()[found["row"]]
        found["request"] = p.state.request_ids.cpu().numpy()[found["row"]]
        return found | {name: values.cpu().numpy() for name, values in kept.items()}


def largest(p: Tensor, q: Tensor, top: int) -> dict[str, Tensor]:
    """Of laws p and q (n, V): the K tokens of which either gives most, what both give them, and the
    rest. The rest is what half precision leaves of 1, so that a recorded law sums to 1."""
    chosen = torch.maximum(p, q.to(p.dtype)).topk(min(top, p.shape[1]), -1, sorted=False).indices
    found = {"law_tokens": chosen.int()}
    for name, law in (("p", p), ("q", q)):
        half = law.gather(1, chosen).half()
        found[f"law_{name}"] = half
        found[f"rest_{name}"] = (1 - half.double().sum(-1)).clamp(min=0).float()
    return found
