"""What was measured. A Step holds integers, times, and what was expected; a Report computes the
rest from steps.

Words: tau = tokens that a row kept / rounds in which it was live (block efficiency, bonus
included). Tokens cut at EOS, a stop string or the length do not count. Acceptance rate = accepted /
offered at nodes that were reached. Rows that are not live count nowhere.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from specdec.interfaces import CompiledPass
from specdec.measuring.acceptance import Acceptance, Drafted, stacked
from specdec.measuring.chosen import Chosen
from specdec.measuring.clock import PHASES, PREFILL, Times
from specdec.measuring.promises import Promises, Reliability, promises, reliability, why
from specdec.pricing.decision import Decision


class Nodes(NamedTuple):
    """What a trace knows of a round's nodes, (B, N) each. NaN and -1: there is none."""

    tokens: np.ndarray
    p: np.ndarray  # of the node's token in the target's law after its parent
    q: np.ndarray  # in the law that it was drawn from; NaN for DET
    asked: np.ndarray  # the chance with which a coin was asked to accept the node
    coin: np.ndarray  # in [0, 1): accepted where it is smaller; NaN where chance has no numbers
    drawn: np.ndarray  # the token that the rule drew after the node; at T = 0 the argmax there
    drawn_p: np.ndarray  # of that token in the target's law


@dataclass(frozen=True, slots=True)
class Step:
    """One round of all rows."""

    number: int
    live: np.ndarray  # (B,) bool: rows that decoded in this round
    parents: np.ndarray  # (B, N) int: the offered trees
    path: np.ndarray  # (B, D) int: accepted nodes, padded with -1
    num_accepted: np.ndarray  # (B,)
    kept: np.ndarray  # (B,) tokens that the row kept, bonus included, after cuts
    times: Times
    counts: dict[str, np.ndarray]  # the verifier's diagnostics, (B,) each
    prompts: np.ndarray  # (B,) number of the prompt whose text each row is; -1: not live
    nodes: Nodes | None = None  # where a trace was asked for
    decision: Decision | None = None  # of a drafter that decides by costs
    chosen: Chosen | None = None  # where something chooses whether a round has drafts, and whose

    @property
    def seconds(self) -> dict[str, float]:
        """By phase; "prefill" where rows of this round were new."""
        return self.times.seconds

    @property
    def decode_seconds(self) -> float:
        """The round without the prefill of its new rows."""
        return sum(self.seconds.values()) - self.seconds.get(PREFILL, 0.0)

    @property
    def num_nodes(self) -> np.ndarray:
        """(B,) drafted nodes that the target scored, the root not counted."""
        drafted: np.ndarray = (self.parents >= 0).sum(1) * self.live
        return drafted


class Served(NamedTuple):
    """When a prompt got its seat, its first tokens and its end: seconds from the start of the
    call."""

    admitted: float
    first_token: float
    finished: float


class Rows(NamedTuple):
    """Every live row of every round: one entry each, in the order of rounds, then rows."""

    step: np.ndarray
    prompt: np.ndarray  # number of the prompt
    kept: np.ndarray
    accepted: np.ndarray


@dataclass(frozen=True, repr=False)
class Report:
    """Everything that a run of `generate` measured, computed from its steps when asked for."""

    steps: list[Step]
    served: list[Served]  # per prompt
    wall_seconds: float
    cache_bytes: dict[str, int]  # held at the end of the run: of the target, of the drafter
    forward_seconds: dict[str, float]  # inside forward passes: of the target, of the drafter
    drafter: str
    verifier: str
    lossless: bool
    extra_layers: int = 0
    compiled: list[CompiledPass] = field(default_factory=list)  # in this run, not before
    grammar_seconds: float = 0.0  # on the host, for masks; inside drafting and verifying
    # what was decided in the run, by the name of what decides (`Drafter.account`)
    account: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def rows(self) -> Rows:
        steps = self.steps
        live = [step.live.nonzero()[0] for step in steps]
        columns = (
            np.repeat(np.arange(len(steps)), [len(row) for row in live]),
            _joined([step.prompts[row] for step, row in zip(steps, live, strict=True)]),
            _joined([step.kept[row] for step, row in zip(steps, live, strict=True)]),
            _joined([step.num_accepted[row] for step, row in zip(steps, live, strict=True)]),
        )
        return Rows(*columns)

    def _per_prompt(self, values: np.ndarray) -> np.ndarray:
        """Sums of a column of `rows` over each prompt's rounds."""
        return np.bincount(self.rows.prompt, values, minlength=len(self.served))

    @cached_property
    def rounds_per_row(self) -> np.ndarray:
        """Rounds in which each prompt's text was live."""
        return np.bincount(self.rows.prompt, minlength=len(self.served))

    @property
    def num_tokens(self) -> int:
        return int(self.rows.kept.sum())

    @property
    def target_calls(self) -> int:
        """Rounds: forward passes of the target, prefills apart."""
        return len(self.steps)

    @property
    def tau(self) -> float:
        """Micro mean: all kept tokens / all live row-rounds."""
        return self.num_tokens / max(1, len(self.rows.kept))

    @property
    def tau_macro(self) -> float:
        """Mean over prompts of each one's own tau."""
        return float(np.mean(self.tau_per_row)) if self.tau_per_row else 0.0

    @property
    def tau_per_row(self) -> list[float]:
        """Of each prompt."""
        return self._means(self.rows.kept)

    @property
    def accepted_per_row(self) -> list[float]:
        """Accepted drafted tokens per round of each prompt, before cuts."""
        return self._means(self.rows.accepted)

    def _means(self, values: np.ndarray) -> list[float]:
        rounds = self.rounds_per_row
        sums = self._per_prompt(values)
        return [float(total / count) for total, count in zip(sums, rounds, strict=True) if count]

    @property
    def accepted_per_round(self) -> float:
        """Drafted tokens accepted per live row-round, before cuts at EOS, stop or length."""
        return int(self.rows.accepted.sum()) / max(1, len(self.rows.accepted))

    @cached_property
    def drafted(self) -> Drafted:
        """Every drafted node of every live row-round, in the order of rounds, then rows."""
        return stacked(
            [s.parents[s.live] for s in self.steps], [s.path[s.live] for s in self.steps]
        )

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
        """Accepted / reached groups of siblings: the chance to get to this depth from above it."""
        return {
            depth: accepted / reached
            for depth, (reached, accepted) in self.drafted.per_depth.items()
        }

    @property
    def accepted_lengths(self) -> dict[int, int]:
        """Histogram: accepted drafted tokens -> live row-rounds."""
        lengths, counts = np.unique(self.rows.accepted, return_counts=True)
        return dict(zip(lengths.tolist(), counts.tolist(), strict=True))

    @property
    def nodes_per_round(self) -> float:
        return int(self.drafted.offered.sum()) / max(1, len(self.rows.kept))

    # ------------------------------------------------------------------------------------- times

    @cached_property
    def gaps(self) -> np.ndarray:
        """Seconds between one token of a prompt's text and the next, over all prompts. The tokens
        of a round arrive together: the gap is the round's time for the first and 0 for the others.
        The wait for a prompt's very first token is not a gap."""
        seconds = np.array([sum(step.seconds.values()) for step in self.steps])
        found = []
        for prompt in range(len(self.served)):
            mine = self.rows.prompt == prompt
            kept, waited = self.rows.kept[mine], seconds[self.rows.step[mine]]
            waits = np.zeros(int(kept.sum()))
            waits[np.cumsum(kept)[kept > 0] - kept[kept > 0]] = waited[kept > 0]
            found.append(waits[1:])
        return np.concatenate(found) if found else np.zeros(0)

    @property
    def prefill_seconds(self) -> float:
        return sum(step.seconds.get(PREFILL, 0.0) for step in self.steps)

    @property
    def first_token_seconds(self) -> float:
        """From a prompt's admission to its first tokens: the median over prompts."""
        return float(np.median([one.first_token - one.admitted for one in self.served]))

    @property
    def finished_seconds(self) -> tuple[float, ...]:
        """From each prompt's admission to its end."""
        return tuple(one.finished - one.admitted for one in self.served)

    @property
    def seconds(self) -> dict[str, float]:
        """By phase: prefill, draft, score, verify, commit, and other (emission, bookkeeping, the
        caller between events)."""
        return {
            phase: sum(step.seconds.get(phase, 0.0) for step in self.steps)
            for phase in (PREFILL, *PHASES)
        }

    @property
    def decode_seconds(self) -> float:
        return sum(step.decode_seconds for step in self.steps)

    @property
    def tokens_per_second(self) -> float:
        """All prompts' tokens / seconds of the rounds, prefills excluded."""
        return self.num_tokens / self.decode_seconds if self.steps else 0.0

    @property
    def compile_seconds(self) -> float:
        """Spent on compiling passes when they were first needed. All other times leave it out."""
        return sum(one.seconds for one in self.compiled)

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
        """For lossy rules: total variation and KL (nats) from the target's law, per node that was
        judged. None for lossless ones."""
        counts = self.counts
        if self.lossless or not counts.get("nodes_judged"):
            return None
        return {name: counts[name] / counts["nodes_judged"] for name in ("tv", "kl")}

    # -------------------------------------------------------------------------- what was expected

    @property
    def promises(self) -> Promises | None:
        """Expected against measured, of rounds that were decided by costs; None without any."""
        return promises(self.steps)

    @property
    def reliability(self) -> Reliability | None:
        """Expected chances of acceptance against outcomes; None where nothing was decided."""
        return reliability(self.steps)

    @property
    def why(self) -> str | None:
        """In one sentence, why it was fast or not; None where nothing drafts."""
        return why(self.steps)

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
            "compile_seconds": self.compile_seconds,
            "compiled": [one._asdict() for one in self.compiled],
            "first_token_seconds": self.first_token_seconds,
            "seconds": self.seconds,
            "cache_bytes": self.cache_bytes,
            "accepted_lengths": self.accepted_lengths,
            "acceptance": [
                {
                    "depth": depth,
                    "rank": rank,
                    "offered": c.offered,
                    "reached": c.reached,
                    "accepted": c.accepted,
                }
                for (depth, rank), c in self.acceptance.items()
            ],
            "counts": self.counts,
            "deviation": self.deviation,
            "account": self.account,
            "promises": self.promises and self.promises.as_dict(),
            "reliability": self.reliability and self.reliability.as_dict(),
        }

    def __repr__(self) -> str:
        return f"<Report: {self}>"

    def __str__(self) -> str:
        rate = self.acceptance_rate
        because = None if "no_harm" in self.account else self.why  # the bank says it, of its rounds
        return (
            f"{self.drafter} + {self.verifier}: tau {self.tau:.2f}, "
            + (f"acceptance rate {rate:.2f}, " if rate is not None else "")
            + f"{self.tokens_per_second:.0f} tokens/s, {self.num_tokens} tokens in "
            f"{self.target_calls} target calls"
            + ("" if self.lossless else ", lossy")
            + "".join(f"; {part['says']}" for part in self.account.values())
            + (f"; {because}" if because else "")
        )


def distinct_ngrams(sequences: list[list[int]], n: int = 4) -> float | None:
    """The share of different n-grams among all n-grams of each sequence, pooled. Loops flatter
    every drafter: report it beside every tau. None where no sequence is n tokens long."""
    total = sum(max(0, len(sequence) - n + 1) for sequence in sequences)
    different = sum(len({tuple(s[i : i + n]) for i in range(len(s) - n + 1)}) for s in sequences)
    return different / total if total else None


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
