"""What was measured. The clock is the one place that synchronises a device; a Step holds integers and times only.

Words: tau = tokens that a row kept / rounds in which it was live (block efficiency, bonus included). Tokens cut at EOS, a stop
string or the length do not count. Acceptance rate = accepted / offered at nodes that were reached.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

PHASES = ("draft", "score", "verify", "commit", "other")


class Clock:
    """`with clock("draft"): ...` adds up seconds by phase. On an accelerator it waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = self.now()
        try:
            yield
        finally:
            self.seconds[phase] += self.now() - began

    def take(self) -> dict[str, float]:
        """The seconds since the last take, by phase."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


@dataclass(frozen=True, slots=True)
class Step:
    """One round of all rows."""

    number: int
    live: np.ndarray  # (B,) bool: rows that decoded in this round
    parents: np.ndarray  # (B, N) int: the offered trees
    path: np.ndarray  # (B, D) int: accepted nodes, padded with -1
    num_accepted: np.ndarray  # (B,)
    kept: np.ndarray  # (B,) tokens that the row kept, bonus included, after cuts
    seconds: dict[str, float]  # by phase
    counts: dict[str, np.ndarray] = field(default_factory=dict)  # the verifier's diagnostics, (B,) each

    @property
    def num_nodes(self) -> np.ndarray:
        """(B,) drafted nodes that the target scored, the root not counted."""
        return (self.parents >= 0).sum(1) * self.live

    def offered(self) -> Iterator[tuple[int, int, int, bool]]:
        """(row, depth, sibling rank, accepted) of every drafted node that was reached: whose parent was accepted."""
        for row in np.flatnonzero(self.live):
            accepted = [int(node) for node in self.path[row] if node > 0]
            for depth, reached in enumerate([0, *accepted]):
                children = np.flatnonzero(self.parents[row] == reached)
                for rank, child in enumerate(children):
                    yield int(row), depth + 1, rank, depth < len(accepted) and accepted[depth] == child


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts at one depth and sibling rank. A rate has no meaning where nothing was reached."""

    offered: int  # nodes that stood in a tree there
    reached: int  # of these, whose parent was accepted
    accepted: int


@dataclass(frozen=True)
class Report:
    """Everything that a run of `generate` measured, computed from its steps when asked for."""

    steps: list[Step]
    prefill_seconds: float
    wall_seconds: float
    first_token_seconds: float
    cache_bytes: dict[str, int]
    drafter: str
    verifier: str
    lossless: bool
    extra_layers: int = 0
    finished_seconds: tuple[float, ...] = ()  # when each row ended, from the start of the call

    @cached_property
    def _kept(self) -> np.ndarray:
        return np.array([step.kept for step in self.steps]).reshape(len(self.steps), -1)

    @cached_property
    def _live(self) -> np.ndarray:
        return np.array([step.live for step in self.steps]).reshape(len(self.steps), -1)

    @property
    def num_tokens(self) -> int:
        return int(self._kept.sum())

    @property
    def target_calls(self) -> int:
        """Rounds: forward passes of the target after the prefill."""
        return len(self.steps)

    @property
    def tau(self) -> float:
        """Micro mean: all kept tokens / all live row-rounds."""
        return self.num_tokens / max(1, int(self._live.sum()))

    @property
    def tau_macro(self) -> float:
        """Mean over rows of each row's own tau."""
        return float(np.mean(self.tau_per_row)) if self.tau_per_row else 0.0

    @property
    def tau_per_row(self) -> list[float]:
        live = self._live.sum(0)
        return [float(kept / rounds) for kept, rounds in zip(self._kept.sum(0), live, strict=True) if rounds]

    @property
    def accepted_per_round(self) -> float:
        """Drafted tokens accepted per live row-round, before cuts at EOS, stop or length."""
        return float(sum(int(step.num_accepted[step.live].sum()) for step in self.steps)) / max(
            1, int(self._live.sum())
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / offered at nodes that were reached; None where nothing was drafted."""
        reached = sum(cell.reached for cell in self.acceptance.values())
        return sum(cell.accepted for cell in self.acceptance.values()) / reached if reached else None

    @cached_property
    def acceptance(self) -> dict[tuple[int, int], Acceptance]:
        """By (depth, sibling rank), both as in the trees: depth from 1, rank from 0."""
        counts: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        for step in self.steps:
            for place, number in _offered(step).items():
                counts[place][0] += number
            for _, depth, rank, accepted in step.offered():
                counts[depth, rank][1] += 1
                counts[depth, rank][2] += accepted
        return {place: Acceptance(*counts[place]) for place in sorted(counts)}

    @property
    def acceptance_per_depth(self) -> dict[int, float]:
        """Accepted / reached groups of siblings: the chance to get to this depth from the one above it."""
        reached: dict[int, set] = defaultdict(set)
        accepted: dict[int, int] = defaultdict(int)
        for number, step in enumerate(self.steps):
            for row, depth, _, won in step.offered():
                reached[depth].add((number, row))
                accepted[depth] += won
        return {depth: accepted[depth] / len(reached[depth]) for depth in sorted(reached)}

    @property
    def accepted_lengths(self) -> dict[int, int]:
        """Histogram: accepted drafted tokens -> live row-rounds."""
        lengths = [int(n) for step in self.steps for n in step.num_accepted[step.live]]
        return {length: lengths.count(length) for length in sorted(set(lengths))}

    @property
    def nodes_per_round(self) -> float:
        return float(sum(int(step.num_nodes.sum()) for step in self.steps)) / max(1, int(self._live.sum()))

    @property
    def seconds(self) -> dict[str, float]:
        """By phase: prefill, draft, score, verify, commit, and other (emission, bookkeeping, the caller between events)."""
        total = {"prefill": self.prefill_seconds}
        for phase in PHASES:
            total[phase] = sum(step.seconds.get(phase, 0.0) for step in self.steps)
        return total

    @property
    def decode_seconds(self) -> float:
        return sum(sum(step.seconds.values()) for step in self.steps)

    @property
    def tokens_per_second(self) -> float:
        """All rows' tokens / seconds of the rounds, the prefill excluded."""
        return self.num_tokens / self.decode_seconds if self.steps else 0.0

    @property
    def counts(self) -> dict[str, float]:
        """The verifier's diagnostics over live rows, e.g. zero residuals."""
        total: dict[str, float] = defaultdict(int)
        for step in self.steps:
            for name, values in step.counts.items():
                total[name] += values[step.live].sum().item()
        return dict(total)

    @property
    def deviation(self) -> dict[str, float] | None:
        """For lossy rules: total variation and KL (nats) from the target's law, per node that was judged. None for
        lossless ones."""
        counts = self.counts
        if self.lossless or not counts.get("nodes_judged"):
            return None
        return {name: counts[name] / counts["nodes_judged"] for name in ("tv", "kl")}

    def as_dict(self) -> dict[str, object]:
        """Plain numbers, for JSON and tables."""
        return {
            "drafter": self.drafter,
            "verifier": self.verifier,
            "lossless": self.lossless,
            "extra_layers": self.extra_layers,
            "tokens": self.num_tokens,
            "rounds": self.target_calls,
            "tau": self.tau,
            "tau_macro": self.tau_macro,
            "accepted_per_round": self.accepted_per_round,
            "acceptance_rate": self.acceptance_rate,
            "nodes_per_round": self.nodes_per_round,
            "tokens_per_second": self.tokens_per_second,
            "wall_seconds": self.wall_seconds,
            "first_token_seconds": self.first_token_seconds,
            "seconds": self.seconds,
            "cache_bytes": self.cache_bytes,
            "accepted_lengths": self.accepted_lengths,
            "acceptance": [
                {"depth": depth, "rank": rank, "offered": c.offered, "reached": c.reached, "accepted": c.accepted}
                for (depth, rank), c in self.acceptance.items()
            ],
            "counts": self.counts,
            "deviation": self.deviation,
        }

    def __str__(self) -> str:
        rate = self.acceptance_rate
        return (
            f"{self.drafter} + {self.verifier}: tau {self.tau:.2f}, "
            + (f"acceptance rate {rate:.2f}, " if rate is not None else "")
            + f"{self.tokens_per_second:.0f} tokens/s, {self.num_tokens} tokens in {self.target_calls} target calls"
            + ("" if self.lossless else ", lossy")
        )


def _offered(step: Step) -> dict[tuple[int, int], int]:
    """How many nodes stood at each (depth, rank), reached or not."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for row in np.flatnonzero(step.live):
        depths: list[int] = [0] * step.parents.shape[1]
        children: dict[int, int] = defaultdict(int)
        for node, parent in enumerate(step.parents[row].tolist()):
            if parent >= 0:
                depths[node] = depths[parent] + 1
                counts[depths[node], children[parent]] += 1
                children[parent] += 1
    return counts


def distinct_ngrams(sequences: list[list[int]], n: int = 4) -> float | None:
    """The share of different n-grams among all n-grams of each sequence, pooled. Loops flatter every drafter: report it
    beside every tau. None where no sequence is n tokens long."""
    total = sum(max(0, len(sequence) - n + 1) for sequence in sequences)
    different = sum(len({tuple(s[i : i + n]) for i in range(len(s) - n + 1)}) for s in sequences)
    return different / total if total else None
