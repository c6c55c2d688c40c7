"""One played load in figures; the speed-up over plain decoding, and the load where it ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from experiments.load_study.play import Played, Request, Round

PLAIN = "none"
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Limits:
    """What a user waits for; seconds."""

    first_token: float
    gap: float  # between tokens, the mean of a request

    def kept_by(self, request: Request) -> bool:
        """Whether the request was served in time."""
        gaps = request.gaps
        in_time = request.first_token <= self.first_token
        return in_time and (not gaps or float(np.mean(gaps)) <= self.gap)


def measured(played: Played, warmup: float, limits: Limits) -> dict[str, float | None]:
    """Of the requests after the first share `warmup` of them, from the arrival of the first of
    these to the end of the last."""
    counted = played.requests[math.floor(warmup * len(played.requests)) :]
    began, ended = counted[0].arrived, max(request.ended for request in counted)
    rounds = [each for each in played.rounds if each.second >= began]
    window = ended - began
    gaps = [gap for request in counted for gap in request.gaps]
    good = sum(limits.kept_by(request) for request in counted)
    rows, tokens = sum(each.rows for each in rounds), sum(each.tokens for each in rounds)
    pages = [each.pages for each in rounds if each.pages is not None]
    return {
        "requests": len(counted),
        "tokens_per_second": tokens / window,
        "requests_per_second": len(counted) / window,
        "goodput": good / window,
        "in_time": good / len(counted),
        "request_seconds": float(np.mean([request.seconds for request in counted])),
        **percentiles("first_token", [request.first_token for request in counted]),
        **percentiles("gap", gaps),
        "tau": tokens / rows if rows else None,
        "queue": _over_time(rounds, "queue"),
        "queue_most": max(each.queue for each in rounds),
        "seats": _over_time(rounds, "seats"),
        "pages_most": max(pages) if pages else None,
        "memory_bytes": max(each.memory_bytes for each in rounds),
        "set_aside": sum(request.set_aside for request in counted),
        "failed": sum(request.finish_reason == "failed" for request in counted),
    }


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    """NAME_p50 and so on; None where there are no values."""
    return {
        f"{name}_p{each}": float(np.percentile(seconds, each)) if len(seconds) else None
        for each in PERCENTILES
    }


def _over_time(rounds: Sequence[Round], name: str) -> float:
    """The mean over time of a value that holds from one round to the next."""
    values = [float(getattr(each, name)) for each in rounds]
    spans = np.diff([each.second for each in rounds])
    return float(np.average(values[:-1], weights=spans)) if spans.sum() > 0 else values[-1]


def with_speedups(plays: pd.DataFrame) -> pd.DataFrame:
    """Plays, one a row by drafter, load and repeat, with `speedup`: how many times the mean time of
    a request takes in plain decoding, at the same load in the same repeat."""
    plain = plays[plays["drafter"] == PLAIN].set_index(["load", "repeat"])["request_seconds"]
    keys = pd.MultiIndex.from_frame(plays[["load", "repeat"]])
    base = plain.reindex(keys).to_numpy()
    return plays.assign(speedup=base / plays["request_seconds"])


def medians(plays: pd.DataFrame) -> pd.DataFrame:
    """One row by drafter and load: medians over repeats."""
    words = ("drafter", "repeat")
    # None, of an engine without pages, becomes NaN
    figures = {name: float for name in plays.columns if name not in words}
    kept = plays.drop(columns="repeat").astype(figures)
    return kept.groupby(["drafter", "load"], sort=False).median().reset_index()


def crossing(loads: Sequence[float], speedups: Sequence[float]) -> float | None:
    """The load where a speed-up first falls through 1, interpolated between the two measured loads
    around it, in the logarithm of the load. None: it does not, between these loads."""
    points = list(zip(np.log(loads), speedups, strict=True))
    for (left, above), (right, below) in pairwise(points):
        if above >= 1 > below:
            return float(np.exp(left + (right - left) * (above - 1) / (above - below)))
    return None


def sentence(drafter: str, loads: Sequence[float], speedups: Sequence[float], unit: str) -> str:
    """Where speculation stops paying."""
    found = crossing(loads, speedups)
    if found is not None:
        return f"{drafter} pays up to about {found:.3g} {unit}; beyond that it is slower."
    measured = f"between {min(loads):g} and {max(loads):g} {unit}"
    if all(each >= 1 for each in speedups):
        return f"{drafter} pays at every load that was measured, {measured}."
    if all(each < 1 for each in speedups):
        return f"{drafter} pays at no load that was measured, {measured}."
    return f"{drafter} pays at the higher loads only, {measured}."
