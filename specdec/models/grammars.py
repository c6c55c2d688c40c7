"""Grammars for the texts of a target: what its tokens are in llguidance's eyes."""

from collections.abc import Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from specdec.grammar import Grammar, GrammarChoice, matcher
from specdec.interfaces import LanguageModel
from specdec.models.pieces import pieces_of

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def grammars_of(
    given: GrammarChoice | Sequence[GrammarChoice], prompts: int, target: LanguageModel
) -> list[Grammar | None]:
    """One per prompt. Raises ValueError for what no grammar can be made of, and where the target
    has no tokenizer or no EOS."""
    if isinstance(given, (list, tuple)):
        if len(given) != prompts:
            raise ValueError(
                f"grammar must give one entry per prompt: {prompts} prompts, {len(given)} entries"
            )
        found = [Grammar.of(one) for one in given]
    else:
        found = [Grammar.of(given)] * prompts
    for grammar in set(found):
        if grammar is not None:
            matcher(grammar, tokens_of(target))
    return found


def tokens_of(target: LanguageModel) -> "LLTokenizer":
    """The target's tokens. Raises ValueError where it has no tokenizer or no EOS."""
    if target.tokenizer is None:
        raise ValueError(
            f"a grammar is of text, and {target.name} has no tokenizer; load (model, tokenizer)"
        )
    if not target.eos_ids:
        raise ValueError(
            f"a text that a grammar describes ends by EOS, and {target.name} has none; set "
            "eos_token_id in its generation_config.json or config.json"
        )
    return _tokens(target.tokenizer, target.vocabulary, tuple(sorted(target.eos_ids)))


@lru_cache(16)
def _tokens(tokenizer: Any, vocabulary: int, eos_ids: tuple[int, ...]) -> "LLTokenizer":
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise ValueError("grammar needs llguidance: pip install 'specdec[grammar]'") from error
    pieces = pieces_of(tokenizer, vocabulary)
    names = {number: name for name, number in pieces.special.items()}

    class Encoder(SimpleNamespace):
        def __call__(self, data: bytes) -> list[int]:
            return pieces.encode(data, opens=False)

    nothing = [number for number, piece in enumerate(pieces.bytes) if not piece]
    # 0xFF begins the name of a token that stands for no bytes.
    called = {
        number: b"\xff" + names.get(number, f"<unused {number}>").encode() for number in nothing
    }
    encoder = Encoder(
        eos_token_id=eos_ids[0],
        bos_token_id=None,
        tokens=[piece or called[number] for number, piece in enumerate(pieces.bytes)],
        special_token_ids=nothing,
    )
    return LLTokenizer(TokenizerWrapper(encoder), n_vocab=vocabulary, eos_token=list(eos_ids))
