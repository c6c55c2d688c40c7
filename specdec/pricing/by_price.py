"""The policy that `priced` drafts by: a node, a level or a round is drafted where the tokens that
it is expected to bring exceed lambda x the seconds that it is expected to take.

What it learns (`Learnt`) is kept between the runs of a drafter. Times are those of the cost table,
which does not change during a run, so the same table and seed give the same decisions.

Letters: B rows, N nodes, C candidates.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from math import sqrt
from typing import Any

import numpy as np

from specdec.interfaces import Drafter, LanguageModel, compile_of
from specdec.pricing.costs import MOST, Costs, Curves
from specdec.pricing.decision import Decision
from specdec.pricing.growing import Noted, Policy
from specdec.pricing.live import Live
from specdec.pricing.measure import label
from specdec.pricing.price import Price
from specdec.pricing.survival import GoingOn, Survival
from specdec.state import State

PATIENCE, TRIES, SHORTEST, LONGEST = 24, 6, 8, 256  # rounds
KEEP = 0.98  # of the gain of earlier rounds


class Learnt:
    """What outlives a run: survivals, what levels bring, the price, and whether drafting pays."""

    def __init__(self, depths: int) -> None:
        self.first, self.later = Survival(depths), Survival(depths)  # children; their siblings
        self.going_on, self.price, self.pause = GoingOn(depths), Price(), Pause()

    def forget(self) -> None:
        for each in (self.first, self.later, self.going_on, self.price, self.pause):
            each.forget()

    def state(self) -> dict[str, np.ndarray]:
        """The survivals, for a file."""
        parts = {"first": self.first, "later": self.later}
        return {f"{p}.{name}": v for p, each in parts.items() for name, v in each.state().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for part, each in (("first", self.first), ("later", self.later)):
            each.restore({name: state[f"{part}.{name}"] for name in ("slope", "bias", "count")})


class Pause:
    """Whether to draft at all. Rounds of plain decoding follow when drafting has lost for sure,
    then some rounds that try again; pauses get longer while it goes on losing.

    A round's tokens scatter widely, so a loss counts only where the mean gain is below 0 by two
    standard errors.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.rounds, self.left, self.length = 0, 0, SHORTEST
        self._begin()

    def _begin(self) -> None:
        self._weight = self._sum = self._squares = 0.0  # of recent rounds' gains

    @property
    def gain(self) -> float:
        """Of a round, the mean of recent ones."""
        return self._sum / self._weight if self._weight else 0.0

    @property
    def has_lost(self) -> bool:
        variance = max(self._squares / self._weight - self.gain**2, 0.0)
        return self.gain + 2 * sqrt(variance / self._weight) < 0

    def drafts(self) -> bool:
        """Asked once a round."""
        if self.left:
            self.left -= 1
        return not self.left

    def learn(self, gain: float) -> None:
        """What a drafted round has brought beyond a plain one: tokens less lambda x seconds."""
        sums = (self._weight, 1.0), (self._sum, gain), (self._squares, gain**2)
        self._weight, self._sum, self._squares = (KEEP * before + new for before, new in sums)
        self.rounds += 1
        if self.rounds < PATIENCE:
            return
        if self.has_lost:  # and then a few rounds that try again
            self.left, self.length = self.length, min(2 * self.length, LONGEST)
            self.rounds = PATIENCE - TRIES
            self._begin()
        elif self.gain > 0:
            self.length = SHORTEST


@dataclass(frozen=True)
class Round:
    """What a round is decided by."""

    curves: Curves
    price: float

    @cached_property
    def nodes(self) -> np.ndarray:
        """(MOST,) what the target's pass and the host take longer for n drafted nodes, in
        tokens."""
        whole = self.curves.score + self.curves.host
        more: np.ndarray = self.price * (whole[1:] - whole[1])
        return more

    @cached_property
    def steps(self) -> np.ndarray:
        """(MOST,) what the node after n drafted ones costs, in tokens."""
        steps: np.ndarray = self.price * self.curves.steps[1:]
        return steps

    @cached_property
    def level(self) -> float:
        return self.price * self.curves.level

    @cached_property
    def node(self) -> float:
        return self.price * self.curves.node


def timed(answer: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose time counts as deciding."""

    @wraps(answer)
    def counted(self: "ByPrice", *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return answer(self, *arguments, **named)
        finally:
            self.seconds += time.perf_counter() - began

    return counted


class ByPrice(Policy):
    """Of one run. seconds: that deciding and learning have taken so far."""

    def __init__(
        self, learnt: Learnt, costs: Costs, drafter: Drafter, target: LanguageModel, sampled: bool
    ) -> None:
        self.learnt, self.costs = learnt, costs
        self.name, self.sampled = label(drafter), sampled
        self.compiled = bool(compile_of(target))
        self._now: Round | None = None
        self.seconds = 0.0

    @timed
    def begin(self, state: State, live: Live | None = None) -> Round:
        """A round begins, with one price for all its rows. live: corrects the table."""
        host = state.on_host
        lengths = [n for n, live in zip(host.lengths, host.live, strict=True) if live]
        curves = self.costs.curves(
            self.name, max(lengths, default=0), len(host.live), self.sampled, self.compiled
        )
        self._live, self._table = live, curves
        if live is not None:
            live.began()
            curves = live.corrected(curves)
        self._rows = max(1, len(lengths))
        self._now = Round(curves, self.learnt.price(self._rows, curves.plain))
        return self._now

    @property
    def now(self) -> Round:
        assert self._now is not None
        return self._now

    # ----------------------------------------------------------------------------- what is asked

    @timed
    def conditional(self, q: np.ndarray, depth: int, drawn: bool) -> np.ndarray:
        if not drawn or q.shape[-1] == 1:
            return self.learnt.first(q, depth)
        found = self.learnt.later(q, depth)
        found[..., 0] = self.learnt.first(q[..., 0], depth)
        return found

    @timed
    def goes_on(self, depth: int, nodes: int, frontier: np.ndarray) -> bool:
        now = self.now
        gain = self.learnt.going_on(depth + 1) * float(frontier.sum())
        cost = now.level + now.node * frontier.shape[1] + now.steps[min(nodes, MOST - 1)]
        return bool(gain > cost)

    @timed
    def draws(self, nodes: int, sites: np.ndarray) -> int:
        worth = sites.sum(0)
        pays = (worth > 0) & (worth > self.now.steps[nodes : nodes + len(worth)])
        return int(pays.cumprod().sum())

    @timed
    def keep(self, candidates: np.ndarray) -> int:
        worth = candidates.sum(0)
        real = int((worth > 0).sum())
        gains = worth[:real].cumsum() - self.now.nodes[1 : 1 + real]
        best = int(gains.argmax()) if real else 0
        return best + 1 if real and gains[best] > 0 else 0

    # ---------------------------------------------------------------------------- what is learnt

    @timed
    def decide(self, noted: Noted, live: Sequence[bool]) -> Decision:
        """What is expected of the round, now that its trees are there."""
        now, alive = self.now, np.array(live)
        nodes, kept = noted.parents.shape[1] - 1, noted.survivals[alive, 1:]
        seconds = now.curves.round(1 + nodes, 0) + now.curves.draft(noted.levels, nodes)
        tokens = float(alive.sum() + kept.sum())
        if self._live is not None:
            drafting = self._table.draft(noted.levels, nodes)
            self._live.expects(drafting, self._table.round(1 + nodes))
        self._noted, self._alive = noted, alive
        self._decided = Decision(
            tokens, seconds, now.curves.plain, now.price, noted.levels, noted.survivals
        )
        return self._decided

    @timed
    def learn(self, state: State) -> None:
        """The round that was decided last is over."""
        if self._live is not None:
            self._live.observed()
        decided, noted, learnt, last = self._decided, self._noted, self.learnt, state.last
        if last.verdict is None:
            return
        accepted = 0
        for row in np.flatnonzero(self._alive).tolist():
            count = last.num_accepted[row]
            accepted += count
            self._outcomes(noted, row, last.verdict.path[row, :count])
        tokens = accepted + float(self._alive.sum())
        learnt.price.learn(self._rows, decided.plain, tokens, decided.seconds)
        if decided.levels:
            plain = self._rows - decided.price * decided.plain
            learnt.pause.learn(tokens - decided.price * decided.seconds - plain)

    def _outcomes(self, noted: Noted, row: int, path: np.ndarray) -> None:
        """What became of the nodes of a row that were reached."""
        parents = noted.parents[row]
        if len(parents) == 1:
            return
        following = np.full(len(parents), -1)  # of each node on the path: the accepted child
        on_path = np.zeros(len(parents), dtype=bool)
        nodes = np.concatenate([[0], path])
        on_path[nodes] = True
        following[nodes[:-1]] = path
        tried = (parents >= 0) & on_path[parents]
        chosen = following[parents]
        accepted = chosen == np.arange(len(parents))
        if noted.drawn:  # siblings behind the accepted one were not tried
            tried &= (chosen < 0) | (np.arange(len(parents)) <= chosen)
        places = np.flatnonzero(tried)
        if not len(places):
            return
        q, depths, y = noted.q[row, places], noted.depths[row, places], accepted[places]
        if noted.drawn:
            first = np.concatenate([[True], parents[places][1:] != parents[places][:-1]])
            self.learnt.first.learn(q[first], depths[first], y[first])
            if not first.all():
                self.learnt.later.learn(q[~first], depths[~first], y[~first])
        else:
            self.learnt.first.learn(q, depths, y)
        for depth in range(1, int(depths.max(initial=0)) + 1):
            self.learnt.going_on.learn(depth, depth <= len(path))
