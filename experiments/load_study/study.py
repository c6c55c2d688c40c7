"""All loads of all drafters, played in turn on the same requests."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pandas as pd

import specdec
from experiments.load_study.arrivals import at_rate
from experiments.load_study.measures import PLAIN, Limits, measured
from experiments.load_study.play import Asked, Closed, Open, Played, play
from experiments.terminal.progress import Advance

WARM_UP = 16  # tokens of a request that an engine decodes first, unrecorded


class Load(NamedTuple):
    """A point of the study: requests a second, or how many at once."""

    value: float
    concurrent: bool = False

    def arrivals(self, times: Sequence[float]) -> Open | Closed:
        """times: of one request a second."""
        return Closed(int(self.value)) if self.concurrent else Open(at_rate(times, self.value))


@dataclass(frozen=True)
class Study:
    """drafters: by their names; plain decoding is among them."""

    target: specdec.TransformersLM
    drafters: dict[str, specdec.Drafter]
    loads: Sequence[Load]
    times: Callable[[int], Sequence[float]]  # of one request a second, for a seed
    draw: Callable[[int], Sequence[Asked]]  # requests, for a seed
    engine: dict[str, Any]  # arguments of the engine
    options: dict[str, Any]  # of every request
    limits: Limits
    warmup: float
    repeats: int
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError for a request that can never be served, before anything is decoded."""
        for drafter in self.drafters.values():
            with self._opened(drafter) as engine:
                for repeat in range(self.repeats):
                    for one in self.draw(self.seed + repeat):
                        self._submit(engine, one, one.max_new_tokens).cancel()

    def _opened(self, drafter: specdec.Drafter) -> specdec.Engine:
        return specdec.Engine(self.target, drafter=drafter, **self.engine)

    def _submit(self, engine: specdec.Engine, one: Asked, tokens: int) -> Any:
        return engine.submit(one.prompt, max_new_tokens=tokens, **self.options)

    def __call__(
        self, bar: Callable[[str, int], AbstractContextManager[Advance]]
    ) -> Iterator[tuple[dict[str, Any], Played]]:
        """Each play with its figures. Every repeat has requests and arrivals of its own, the same
        for all drafters; every second one takes the drafters backwards."""
        self._warm_up()
        with bar("loads", self.repeats * len(self.loads) * len(self.drafters)) as advance:
            for repeat in range(self.repeats):
                seed = self.seed + repeat
                asked, times = self.draw(seed), self.times(seed)
                names = list(self.drafters)[:: -1 if repeat % 2 else 1]
                for load in self.loads:
                    for name in names:
                        place = {"drafter": name, "load": load.value, "repeat": repeat}
                        drafter = self.drafters[name]
                        drafter.forget()
                        with self._opened(drafter) as engine:
                            played = play(engine, asked, load.arrivals(times), self.options)
                        yield place | measured(played, self.warmup, self.limits), played
                        advance()

    def _warm_up(self) -> None:
        """Every drafter with all seats in use."""
        asked = self.draw(self.seed)[: self.engine["seats"]]
        for drafter in self.drafters.values():
            with self._opened(drafter) as engine:
                for one in asked:
                    self._submit(engine, one, min(WARM_UP, one.max_new_tokens))
                for _ in engine:
                    pass


def drawn(
    prompts: Sequence[Sequence[int]], count: int, shortest: int, longest: int, seed: int
) -> list[Asked]:
    """Requests with prompts of the set and lengths, both drawn."""
    draw = random.Random(seed)
    return [
        Asked(number, draw.choice(prompts), draw.randint(shortest, longest))
        for number in range(count)
    ]


def frames(plays: Sequence[tuple[dict[str, Any], Played]]) -> dict[str, pd.DataFrame]:
    """`plays`: one a row; `requests` and `rounds`: theirs."""

    def table(rows: Callable[[Played], list[dict[str, Any]]]) -> pd.DataFrame:
        keys = ("drafter", "load", "repeat")
        return pd.DataFrame(
            [
                {**{key: place[key] for key in keys}, **row}
                for place, one in plays
                for row in rows(one)
            ]
        )

    def of_request(played: Played) -> list[dict[str, Any]]:
        return [
            {**asdict(one), "first_token": one.first_token, "seconds": one.seconds}
            for one in played.requests
        ]

    return {
        "plays": pd.DataFrame([place for place, _ in plays]),
        "requests": table(of_request),
        "rounds": table(lambda played: [each._asdict() for each in played.rounds]),
    }


def named(choices: str) -> list[str]:
    """Drafters of a command line, `small_model,depth=4,ngram`: a part without `=` begins a new one.
    Plain decoding is added, which the others are compared with."""
    found: list[str] = []
    depth = 0  # of brackets: the commas of a list do not part
    for part in choices.split(","):
        if depth == 0 and "=" not in part:
            found.append(part.strip())
        elif found:
            found[-1] += f",{part}"
        else:
            raise ValueError(f"drafter={choices!r} must begin with a name: NAME,argument=value,...")
        depth += part.count("[") - part.count("]")
    if "" in found or len(set(found)) < len(found):
        raise ValueError(f"drafter={choices!r} must list drafters, each once")
    return [PLAIN, *(name for name in found if name != PLAIN)]
