"""Groups: requests of one sampling, drafted and judged together. All share the target's pass.

A group has a copy of the drafter and a rule of its own, since the sibling law and the rule depend
on the sampling. Its trees have a row for every seat; those of other groups are not live in it. With
one group, the trees that the target scores are the group's own.

Letters: B rows (seats), N nodes, V vocabulary, D depth.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specdec.chance import Chance, Draws, KeyedByRow
from specdec.interfaces import Drafter, Opened, Scores, Tap, Verifier, compile_of
from specdec.measuring.chosen import Chosen
from specdec.outcome import Inspector, Outcome
from specdec.pairing import name_of, pair
from specdec.pricing.decision import Decision
from specdec.probs import Laws
from specdec.ranks import ranks_of
from specdec.requests import Call, Request
from specdec.sampling import Sampling
from specdec.state import HostVerdict, Last, State
from specdec.trace.watch import Traced
from specdec.tree import Structure, TokenTree
from specdec.verdicts import WholeVerdicts


class Group:
    """One sampling and one kind of chance."""

    state: State  # of this round; set by the seats
    trees: TokenTree
    outcome: Outcome

    def __init__(self, call: Call, request: Request) -> None:
        self.sampling, self._asked = request.sampling, request.chance
        self.chance: Chance = request.chance or KeyedByRow(call.seats, call.target.device)
        self.drafter: Drafter = copy.copy(call.drafter)  # shares weights, has its own memory
        with torch.no_grad():
            self.drafter.begin(call.target, call.seats, self.sampling)
        vocabulary = call.target.vocabulary
        self.verifier: Verifier = pair(
            self.drafter, call.verifier, self.sampling, self.chance, vocabulary, call.allow_lossy
        )
        self.names = name_of(call.drafter), name_of(self.verifier)
        ranks = ranks_of(call.target)
        self.inspector = Inspector(self.drafter, self.verifier, self.names, vocabulary, ranks)
        self._judge = Traced(self.verifier) if call.trace else self.verifier
        self._whole: WholeVerdicts | None = None
        self.opened: list[Opened] = list(self.drafter.opened)
        if compile_of(call.target) and not call.trace and not self.drafter.runners_up:
            nodes = self.drafter.max_nodes
            self._whole = WholeVerdicts(self.verifier, self.sampling, nodes)
            self.opened.append(self._whole)
        self.last = Last(None, None, [0] * call.seats, None, None)
        self.requests = 0  # that wait or have a seat

    def takes(self, sampling: Sampling, chance: Chance | None) -> bool:
        """Whether it serves requests with these."""
        return self._asked is chance and self.sampling == sampling

    def seat(self, row: int, request: Request) -> None:
        """This row is the request's."""
        if isinstance(self.chance, KeyedByRow):
            self.chance.seat(row, request.seed)

    def propose(self) -> TokenTree:
        draws = self._draws = self.chance.round(self.state)
        drafted = self.drafter.propose(self.state, draws)
        self.trees = self.inspector.admitted(drafted, self.state)
        return self.trees

    def verify(self, logits: Tensor) -> Outcome:
        draws: Draws = self._draws
        if self._whole is not None:
            found = self._whole(logits, self.trees, self.state, draws)
            if found is not None:
                self.outcome = self.inspector.read_judged(found, self.trees, self.state)
                return self.outcome
        p = Laws(logits, self.trees, self.state)
        verdict = self._judge.verify(self.trees, p, draws)
        self.outcome = self.inspector.read(verdict, self.trees, p, self.state)
        return self.outcome

    def close(self) -> None:
        """Free the drafter's memory."""
        for one in self.opened:
            one.close()


class Groups:
    """The groups of a run, and a round of those that have live rows."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.all: list[Group] = []
        self._account: dict[str, dict[str, Any]] = {}
        self.rules: dict[str, bool] = {}  # names of all rules so far; whether they are lossless
        self.live: list[Group] = []  # with a live row in this round; set by the seats
        self.watch: Callable[[Sequence[Opened]], None] = lambda opened: None

    def of(self, request: Request) -> Group:
        """The group that serves a request; a new one if there is none. Raises Refused where the
        rule does not take the drafter's trees under this sampling."""
        for group in self.all:
            if group.takes(request.sampling, request.chance):
                return group
        for idle in [group for group in self.all if group.requests == 0]:
            idle.close()
            self.all.remove(idle)
        group = Group(self._call, request)
        self.all.append(group)
        self.rules[group.names[1]] = group.verifier.lossless
        self.watch(self.opened)
        return group

    @property
    def names(self) -> tuple[str, str]:
        """Of the drafter, and of all rules so far."""
        return name_of(self._call.drafter), " + ".join(self.rules)

    @property
    def lossless(self) -> bool:
        return all(self.rules.values())

    @property
    def opened(self) -> list[Opened]:
        """Memories of the drafters, and what was compiled for their rules."""
        return [one for group in self.all for one in group.opened]

    @property
    def taps(self) -> tuple[Tap, ...]:
        return self.all[0].drafter.taps

    @property
    def best_tokens(self) -> int:
        return self.all[0].drafter.best_tokens

    @property
    def max_nodes(self) -> int:
        return max((group.drafter.max_nodes for group in self.all), default=1)

    @property
    def decided(self) -> tuple[Decision | None, Chosen | None]:
        """What a drafter that decides by costs has decided in this round, where one drafts for
        all."""
        if len(self.live) > 1:
            return None, None
        return self.live[0].drafter.decision, self.live[0].drafter.chosen

    @property
    def account(self) -> dict[str, dict[str, Any]]:
        """What the drafters have to say at the end (`Drafter.account`)."""
        return self._account | {
            name: said for group in self.all for name, said in group.drafter.account().items()
        }

    def propose(self) -> TokenTree:
        """A tree per row, each from its own group."""
        trees = [group.propose() for group in self.live]
        return trees[0] if len(trees) == 1 else together(trees, self._rows())

    def verify(self, scores: Scores) -> Outcome:
        """Each group judges its own rows."""
        if len(self.live) == 1:
            return self.live[0].verify(scores.logits)
        for group in self.live:
            group.verify(scores.logits[:, : group.trees.num_nodes])
        return merged([group.outcome for group in self.live])

    def _rows(self) -> list[list[bool]]:
        return [group.state.on_host.live for group in self.live]

    def close(self) -> None:
        self._account = self.account
        for group in self.all:
            group.close()
        self.all = []


def together(trees: Sequence[TokenTree], rows: Sequence[Sequence[bool]]) -> TokenTree:
    """One tree per row, taken from that of `trees` whose `rows` has it; rows of none have the
    first's. Nodes keep their numbers."""
    device, nodes = trees[0].tokens.device, max(tree.num_nodes for tree in trees)
    tokens, parents = padded(trees[0].tokens, nodes, 0), padded(trees[0].parents, nodes, -1)
    for tree, own in zip(trees[1:], rows[1:], strict=True):
        mine = torch.tensor(own, device=device)[:, None]
        tokens = torch.where(mine, padded(tree.tokens, nodes, 0), tokens)
        parents = torch.where(mine, padded(tree.parents, nodes, -1), parents)
    first = trees[0].structure
    if all(tree.structure is first for tree in trees):
        # A copy: a drafter may have handed this very structure over to the target's upper layers.
        return TokenTree(tokens, replace(first))
    depth, width = max(tree.depth for tree in trees), max(tree.width for tree in trees)
    return TokenTree(tokens, Structure.of(parents, depth=depth, width=width))


def padded(values: Tensor, nodes: int, fill: int) -> Tensor:
    """(B, nodes) of (B, n)."""
    return torch.nn.functional.pad(values, (0, nodes - values.shape[1]), value=fill)


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of all rows; each is live in one of them at most."""
    first = outcomes[0]
    rows = len(first.live)
    nodes = max(one.parents.shape[1] for one in outcomes)
    depth = max(one.verdict.path.shape[1] for one in outcomes)
    path, parents = np.full((rows, depth), -1), np.full((rows, nodes), -1)
    accepted, bonus = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    counts = {name: np.zeros(rows) for one in outcomes for name in one.counts}
    tokens: list[list[int]] = [[] for _ in range(rows)]
    keep, live = [-1] * rows, np.zeros(rows, dtype=bool)
    for one in outcomes:
        for row in np.flatnonzero(one.live).tolist():
            tokens[row], keep[row], live[row] = one.tokens[row], one.keep[row], True
            path[row, : one.verdict.path.shape[1]] = one.verdict.path[row]
            parents[row, : one.parents.shape[1]] = one.parents[row]
            accepted[row], bonus[row] = one.verdict.num_accepted[row], one.verdict.bonus[row]
            for name, values in one.counts.items():
                counts[name][row] = values[row]
    verdict = HostVerdict(path, accepted, bonus)
    return Outcome(verdict, tokens, keep, live, parents, counts, None, None, {})
