"""Rounds at every position -> what a run of the shape and rule would have measured.

A round is taken at a text's first position, then at the position that it ends at, and so on to the
end of the text, as decoding goes. With every position recorded this is at temperature 0 the live
run itself. Above it, the rounds are samples of the live run's rounds at these prefixes; the bias
that remains is in docs/replay_trees.md. With every k-th position recorded, the next round is taken
at the next one that was.

tau = kept tokens / rounds, over all texts; the interval is over texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from experiments.measuring.intervals import pooled_interval
from experiments.records.rounds import Judged
from experiments.study.outcome import Interval
from specdec.measuring.acceptance import Acceptance, Drafted, stacked


@dataclass(frozen=True, eq=False)
class Rounds:
    """The rounds that were taken of one text, (R, ...) each."""

    positions: np.ndarray  # (R,) output tokens before the round
    kept: np.ndarray  # (R,)
    parents: np.ndarray  # (R, M)
    path: np.ndarray  # (R, D) accepted nodes, padded with -1
    rest: np.ndarray  # (R,) mass of p that is cut off

    @classmethod
    def of(cls, judged: Judged, text: int, length: int) -> "Rounds":
        """Of one text of `length` tokens."""
        mine = np.flatnonzero(judged.text == text)
        mine = mine[np.argsort(judged.position[mine])]
        taken, kept = rounds_of(judged.position[mine], judged.accepted[mine], length)
        rows = mine[taken]
        columns = (judged.position, judged.parents, judged.path, judged.rest)
        positions, parents, path, rest = (column[rows] for column in columns)
        return cls(positions, np.array(kept, dtype=np.int64), parents, path, rest)

    def __len__(self) -> int:
        return len(self.positions)


@dataclass
class Taken:
    """The rounds of all texts so far."""

    texts: list[Rounds] = field(default_factory=list)

    def add(self, judged: Judged, lengths: Sequence[int]) -> None:
        """A batch. lengths: tokens of each of its texts."""
        self.texts += [Rounds.of(judged, text, length) for text, length in enumerate(lengths)]

    @property
    def rounds(self) -> int:
        return sum(map(len, self.texts))

    @property
    def tau(self) -> Interval:
        """The pooled value and its 95% interval over texts; no interval below three texts."""
        used = [one for one in self.texts if len(one)]
        return pooled_interval([int(one.kept.sum()) for one in used], [len(one) for one in used])

    @property
    def cut_off_mass(self) -> float:
        """Of p, beyond the recorded tokens: the mean over rounds."""
        return float(np.concatenate([one.rest for one in self.texts]).mean())

    @cached_property
    def drafted(self) -> Drafted:
        return stacked([one.parents for one in self.texts], [one.path for one in self.texts])

    @property
    def acceptance(self) -> dict[tuple[int, int], Acceptance]:
        """By depth and rank."""
        return self.drafted.by_place

    @property
    def nodes_per_round(self) -> float:
        return float(self.drafted.offered.sum(1).mean())

    @property
    def depth_per_round(self) -> float:
        return float(self.drafted.depth.max(1, initial=0).mean())


def rounds_of(
    positions: np.ndarray, accepted: np.ndarray, length: int
) -> tuple[list[int], list[int]]:
    """Which of a text's recorded positions (rising) are taken, and how many tokens each round
    kept."""
    taken, kept, place = list[int](), list[int](), 0
    while place < len(positions) and positions[place] < length:
        here = int(positions[place])
        taken.append(place)
        kept.append(min(int(accepted[place]) + 1, length - here))
        place = int(np.searchsorted(positions, here + kept[-1]))
    return taken, kept
