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
from math import inf, sqrt
from typing import Any

import numpy as np

from specdec.drafting.shape import Shape
from specdec.interfaces import Drafter, LanguageModel, compile_of
from specdec.pricing import at_once
from specdec.pricing.costs import MOST, Costs, Curves
from specdec.pricing.decision import Decision
from specdec.pricing.live import Live
from specdec.pricing.measure import label
from specdec.pricing.noted import Noted
from specdec.pricing.policy import Policy
from specdec.pricing.price import Price
from specdec.pricing.survival import GoingOn, Survival
from specdec.state import State

PATIENCE, TRIES, SHORTEST, LONGEST = 24, 6, 8, 256  # rounds
KEEP = 0.98  # of the gain of earlier rounds
RECENT, SHARE, WEIGHT = 0.8, 0.6, 2.0  # of a row's share of accepted tokens: kept, and at its start
FIRST_TRIES, AGAIN = 4, 48  # rounds of a kind of whole drafts, and until it is tried again
PER_LEVEL = 3.0  # nodes of ranked trees, before any was drafted


class Learnt:
    """What outlives a run: survivals, what levels bring, the price, and whether drafting pays.

    before   of whole drafts: chances of levels, known before anything is drafted
    """

    def __init__(self, depths: int) -> None:
        self.first, self.later = Survival(depths), Survival(depths)  # children; their siblings
        self.going_on, self.price, self.pause = GoingOn(depths), Price(), Pause()
        self.before = {kind: Survival(depths) for kind in at_once.KINDS}
        self.tried = Tried()

    def forget(self) -> None:
        for each in self._survivals.values():
            each.forget()
        for part in (self.going_on, self.price, self.pause, self.tried):
            part.forget()

    @property
    def _survivals(self) -> dict[str, Survival]:
        return {"first": self.first, "later": self.later, **self.before}

    def state(self) -> dict[str, np.ndarray]:
        """The survivals, for a file."""
        parts = self._survivals.items()
        return {f"{p}.{name}": v for p, each in parts for name, v in each.state().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for part, each in self._survivals.items():
            if f"{part}.slope" in state:  # files of earlier releases know no whole drafts
                each.restore({name: state[f"{part}.{name}"] for name in ("slope", "bias", "count")})


class Tried:
    """When each kind of whole drafts was drafted last. One that has not been for long is tried
    again: what it would bring is only learnt from its own rounds."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.rounds, self.nodes = 0, PER_LEVEL
        self._drafted, self._latest = dict[str, int](), dict[str, int]()

    def due(self, kinds: Sequence[str]) -> str | None:
        """The kind that has to be tried now, if any."""
        waiting = [kind for kind in kinds if self._drafted.get(kind, 0) < FIRST_TRIES]
        if waiting:
            return min(waiting, key=lambda kind: self._drafted.get(kind, 0))
        old = [kind for kind in kinds if self.rounds - self._latest[kind] > AGAIN]
        return old[0] if old else None

    def round(self, shape: Shape | None, nodes: int) -> None:
        """A round is over. shape: of its whole draft, if it had one."""
        self.rounds += 1
        if shape is None:
            return
        kind = at_once.kind_of(shape)
        self._drafted[kind] = self._drafted.get(kind, 0) + 1
        self._latest[kind] = self.rounds
        if kind == at_once.TREE:
            self.nodes += 0.1 * (nodes / shape.depth - self.nodes)


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
        self._recent = np.zeros((0, 2))  # (B, 2) of each row: accepted tokens, and tried ones

    def enter(self, rows: Sequence[int], size: int) -> None:
        """New texts begin in these of `size` rows."""
        if len(self._recent) != size:
            self._recent = np.zeros((size, 2))
        self._recent[list(rows)] = 0

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
        self._rows, self._alive_now = max(1, len(lengths)), np.array(host.live)
        self._room = host.room
        self._now = Round(curves, self.learnt.price(self._rows, curves.plain))
        return self._now

    @property
    def now(self) -> Round:
        assert self._now is not None
        return self._now

    # ----------------------------------------------------------------------------- what is asked

    @timed
    def conditional(self, q: np.ndarray, depth: int | np.ndarray, drawn: bool) -> np.ndarray:
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
        worth, steps = sites.sum(0), self.now.steps
        if len(worth) == 1:
            return int(worth[0] > max(0.0, steps[nodes]))
        pays = (worth > 0) & (worth > steps[nodes : nodes + len(worth)])
        return int(pays.cumprod().sum())

    @timed
    def keep(self, candidates: np.ndarray) -> int:
        worth = candidates.sum(0)
        real = int((worth > 0).sum())
        gains = worth[:real].cumsum() - self.now.nodes[1 : 1 + real]
        best = int(gains.argmax()) if real else 0
        return best + 1 if real and gains[best] > 0 else 0

    @timed
    def choose(self, shapes: Sequence[Shape]) -> Shape | None:
        now, tried = self.now, self.learnt.tried
        found: dict[str, list[tuple[Shape, int, float]]] = {}  # by kind: nodes, seconds
        for shape in shapes:
            kind, depth = at_once.kind_of(shape), shape.depth
            nodes = depth if kind == at_once.CHAIN else round(tried.nodes * depth)
            nodes = min(nodes, shape.max_nodes - 1, MOST - 1)
            took = now.curves.at_once(kind, depth)
            if took <= now.curves.draft(depth, nodes):  # not so if it is NaN
                found.setdefault(kind, []).append((shape, nodes, took))
        due, chosen = tried.due(list(found)), None
        best = -inf if due else 0.0
        for kind, options in found.items():
            if due not in (None, kind):
                continue
            deepest = max((shape for shape, _, _ in options), key=lambda shape: shape.depth)
            tokens = self._before(deepest).sum(0).cumsum()
            for shape, nodes, took in options:
                value = tokens[shape.depth - 1] - float(now.nodes[nodes]) - now.price * took
                if value > best:
                    best, chosen = value, shape
        return chosen

    @timed
    def before(self, shape: Shape) -> np.ndarray:
        return self._before(shape)

    def _before(self, shape: Shape) -> np.ndarray:
        share = (self._recent[:, 0] + WEIGHT * SHARE) / (self._recent[:, 1] + WEIGHT)
        each = self.learnt.before[at_once.kind_of(shape)](
            share[:, None], np.arange(1, shape.depth + 1)
        )
        chances: np.ndarray = each.cumprod(1) * self._alive_now[:, None]
        return chances

    # ---------------------------------------------------------------------------- what is learnt

    @timed
    def decide(self, noted: Noted, live: Sequence[bool]) -> Decision:
        """What is expected of the round, now that its trees are there."""
        now, alive = self.now, np.array(live)
        nodes, kept = noted.parents.shape[1] - 1, noted.survivals[alive, 1:]
        seconds = now.curves.rest(1 + nodes) + _drafting(now.curves, noted, nodes)
        tokens = float(alive.sum() + kept.sum())
        if self._live is not None:
            drafting = _drafting(self._table, noted, nodes)
            self._live.expects(drafting, self._table.rest(1 + nodes))
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
            if noted.whole is not None:
                self._levels(noted, noted.whole, row, count)
            if noted.whole is None or not noted.whole.chain:
                self._outcomes(noted, row, last.verdict.path[row, :count])
        learnt.tried.round(noted.whole, noted.parents.shape[1] - 1)
        tokens = accepted + float(self._alive.sum())
        learnt.price.learn(self._rows, decided.plain, tokens, decided.seconds)
        if decided.levels:
            plain = self._rows - decided.price * decided.plain
            learnt.pause.learn(tokens - decided.price * decided.seconds - plain)

    def _levels(self, noted: Noted, shape: Shape, row: int, accepted: int) -> None:
        """Which levels of a row's whole draft were accepted."""
        drafted = int(noted.depths[row][noted.parents[row] >= 0].max(initial=0))
        if not shape.chain:
            # A level without a node that pays counts as one whose nodes were not accepted.
            drafted = min(shape.depth, self._room[row] - 1)
        tried = min(accepted + 1, drafted)
        if not tried:
            return
        hits, tries = self._recent[row]
        share = (hits + WEIGHT * SHARE) / (tries + WEIGHT)
        depths = np.arange(1, tried + 1)
        self.learnt.before[at_once.kind_of(shape)].learn(
            np.full(tried, share), depths, depths <= accepted
        )
        self._recent[row] = RECENT * hits + accepted, RECENT * tries + tried

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


def _drafting(curves: Curves, noted: Noted, nodes: int) -> float:
    """Seconds of drafting what was noted."""
    if noted.whole is None:
        return curves.draft(noted.levels, nodes)
    return curves.at_once(at_once.kind_of(noted.whole), noted.whole.depth)
