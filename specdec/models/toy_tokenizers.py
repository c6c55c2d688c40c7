"""Two tokenizers of words that disagree, for models of a few tokens that have none.

Certificates and the suite of laws draft with them across vocabularies.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@lru_cache(16)
def toy_tokenizers(
    draft: int, target: int
) -> tuple["PreTrainedTokenizerFast", "PreTrainedTokenizerFast"]:
    """The draft model's and the target's, of so many words. The same word has another id; the
    target's last word is missing in the draft model, which has an unknown one in its place."""
    words = [f"w{number}" for number in range(target)]
    others = [*words[: min(target - 1, draft - 1)], "unknown"]
    others += [f"other{number}" for number in range(draft - len(others))]
    return _of_words([*others[1:], others[0]]), _of_words(words)


def _of_words(words: list[str]) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(words)}
    unknown = "unknown" if "unknown" in ids else words[0]
    inner = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)
