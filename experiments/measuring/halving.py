"""Successive halving over ways to decode: all on a few prompts, the better half on more, until one
is left or the time is up. Ways are interleaved, and compared prompt by prompt.

A score is the mean of log(seconds per token of plain decoding / of the way) over prompts.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from experiments.measuring.ways import Sample

FIRST = 2  # prompts of the first heat
Decode = Callable[[str, int], Sample]  # a way, by name, over a prompt, by number


@dataclass
class Tally:
    """One way over the prompts that it has decoded."""

    gains: dict[int, float] = field(default_factory=dict)  # prompt: the log of the speed-up
    tau: list[float] = field(default_factory=list)
    relative: list[float] = field(default_factory=list)  # seconds of a round / of a plain one

    @property
    def score(self) -> float:
        return sum(self.gains.values()) / max(1, len(self.gains))

    @property
    def speed_up(self) -> float:
        return math.exp(self.score)

    @property
    def predicted(self) -> float:
        """tau / relative cost of a round, of means: what a long text of this kind would gain."""
        rounds = len(self.tau)
        return (sum(self.tau) / rounds) / (sum(self.relative) / rounds) if rounds else 1.0


def pace(sample: Sample) -> tuple[float, float]:
    """Seconds per token, seconds per round, of decoding alone."""
    report = sample.report
    assert report is not None
    tokens, rounds = max(1, report.num_tokens), max(1, report.target_calls)
    return report.decode_seconds / tokens, report.decode_seconds / rounds


def measured(
    ways: Sequence[str], prompts: Sequence[int], decode: Decode, tallies: dict[str, Tally]
) -> None:
    """Decode prompts in every way and in plain decoding ("none"), in turns."""
    for place, prompt in enumerate(prompts):
        todo = ["none", *(way for way in ways if prompt not in tallies[way].gains)]
        if len(todo) == 1:
            continue
        samples = {way: decode(way, prompt) for way in (todo if place % 2 == 0 else todo[::-1])}
        plain = pace(samples.pop("none"))
        for way, sample in samples.items():
            own, tally = pace(sample), tallies[way]
            assert sample.report is not None
            tally.gains[prompt] = math.log(plain[0] / own[0])
            tally.tau.append(sample.report.tau)
            tally.relative.append(own[1] / plain[1])


def halve(
    ways: Sequence[str],
    prompts: Sequence[int],
    decode: Decode,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[str], dict[str, Tally]]:
    """The ways that are left, best first, and what all of them made."""
    tallies = {way: Tally() for way in ways}
    left, count, began = list(ways), FIRST, clock()
    while True:
        heat = prompts[:count]
        started = clock()
        measured(left, heat, decode, tallies)
        left.sort(key=lambda way: -tallies[way].score)
        took, spent = clock() - started, clock() - began
        if len(left) == 1 or count >= len(prompts) or spent + took > seconds:
            return left, tallies
        left, count = left[: max(1, math.ceil(len(left) / 2))], min(2 * count, len(prompts))
