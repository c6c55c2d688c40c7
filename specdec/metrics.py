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

from specdec.drafted import Acceptance, Drafted, stacked

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

    @cached_property
    def _accepted(self) -> np.ndarray:
        """(R,) per live row-round."""
        return np.array([n for step in self.steps for n in step.num_accepted[step.live].tolist()], dtype=np.int64)

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
        return int(self._accepted.sum()) / max(1, int(self._live.sum()))

    @cached_property
    def drafted(self) -> Drafted:
        """Every drafted node of every live row-round, in the order of rounds, then rows."""
        return stacked([s.parents[s.live] for s in self.steps], [s.path[s.live] for s in self.steps])

    @property
    def accepted_per_row(self) -> list[float]:
        """Accepted drafted tokens per round of each row, before cuts."""
        accepted = np.array([step.num_accepted for step in self.steps]).reshape(self._live.shape) * self._live
        return [float(n / rounds) for n, rounds in zip(accepted.sum(0), self._live.sum(0), strict=True) if rounds]

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / offered at nodes that were reached; None where nothing was drafted."""
        reached = int(self.drafted.reached.sum())
        return int(self.drafted.accepted.sum()) / reached if reached else None

    @cached_property
    def acceptance(self) -> dict[tuple[int, int], Acceptance]:
        """By (depth, sibling rank), both as in the trees: depth from 1, rank from 0."""
        return self.drafted.by_place

    @property
    def acceptance_per_depth(self) -> dict[int, float]:
        """Accepted / reached groups of siblings: the chance to get to this depth from the one above it."""
        return {depth: accepted / reached for depth, (reached, accepted) in self.drafted.per_depth.items()}

    @property
    def accepted_lengths(self) -> dict[int, int]:
        """Histogram: accepted drafted tokens -> live row-rounds."""
        lengths, counts = np.unique(self._accepted, return_counts=True)
        return dict(zip(lengths.tolist(), counts.tolist(), strict=True))

    @property
    def nodes_per_round(self) -> float:
        return int(self.drafted.offered.sum()) / max(1, int(self._live.sum()))

    @cached_property
    def gaps(self) -> np.ndarray:
        """Seconds between one token of a row and the next, over all rows. The tokens of a round arrive together: the first
        waits for the round, the others not at all. The wait for a row's first token is no gap."""
        seconds = np.array([sum(step.seconds.values()) for step in self.steps])
        rows = []
        for row in range(self._kept.shape[1]):
            kept = self._kept[self._live[:, row], row]
            waits = np.zeros(int(kept.sum()))
            waits[np.cumsum(kept)[kept > 0] - kept[kept > 0]] = seconds[self._live[:, row]][kept > 0]
            rows.append(waits[1:])
        return np.concatenate(rows) if rows else np.zeros(0)

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


def distinct_ngrams(sequences: list[list[int]], n: int = 4) -> float | None:
    """The share of different n-grams among all n-grams of each sequence, pooled. Loops flatter every drafter: report it
    beside every tau. None where no sequence is n tokens long."""
    total = sum(max(0, len(sequence) - n + 1) for sequence in sequences)
    different = sum(len({tuple(s[i : i + n]) for i in range(len(s) - n + 1)}) for s in sequences)
    return different / total if total else None
