"""Playing a run's prompts: batch by batch, and within a batch turn by turn, in every way.

Each way is given its own answers to the earlier turns, as in real use. At temperature 0 these
answers are the same, up to ties.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.measuring.memory import peak
from experiments.measuring.ways import Ours, Sample, Way
from experiments.prompts import Prompt
from experiments.prompts.conversation import Conversation, most_tokens, uses_chat
from experiments.study.result import Skipped
from specdec.interfaces import compile_of
from specdec.requests import check_prompts

WARM_UP = 16  # tokens of a warm-up, at most


@dataclass(frozen=True)
class Played:
    """A batch of prompts in one turn: what each way was given, and what it made of it."""

    prompts: Sequence[Prompt]
    # token ids by way; in later turns its own answers stand in them
    given: Mapping[str, Sequence[Sequence[int]]]
    samples: Mapping[str, Sample]
    batch: int = 0
    turn: int = 0
    earlier: int | None = None  # batches that were decoded before it; None: all with lower numbers

    @property
    def is_first(self) -> bool:
        """Whether its drafter can have learnt from no other batch."""
        return (self.batch if self.earlier is None else self.earlier) == 0


class Play:
    """The prompts of a run, checked: raises ValueError for one that the target cannot take, before
    anything is decoded.

    too_long: "refuse", or "skip" for leaving out prompts that do not fit the target's context;
    `skipped` names them. shard, shards: every `shards`-th batch is played, from number `shard` on;
    batches, and the numbers that key chance, are those of the whole.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        target: Any,
        chat: bool | None,
        batch_size: int,
        max_new_tokens: int,
        too_long: str = "refuse",
        shard: int = 0,
        shards: int = 1,
    ) -> None:
        if too_long not in ("refuse", "skip"):
            raise ValueError(f"prompts.too_long must be refuse or skip, got {too_long!r}")
        if target.tokenizer is None:
            raise ValueError(f"the target {target.name} has no tokenizer, and prompts are texts")
        self.target, self.chat, self.max_new_tokens = (
            target,
            uses_chat(target.tokenizer, chat),
            max_new_tokens,
        )
        self.skipped: list[Skipped] = []
        if too_long == "skip":
            prompts = self._fitting(prompts)
        batches = [
            list(prompts[first : first + batch_size])
            for first in range(0, len(prompts), batch_size)
        ]
        if shards > len(batches):
            raise ValueError(
                f"shards={shards} and {len(prompts)} prompts in batches of {batch_size}: there are "
                f"only {len(batches)} batches to share out; ask for at most so many shards"
            )
        self.numbers = range(shard, len(batches), shards)  # of the batches
        self.batches = [batches[number] for number in self.numbers]
        self.turns = sum(max(len(prompt.turns) for prompt in batch) for batch in self.batches)
        self._beyond = 1 + max(prompt.index for prompt in prompts)
        check_prompts(
            [self._begin(prompt).ids for prompt in prompts],
            target.vocabulary,
            target.context,
            max_new_tokens,
        )
        for prompt in prompts:
            if prompt.later and (longest := self._longest(prompt)) > target.context:
                raise ValueError(
                    f"prompt {prompt.index} has {len(prompt.turns)} turns; with answers of "
                    f"max_new_tokens={max_new_tokens} they are {longest} tokens, over the target's "
                    f"context of {target.context}; ask for fewer, or leave such prompts out with "
                    "prompts.too_long=skip"
                )

    def _longest(self, prompt: Prompt) -> int:
        """Tokens of the prompt with all its turns and answers, when every answer is as long as it
        may be."""
        return (
            most_tokens(prompt, self.target.tokenizer, self.chat, self.max_new_tokens)
            + self.max_new_tokens
        )

    def _fitting(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        longest = {prompt.index: self._longest(prompt) for prompt in prompts}
        context = self.target.context
        self.skipped = [
            Skipped(prompt=n, tokens=tokens) for n, tokens in longest.items() if tokens > context
        ]
        fitting = [prompt for prompt in prompts if longest[prompt.index] <= context]
        if not fitting:
            raise ValueError(
                f"none of {len(prompts)} prompts fits the target's context of {context} tokens "
                f"with answers of max_new_tokens={self.max_new_tokens}; the shortest takes "
                f"{min(longest.values())}"
            )
        return fitting

    def _begin(self, prompt: Prompt) -> Conversation:
        return Conversation(prompt, self.target.tokenizer, self.chat, self.target.eos_ids)

    def first(self) -> tuple[list[list[int]], list[int]]:
        """Token ids and request ids of the first batch."""
        return self._given(self.batches[0])

    def all(self) -> list[tuple[list[list[int]], list[int]]]:
        """Token ids and request ids of every batch, first turns only."""
        return [self._given(batch) for batch in self.batches]

    def _given(self, batch: Sequence[Prompt]) -> tuple[list[list[int]], list[int]]:
        return [self._begin(prompt).ids for prompt in batch], [prompt.index for prompt in batch]

    def __call__(self, ways: dict[str, Way], warmup: int, forget: bool = True) -> Iterator[Played]:
        """One per batch and turn. A later turn holds the prompts that have one; its request ids are
        numbers of their own, so that no random number is used twice. `warmup` batches are decoded
        first and thrown away, and what drafters learnt, from them or before, is forgotten if
        `forget`. They are as long as the others where passes are compiled, for a size of memory,
        when they are first needed."""
        tokens = self.max_new_tokens if compile_of(self.target) else WARM_UP
        for prompts, ids in map(self._given, self.batches[:warmup]):
            for way in ways.values():
                way(prompts, ids, min(self.max_new_tokens, tokens))
        for way in ways.values():
            if forget and isinstance(way, Ours):
                way.drafter.forget()
        rounds = 0
        for earlier, (number, batch) in enumerate(zip(self.numbers, self.batches, strict=True)):
            talks = {name: [self._begin(prompt) for prompt in batch] for name in ways}
            for turn in range(max(len(prompt.turns) for prompt in batch)):
                rows = [row for row, prompt in enumerate(batch) if len(prompt.turns) > turn]
                given = {name: [talk[row].ids for row in rows] for name, talk in talks.items()}
                ids = [batch[row].index + turn * self._beyond for row in rows]
                samples = in_every_way(
                    ways, given, ids, self.max_new_tokens, backwards=rounds % 2 == 1
                )
                found = [batch[row] for row in rows]
                yield Played(found, given, samples, number, turn, earlier)
                for name, sample in samples.items():
                    for row, tokens in zip(rows, sample.tokens, strict=True):
                        if not talks[name][row].over:
                            talks[name][row].answer(tokens)
                rounds += 1


def in_every_way(
    ways: dict[str, Way],
    given: Mapping[str, Sequence[Sequence[int]]],
    request_ids: Sequence[int],
    max_new_tokens: int,
    backwards: bool,
) -> dict[str, Sample]:
    """One batch, given to each way as token ids. Every second batch runs the ways `backwards`, so
    that no way is always the first."""
    done = {}
    for name in reversed(ways) if backwards else ways:
        with peak(ways[name].target.device) as highest:
            sample = ways[name](given[name], request_ids, max_new_tokens)
        done[name] = replace(sample, peak=highest)
    return {name: done[name] for name in ways}
