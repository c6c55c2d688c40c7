"""Tokens as text, and where each token of a text came from."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from specdec.measuring.report import Step
from specdec.output import HALF, Output, TextStream, decoded


class Kept(NamedTuple):
    """One round of one prompt: the step, the row, and the tokens that the text kept of it."""

    step: Step
    row: int
    start: int  # index of the first in the output
    depths: list[int]  # per token the depth at which it was drafted; 0: the target's own


def rounds_of(output: Output, prompt: int) -> list[Kept]:
    """The rounds of one prompt, in order."""
    found, start = [], 0
    for step in output.steps:
        for row in np.flatnonzero(step.live & (step.prompts == prompt)).tolist():
            kept, accepted = int(step.kept[row]), int(step.num_accepted[row])
            depths = [n if n <= accepted else 0 for n in range(1, kept + 1)]
            found.append(Kept(step, row, start, depths))
            start += kept
    return found


def words(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text. A character that takes several comes with the last one;
    special tokens come by their names, and without a tokenizer tokens are their numbers."""
    if tokenizer is None:
        return [f"{token} " for token in tokens]
    label, special = labels(tokenizer), set(tokenizer.all_special_ids)
    text, found = TextStream(tokenizer, prompt), []
    for token in tokens:
        text.push([token])
        found.append(text.take() or (label(token) if token in special else ""))
    if found:
        found[-1] += text.take(final=True)
    return found


def labels(tokenizer: Any) -> Any:
    """A function: a token's text alone, as it is inside of a text; its name in the vocabulary where
    it is half a character or special."""
    if tokenizer is None:
        return str
    before = tokenizer.encode("a", add_special_tokens=False)
    start = len(decoded(tokenizer, before))

    @lru_cache(None)
    def label(token: int) -> str:
        text = decoded(tokenizer, [*before, token])[start:]
        if text and HALF not in text:
            return text
        return str(tokenizer.convert_ids_to_tokens(token) or token)

    return label
