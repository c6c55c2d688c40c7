"""Whether two models mean the same by a token id."""

import hashlib
import json
from functools import lru_cache
from typing import Any

from specdec.interfaces import LanguageModel

REMEDY = (
    "a draft model needs the target's tokenizer, or vocabulary='intersection' or 'text', which are "
    "for models with another one"
)


def tokenizer_digest(model: LanguageModel) -> str | None:
    """Of a model's tokenizer: every token and its id. None for a model without one."""
    return None if model.tokenizer is None else digest_of(model.tokenizer)


@lru_cache(32)
def digest_of(tokenizer: Any) -> str:
    """Of every token of a tokenizer and its id."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def check_same_tokens(draft: LanguageModel, target: LanguageModel) -> None:
    """Raise ValueError, naming both sides, for a draft model of another vocabulary. Where one of
    them has no tokenizer only the sizes can be compared."""
    if draft.vocabulary != target.vocabulary:
        raise ValueError(
            f"the draft model has a vocabulary of {draft.vocabulary} tokens, the target of "
            f"{target.vocabulary}; {REMEDY}"
        )
    ours, theirs = tokenizer_digest(draft), tokenizer_digest(target)
    if ours is None or theirs is None or ours == theirs:
        return
    one, other = draft.tokenizer.get_vocab(), target.tokenizer.get_vocab()
    apart = next(token for token in {**one, **other} if one.get(token) != other.get(token))
    raise ValueError(
        f"the draft model {draft.name} has {draft.vocabulary} tokens, as many as the target "
        f"{target.name}, but another tokenizer: {apart!r} is {one.get(apart)} there and "
        f"{other.get(apart)} here; {REMEDY}"
    )
