"""Prompts from files and data sets: all of them are read and checked before anything runs.

prompt.py        what a prompt is
entry.py         one entry of a data set -> its turns and its category, by the keys that people use
sources.py       text, folders, JSON lines (.gz or not), Hugging Face data sets, DeepSpec's and
                 SPEED-Bench's files -> entries, with the place of each
conversation.py  turns -> token ids: chat templates, and the model's own answers between the turns
"""

import random
from collections import defaultdict
from dataclasses import replace

from experiments.prompts.prompt import Prompt
from experiments.prompts.sources import OWN, SOURCES

__all__ = ["Prompt", "read"]


def read(
    format: str,
    path: str,
    field: str | None = None,
    category: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    subset: str | None = None,
    split: str | None = None,
    tokens: int | None = None,
    thinking: bool | None = None,
) -> list[Prompt]:
    """format: "text" (paragraphs), "folder", "jsonl", "datasets", "deepspec" or "speed_bench"; the
    last three take a `subset`, and "datasets" a `split`. field, category: the keys of an entry that
    hold its text or turns, and its kind; null finds the former. limit: that many, taken in turn
    from each category. seed: shuffle before that. tokens: each prompt gets exactly this length: a
    longer text keeps its last tokens, and a shorter one is preceded by other texts of the source,
    so that the end to be continued stays the same. thinking: `enable_thinking` of chat templates
    that know it.

    Raises ValueError, with file and line, for an entry that is no prompt; then nothing has run.
    """
    if format not in SOURCES:
        raise ValueError(f"prompts.format must be one of {', '.join(SOURCES)}, got {format!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"prompts.limit must be >= 1, or null for all, got {limit}")
    if tokens is not None and tokens < 1:
        raise ValueError(
            f"prompts.tokens must be >= 1, or null to leave prompts as they are, got {tokens}"
        )
    given = {"subset": subset, "split": split}
    options = {key: given[key] for key in OWN.get(format, ())}
    found = [
        Prompt(index, turns[0], kind, tuple(turns[1:]), thinking=thinking)
        for index, (turns, kind) in enumerate(SOURCES[format](path, field, category, **options))
    ]
    if not found:
        raise ValueError(f"{path} holds no prompts")
    if seed is not None:
        random.Random(seed).shuffle(found)
    chosen = found if limit is None else _in_turn(found)[:limit]
    return chosen if tokens is None else [_filled(prompt, found, tokens) for prompt in chosen]


def _filled(prompt: Prompt, source: list[Prompt], tokens: int) -> Prompt:
    place = source.index(prompt)
    # round the source once, so that no text stands there twice
    others = (*source[place + 1 :], *source[:place])
    return replace(prompt, tokens=tokens, before=tuple(other.text for other in others))


def _in_turn(prompts: list[Prompt]) -> list[Prompt]:
    """One of each category, then the second of each, and so on."""
    seen: dict[str, int] = defaultdict(int)
    turns = []
    for prompt in prompts:
        turns.append(seen[prompt.category])
        seen[prompt.category] += 1
    return [
        prompt for _, prompt in sorted(zip(turns, prompts, strict=True), key=lambda pair: pair[0])
    ]
