"""Who is examined: a target, a drafter and a rule, with prompts. What several checks need is
decoded once, when the first of them asks for it."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import specdec
from experiments.certificates.certificate import Pair
from experiments.certificates.kept import arguments_of
from experiments.measuring.lineup import make_drafter
from experiments.measuring.measures import outcome
from experiments.measuring.play import Play, Played
from experiments.measuring.rounds import rounds
from experiments.measuring.ways import METHOD, Ours, Sample, Way, load
from experiments.prompts import Prompt
from experiments.study.outcome import Outcome
from experiments.study.schema import Sampling, Target
from experiments.terminal.progress import Advance
from specdec import Drafter
from specdec.heads.head import Head
from specdec.models.language_model import TransformersLM
from specdec.output import Output
from specdec.pairing import pair
from specdec.plugins import build
from specdec.requests import make_chance

NONE = "none"
Bar = Callable[[str, int], AbstractContextManager[Advance]]


@dataclass(frozen=True)
class Patient:
    """drafter, verifier: settings (`name` or `_target_`, and arguments)."""

    where: Target
    drafter: Mapping[str, Any]
    verifier: Mapping[str, Any]
    sampling: Sampling
    prompts: Sequence[Prompt]  # their first turns are decoded
    max_new_tokens: int
    bar: Bar
    chat: bool | None = None
    seed: int = 0
    allow_lossy: bool = False

    def check(self) -> None:
        """Raise ValueError for what cannot be examined at all."""
        _ = self.plain_sampling, self.play, self.method
        if self.refusal is None:
            _ = self.rule

    @cached_property
    def target(self) -> TransformersLM:
        return load(**asdict(self.where))

    @cached_property
    def pair(self) -> Pair:
        return Pair(arguments_of("drafter", self.drafter), self.verifier)

    @cached_property
    def method(self) -> Drafter:
        """The drafter with its weights."""
        return make_drafter(self.pair.drafter, self.where)

    @cached_property
    def parts(self) -> list[Drafter]:
        """The drafter, and those that it chooses between."""
        inner = [each for each in vars(self.method).values() if isinstance(each, Drafter)]
        return [self.method, *inner]

    @cached_property
    def draft_model(self) -> TransformersLM | None:
        models = [getattr(part, "model", None) for part in self.parts]
        return next((model for model in models if isinstance(model, TransformersLM)), None)

    @cached_property
    def head(self) -> Head | None:
        heads = [getattr(part, "heads", None) for part in self.parts]
        return next((head for head in heads if isinstance(head, Head)), None)

    @property
    def drafts(self) -> bool:
        return self.method.max_nodes > 1

    @cached_property
    def begun(self) -> Drafter:
        """The drafter as a run has it, when its law is final. Raises ValueError where it refuses
        the target."""
        begun = copy.copy(self.method)
        begun.begin(self.target, 1, self.plain_sampling)
        for one in begun.opened:
            one.close()
        return begun

    @cached_property
    def refusal(self) -> str | None:
        """Why the drafter does not take this target. None: it does."""
        try:
            _ = self.begun
        except ValueError as error:
            return str(error)
        return None

    @cached_property
    def rule(self) -> specdec.Verifier:
        """Raises specdec.Refused for a rule that does not accept the drafter's trees."""
        rule, chance = self.pair.rule(self.sampling.temperature), make_chance(self.seed, None)
        vocabulary = self.target.vocabulary
        return pair(self.begun, rule, self.plain_sampling, chance, vocabulary, self.allow_lossy)

    @property
    def plain_sampling(self) -> specdec.Sampling:
        return specdec.Sampling(**asdict(self.sampling))

    @property
    def options(self) -> dict[str, Any]:
        """Of `generate`, for the drafter in use."""
        return {
            **asdict(self.sampling),
            "seed": self.seed,
            "verifier": self.rule,
            "allow_lossy": self.allow_lossy,
        }

    @cached_property
    def play(self) -> Play:
        """The prompts, checked."""
        first = [replace(prompt, later=()) for prompt in self.prompts]
        return Play(first, self.target, self.chat, 1, self.max_new_tokens, "skip")

    @cached_property
    def given(self) -> list[list[int]]:
        """Token ids of the prompts."""
        return [prompt for prompt, _ in self.samples]

    @cached_property
    def played(self) -> list[Played]:
        """Every prompt with the drafter and without, in turn."""
        plain = {**asdict(self.sampling), "seed": self.seed}
        ways: dict[str, Way] = {
            METHOD: Ours(self.target, self.method, self.options),
            NONE: Ours(self.target, build("drafter", NONE), plain),
        }
        found = []
        with self.bar("decoding", self.play.turns) as advance:
            for one in self.play(ways, warmup=1):
                found.append(one)
                advance()
        return found

    @cached_property
    def outcome(self) -> Outcome:
        """The numbers of `played`."""
        plain = Ours(self.target, build("drafter", NONE))
        ways = {METHOD: Ours(self.target, self.method), NONE: plain}
        # At temperature 0 an outcome also compares tokens with plain decoding: `greedy` does that.
        sampling = replace(self.sampling, temperature=self.sampling.temperature or 1.0)
        return outcome(self.played, ways, sampling, rounds("", "", "", self.played))

    @property
    def samples(self) -> Iterator[tuple[list[int], Sample]]:
        """Each prompt's ids, and what the drafter made of it."""
        for one in self.played:
            yield list(one.given[METHOD][0]), one.samples[METHOD]

    @cached_property
    def traced(self) -> Output:
        """All prompts at once, with every node's token."""
        options = {**self.options, "max_new_tokens": self.max_new_tokens}
        return specdec.generate(self.target, self.given, drafter=self.method, trace=True, **options)
