"""What a drafter that decides by costs expected of its rounds, against what they brought; and why
a run was fast or not.

Letters: R rounds, B rows, N nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from specdec.measuring.report import Step

BINS = 10
FEW = 3  # rounds without drafts, from which on they say what plain decoding takes


@dataclass(frozen=True)
class Promises:
    """Of R rounds: arrays (R,)."""

    expected_tokens: np.ndarray  # of all rows, the token that the target adds included
    tokens: np.ndarray
    expected_seconds: np.ndarray
    seconds: np.ndarray
    plain_seconds: np.ndarray  # of a round of plain decoding, by the table

    @property
    def token_ratio(self) -> float:
        """Measured / expected."""
        return float(self.tokens.sum() / self.expected_tokens.sum())

    @property
    def time_ratio(self) -> float:
        """The median round, measured / expected."""
        return float(np.median(self.seconds / self.expected_seconds))

    def as_dict(self) -> dict[str, Any]:
        return {
            "rounds": len(self.tokens),
            "expected_tokens": float(self.expected_tokens.mean()),
            "tokens": float(self.tokens.mean()),
            "expected_seconds": float(self.expected_seconds.mean()),
            "seconds": float(self.seconds.mean()),
            "token_ratio": self.token_ratio,
            "time_ratio": self.time_ratio,
        }


@dataclass(frozen=True)
class Reliability:
    """Nodes by their expected chance of acceptance, in BINS bins of equal width."""

    count: np.ndarray  # nodes of a bin
    expected: np.ndarray  # their mean chance
    accepted: np.ndarray  # the share of them that was accepted

    @property
    def error(self) -> float:
        """The expected calibration error: |expected - accepted|, the mean over nodes."""
        off = np.abs(self.expected - self.accepted) * self.count
        return float(off.sum() / max(1, self.count.sum()))

    def as_dict(self) -> dict[str, object]:
        return {
            "error": self.error,
            "count": self.count.tolist(),
            "expected": self.expected.tolist(),
            "accepted": self.accepted.tolist(),
        }


def promises(steps: Sequence["Step"]) -> Promises | None:
    decided = [(step, step.decision) for step in steps if step.decision is not None]
    if not decided:
        return None
    return Promises(
        np.array([decision.tokens for _, decision in decided]),
        np.array([float((step.num_accepted + 1)[step.live].sum()) for step, _ in decided]),
        np.array([decision.seconds for _, decision in decided]),
        np.array([step.decode_seconds for step, _ in decided]),
        np.array([decision.plain for _, decision in decided]),
    )


def reliability(steps: Sequence["Step"]) -> Reliability | None:
    expected, accepted = list[np.ndarray](), list[np.ndarray]()
    for step in steps:
        if step.decision is None or step.decision.survivals is None:
            continue
        width = step.parents.shape[1]
        used = (step.parents >= 0) & step.live[:, None]
        hits = np.zeros((len(used), width + 1), dtype=bool)
        path = np.where(step.path > 0, step.path, width).astype(np.int64)
        np.put_along_axis(hits, path, True, 1)
        expected.append(step.decision.survivals[:, :width][used])
        accepted.append(hits[:, :width][used])
    if not expected:
        return None
    chance, hit = np.concatenate(expected), np.concatenate(accepted).astype(float)
    place = (chance * BINS).astype(int).clip(max=BINS - 1)
    count = np.bincount(place, minlength=BINS)
    some = count.clip(min=1)
    return Reliability(
        count, np.bincount(place, chance, BINS) / some, np.bincount(place, hit, BINS) / some
    )


def why(steps: Sequence["Step"]) -> str | None:
    """tau against the tau at which such rounds would be as fast as plain decoding. Plain rounds
    take what the cost table says; without a table, what rounds without drafts took in this run; and
    without enough of those, at most what a round takes apart from drafting. None where nothing
    drafts."""
    rows = sum(int(step.live.sum()) for step in steps)
    tau = float(sum(int(step.kept.sum()) for step in steps)) / max(1, rows)
    drafted = np.array([float(step.num_nodes.max(initial=0)) for step in steps])
    nodes, found = float(drafted.mean()) if len(steps) else 0.0, promises(steps)
    if nodes < 0.05:
        none = f"nothing was drafted: on this machine drafts would not pay (tau {tau:.2f})"
        return none if found else None
    if found is not None:
        return _pays(tau, nodes, float(found.seconds.sum() / found.plain_seconds.sum()))
    seconds = np.array([step.decode_seconds for step in steps])
    others = seconds - np.array([step.seconds.get("draft", 0.0) for step in steps])
    if (drafted == 0).sum() >= FEW:
        return _pays(tau, nodes, float(seconds.mean() / np.median(others[drafted == 0])))
    least, share = float(seconds.sum() / others.sum()), float(1 - others.sum() / seconds.sum())
    needs = "needs" if tau >= least else "would need"
    return (
        f"tau {tau:.2f} at {nodes:.1f} nodes {needs} {least:.2f} or more to pay, as drafting takes "
        f"{share:.0%} of the time"
    )


def _pays(tau: float, nodes: float, needed: float) -> str:
    if tau >= needed:
        return f"tau {tau:.2f} at {nodes:.1f} nodes pays: {needed:.2f} is enough on this machine"
    return f"tau {tau:.2f} at {nodes:.1f} nodes would need {needed:.2f} to pay on this machine"
