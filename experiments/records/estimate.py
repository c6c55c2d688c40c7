"""Rounds at recorded positions -> what a run of the shape and rule would have measured.

Three ways, each with its rounds and how much they weigh. tau = kept tokens / rounds, both weighted,
pooled over all texts; the interval is over texts.

jumping    A round is taken at a text's first position, then at the position that it ends at, and so
           on to the end of the text. This is the live run itself where what is accepted follows
           from the text and the tree: at temperature 0, and in law for deterministic trees and for
           token matching.
weighing   Every recorded round counts as often as a live round would start there (starts.py).
taken as is  Jumping, although rounds and text are independent: rules and trees for which there is
           no better way, and records of every k-th position. The next round is taken at the next
           position that was recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np

from experiments.measuring.intervals import pooled_interval
from experiments.records.rounds import Judged
from experiments.study.outcome import Interval
from specdec.measuring.acceptance import Drafted, stacked


class Way(StrEnum):
    JUMPING = "jumping"
    WEIGHING = "weighing"
    AS_IS = "as is"


@dataclass(frozen=True, eq=False)
class Rounds:
    """Rounds of one text, (R, ...) each."""

    positions: np.ndarray  # (R,) output tokens before the round
    kept: np.ndarray  # (R,)
    parents: np.ndarray  # (R, M)
    path: np.ndarray  # (R, D) accepted nodes, padded with -1
    rest: np.ndarray  # (R,) mass of p that is cut off
    weight: np.ndarray  # (R,)

    @classmethod
    def of(
        cls, judged: Judged, text: int, length: int, starts: np.ndarray | None = None
    ) -> "Rounds":
        """Of one text of `length` tokens. starts (T,): how often a round starts at each of the
        judged positions; None: jumping."""
        mine = np.flatnonzero(judged.text == text)
        mine = mine[np.argsort(judged.position[mine])]
        kept = np.minimum(judged.accepted[mine] + 1, length - judged.position[mine])
        if starts is None:
            taken = jumped(judged.position[mine], kept, length)
            mine, kept = mine[taken], kept[taken]
        weight = np.ones(len(mine)) if starts is None else starts[mine]
        columns = (judged.parents, judged.path, judged.rest)
        return cls(judged.position[mine], kept, *(column[mine] for column in columns), weight)

    def __len__(self) -> int:
        return len(self.positions)

    def resampled(self) -> "Rounds":
        """Rounds of equal weight, as many as the weights add up to: at equal steps along them."""
        ends = np.cumsum(self.weight)
        count = max(1, round(float(ends[-1]))) if len(self) else 0
        steps = (np.arange(count) + 0.5) / max(count, 1) * (ends[-1] if len(self) else 0)
        rows = np.searchsorted(ends, steps).clip(max=max(len(self) - 1, 0))
        columns = (self.positions, self.kept, self.parents, self.path, self.rest)
        return Rounds(*(column[rows] for column in columns), np.ones(count))


def jumped(positions: np.ndarray, kept: np.ndarray, length: int) -> list[int]:
    """Which of a text's recorded positions (rising) are taken."""
    taken, place = list[int](), 0
    while place < len(positions) and positions[place] < length:
        taken.append(place)
        place = int(np.searchsorted(positions, positions[place] + kept[place]))
    return taken


@dataclass
class Taken:
    """The rounds of all texts so far."""

    texts: list[Rounds] = field(default_factory=list)

    def add(self, judged: Judged, lengths: Sequence[int], starts: np.ndarray | None = None) -> None:
        """A batch. lengths: tokens of each of its texts."""
        self.texts += [
            Rounds.of(judged, text, length, starts) for text, length in enumerate(lengths)
        ]

    @property
    def rounds(self) -> int:
        return sum(map(len, self.texts))

    @property
    def tau(self) -> Interval:
        """The pooled value and its 95% interval over texts; no interval below three texts."""
        used = [one for one in self.texts if len(one)]
        kept = [float((one.kept * one.weight).sum()) for one in used]
        return pooled_interval(kept, [float(one.weight.sum()) for one in used])

    @property
    def cut_off_mass(self) -> float:
        """Of p, beyond the recorded tokens: the mean over rounds."""
        return self._mean(np.concatenate([one.rest for one in self.texts]))

    @cached_property
    def weight(self) -> np.ndarray:
        return np.concatenate([one.weight for one in self.texts])

    @cached_property
    def drafted(self) -> Drafted:
        return stacked([one.parents for one in self.texts], [one.path for one in self.texts])

    def _mean(self, values: np.ndarray) -> float:
        return float((values * self.weight).sum() / self.weight.sum())

    @property
    def acceptance(self) -> dict[tuple[int, int], dict[str, float]]:
        """By depth and rank: nodes that were offered, reached and accepted, weighted."""
        drafted = self.drafted
        if not drafted.offered.any():
            return {}
        size = int(drafted.rank.max()) + 1
        place, weight = drafted.depth * size + drafted.rank, self.weight[:, None]
        found: dict[tuple[int, int], dict[str, float]] = {}
        for name in ("offered", "reached", "accepted"):
            which = getattr(drafted, name)
            share = np.broadcast_to(weight, which.shape)[which]
            counts = np.bincount(place[which], share, minlength=int(place.max()) + 1)
            for number in np.unique(place[drafted.offered]).tolist():
                found.setdefault(divmod(number, size), {})[name] = float(counts[number])
        return found

    @property
    def nodes_per_round(self) -> float:
        return self._mean(self.drafted.offered.sum(1))

    @property
    def depth_per_round(self) -> float:
        return self._mean(self.drafted.depth.max(1, initial=0))
