"""How likely a drafted node is to be accepted, learnt while decoding.

A child whose parent is accepted (and none of its elder siblings) is accepted with probability

    a = sigma(slope x logit(q) + bias_depth)

where q is a number that is known before anything is drawn: the probability of the law's best token
or, for trees that draw nothing, that of the child's own token, or how often a lookup has seen it.
Slope and biases are refitted by Newton's method on the latest outcomes; of the first steps a share
n / (n + 50) is taken after n outcomes. Deep levels are seldom reached, so biases are held to their
mean. A node's survival is the product along its path.

Letters: n outcomes, D depths.
"""

from collections.abc import Mapping
from math import exp

import numpy as np

SLOPE, BIAS = 0.5, -0.2  # before anything is learnt
FEW, DAMPING = 48, 50  # so many first outcomes are fitted at once, by damped steps
EVERY, LATEST = 16, 1024  # outcomes between two later fits, and in one
PRIOR = 2.0  # outcomes that the values before learning count as
STEEPEST = 8.0  # |logit|


LEAST = 1 / (1 + exp(STEEPEST))  # the probability of the steepest logit


def logit(q: np.ndarray) -> np.ndarray:
    q = np.minimum(np.maximum(q, LEAST), 1 - LEAST)
    found: np.ndarray = np.log(q / (1 - q))
    return found


def sigma(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-x))
    return found


class Survival:
    """One slope, a bias for each of D depths; deeper nodes have the last one's."""

    def __init__(self, depths: int) -> None:
        self.depths = depths
        self.forget()

    def forget(self) -> None:
        self.slope, self.bias = SLOPE, np.full(self.depths, BIAS)
        self.count = 0
        self._fresh = 0
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._x, self._y = np.zeros(0), np.zeros(0)
        self._depth = np.zeros(0, dtype=np.int64)

    def __call__(self, q: np.ndarray, depth: int | np.ndarray) -> np.ndarray:
        """The chance a, of any shape; depth from 1."""
        at = min(depth, self.depths) if isinstance(depth, int) else np.minimum(depth, self.depths)
        at = at - 1
        return sigma(self.slope * logit(q) + self.bias[at])

    def learn(self, q: np.ndarray, depth: np.ndarray, accepted: np.ndarray) -> None:
        """Outcomes (n,) of nodes that were reached: their parents were accepted, and no elder
        sibling."""
        self._waiting.append((q, depth, accepted))
        self.count, self._fresh = self.count + len(q), self._fresh + len(q)
        if self._fresh >= EVERY or self.count <= FEW:
            self._take()
            self._fit()
            self._fresh = 0

    def _take(self) -> None:
        """The latest outcomes, with those that wait for a fit."""
        q, depth, accepted = (np.concatenate(each) for each in zip(*self._waiting, strict=True))
        self._waiting.clear()
        self._x = np.concatenate([self._x, logit(q)])[-LATEST:]
        self._y = np.concatenate([self._y, accepted])[-LATEST:]
        place = np.minimum(depth, self.depths) - 1
        self._depth = np.concatenate([self._depth, place])[-LATEST:]

    def _fit(self) -> None:
        """One step. The Hessian is an arrow: biases meet in the slope alone."""
        x, depth, n = self._x, self._depth, len(self._x)
        p = sigma(self.slope * x + self.bias[depth])
        v = p * (1 - p)
        wrong, mixed, curved = (
            np.bincount(depth, each, self.depths) for each in (p - self._y, x * v, v)
        )
        gradient, own = wrong + PRIOR * (self.bias - self._centre(depth)), curved + PRIOR
        slope_gradient = x @ (p - self._y) + PRIOR * (self.slope - SLOPE)
        slope_own = (x * x) @ v + PRIOR
        share = mixed / own
        step = (slope_gradient - share @ gradient) / (slope_own - share @ mixed)
        damping = 1.0 if n > FEW else n / (n + DAMPING)
        self.bias = (self.bias - damping * (gradient - mixed * step) / own).clip(-6, 6)
        self.slope = float(np.clip(self.slope - damping * step, 0.0, 4.0))

    def _centre(self, depth: np.ndarray) -> float:
        """What the biases are held to."""
        seen = np.bincount(depth, minlength=self.depths)
        weight = seen / (seen + PRIOR)
        return float((weight @ self.bias + BIAS) / (weight.sum() + 1))

    def state(self) -> dict[str, np.ndarray]:
        """What was learnt, for a file."""
        return {"slope": np.array([self.slope]), "bias": self.bias, "count": np.array([self.count])}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError for another number of depths."""
        if state["bias"].shape != self.bias.shape:
            raise ValueError(
                f"what was learnt has {len(state['bias'])} depths, expected {self.depths}; give "
                "the same depth, or leave it out"
            )
        self.slope, self.bias = float(state["slope"][0]), state["bias"].astype(float)
        self.count = int(state["count"][0])


class GoingOn:
    """How often an accepted node has an accepted child, by the child's depth: what another level
    brings, before its laws are known. A depth that was seldom reached is taken to be like the one
    above it, so that two misses by chance do not end all trees there."""

    SHARE, WEIGHT, KEEP = 0.6, 8.0, 0.998

    def __init__(self, depths: int) -> None:
        self.depths = depths
        self.forget()

    def forget(self) -> None:
        self.reached, self.accepted = np.zeros(self.depths + 1), np.zeros(self.depths + 1)
        self._shares: list[float] = []  # by depth; empty: not known since the last outcome

    def __call__(self, depth: int) -> float:
        if not self._shares:
            share = self.SHARE
            for reached, accepted in zip(self.reached, self.accepted, strict=True):
                share = float((accepted + self.WEIGHT * share) / (reached + self.WEIGHT))
                self._shares.append(share)
        return self._shares[min(depth, self.depths)]

    def learn(self, depth: int, accepted: bool) -> None:
        at = min(depth, self.depths)
        self.reached[at] = self.KEEP * self.reached[at] + 1
        self.accepted[at] = self.KEEP * self.accepted[at] + accepted
        self._shares = []
