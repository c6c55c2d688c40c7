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

import numpy as np

from experiments.measuring.intervals import pooled_interval
from experiments.records.rounds import Judged
from experiments.study.outcome import Interval
from specdec.measuring.acceptance import Acceptance, stacked


@dataclass
class Taken:
    """The rounds that were taken, of all texts so far."""

    kept: list[int] = field(default_factory=list)  # per text: tokens
    rounds: list[int] = field(default_factory=list)  # per text
    rests: list[np.ndarray] = field(default_factory=list)
    parents: list[np.ndarray] = field(default_factory=list)
    paths: list[np.ndarray] = field(default_factory=list)

    def add(self, judged: Judged, lengths: Sequence[int]) -> None:
        """The rounds of a batch. lengths: tokens of each of its texts."""
        rows: list[int] = []
        for text, length in enumerate(lengths):
            mine = np.flatnonzero(judged.text == text)
            order = mine[np.argsort(judged.position[mine])]
            taken, kept = rounds_of(judged.position[order], judged.accepted[order], length)
            rows += order[taken].tolist()
            self.kept.append(kept)
            self.rounds.append(len(taken))
        self.rests.append(judged.rest[rows])
        self.parents.append(judged.parents[rows])
        self.paths.append(judged.path[rows])

    @property
    def tau(self) -> Interval:
        """The pooled value and its 95% interval over texts; no interval below three texts."""
        used = [place for place, rounds in enumerate(self.rounds) if rounds]
        return pooled_interval([self.kept[n] for n in used], [self.rounds[n] for n in used])

    @property
    def cut_off_mass(self) -> float:
        """Of p, beyond the recorded tokens: the mean over rounds."""
        return float(np.concatenate(self.rests).mean())

    @property
    def acceptance(self) -> dict[tuple[int, int], Acceptance]:
        """By depth and rank."""
        return stacked(self.parents, self.paths).by_place

    @property
    def nodes_per_round(self) -> float:
        drafted = sum(int((parents >= 0).sum()) for parents in self.parents)
        return drafted / max(1, sum(self.rounds))

    @property
    def depth_per_round(self) -> float:
        drafted = stacked(self.parents, self.paths)
        return float(drafted.depth.max(1, initial=0).mean()) if sum(self.rounds) else 0.0


def rounds_of(
    positions: np.ndarray, accepted: np.ndarray, length: int
) -> tuple[list[int], int]:
    """Which of a text's recorded positions (rising) are taken, and how many tokens they kept."""
    taken, kept, place = [], 0, 0
    while place < len(positions) and positions[place] < length:
        here = int(positions[place])
        step = min(int(accepted[place]) + 1, length - here)
        taken.append(place)
        kept += step
        place = int(np.searchsorted(positions, here + step))
    return taken, kept
