"""What the tokens of a tokenizer stand for, in bytes, so that two tokenizers can be compared.

A token's bytes are those that it adds to running text: `Ġthe` of a byte-level BPE, `▁the` of
SentencePiece and `the` of a word-level tokenizer are all b" the". A token may hold a part of a
character. Special tokens have no bytes; they have a role (`eos_token`) and a name (`<|user|>`).

Letters: V vocabulary.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

ROLES = ("eos_token", "bos_token", "unk_token", "sep_token", "pad_token")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"  # SentencePiece's sign for a space
ANCHOR = "\n"  # written before text that does not open a text, so that no space is put there


class Pieces:
    """The tokens of one tokenizer. `size` is V of its model: ids past it cannot be drafted, and
    ids without a token (padding of the vocabulary) stand for nothing.

    bytes     per id; None for special tokens and for padding
    ids       the id of each sequence of bytes; a proper token goes before a byte token
    special   ids of special tokens, by role and by name

    Raises ValueError for a tokenizer that does not list its vocabulary.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        if not callable(getattr(tokenizer, "get_vocab", None)):
            raise ValueError(
                f"a tokenizer that lists its tokens by get_vocab() was expected, got "
                f"{type(tokenizer).__name__}; load a transformers tokenizer with the model"
            )
        self.tokenizer = tokenizer
        # By id: get_vocab() of a fast tokenizer is in no order.
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        self.bytes: list[bytes | None] = [None] * size
        self.special: dict[str, int] = {}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special_ids = {
            *getattr(tokenizer, "all_special_ids", ()),
            *(token for token, what in added.items() if what.special),
        }
        read = _reader(tokenizer, [token for token, _ in vocabulary])
        self.adds_space = read is not _byte_level  # in front of the first word of a text
        self.ids: dict[bytes, int] = {}
        for token, number in sorted(vocabulary, key=_proper_first):
            if number >= size:
                continue
            if number in special_ids:
                self.special[token] = number
                continue
            found = token.encode() if number in added else read(token)
            self.bytes[number] = found
            if found:
                self.ids.setdefault(found, number)
        for role in ROLES:
            of_role: Any = getattr(tokenizer, f"{role}_id", None)
            if of_role in special_ids and of_role < size:
                self.special[role] = of_role
        # A byte is written as a token of its own where a character is not complete.
        self._byte = {found[0]: number for found, number in self.ids.items() if len(found) == 1}
        self.opening = self._opening()

    @property
    def num_tokens(self) -> int:
        """That stand for different bytes, or are special."""
        return len(self.ids) + len(set(self.special.values()))

    def encode(self, data: bytes, opens: bool, cut: bool = False) -> list[int]:
        """Tokens of `data`. opens: it is the beginning of a text. The end of a character that began
        earlier, and an incomplete one at the end, become byte tokens, or are left out if there are
        none; with `cut` the one at the end always is."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        first = 0 if opens else _continued(data)
        text = decoder.decode(data[first:])
        rest, _ = decoder.getstate()
        found = [*self._bytes(data[:first]), *self._encoded(text, opens)]
        return found if cut else [*found, *self._bytes(rest)]

    def _bytes(self, data: bytes) -> list[int]:
        """A token for each byte; none if there is not one for all."""
        found = [self._byte[each] for each in data if each in self._byte]
        return found if len(found) == len(data) else []

    def _encoded(self, text: str, opens: bool) -> list[int]:
        if not text:
            return []
        plain = self._ids(text)
        if opens or self.text(plain) == text.encode():
            return plain
        # The tokenizer put a space in front. Behind a line break it puts none.
        before, anchored = self._ids(ANCHOR), self._ids(ANCHOR + text)
        rest = anchored[len(before) :]
        fits = anchored[: len(before)] == before and self.text(rest) == text.encode()
        return rest if fits else plain

    def _ids(self, text: str) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [number for number in found if number < len(self.bytes)]

    def text(self, tokens: Iterable[int]) -> bytes:
        """The bytes of tokens; special ones have none."""
        return b"".join(self.bytes[token] or b"" for token in tokens)

    def _opening(self) -> list[int]:
        """What the tokenizer puts before every text, such as a beginning-of-text token."""
        plain = self._ids("a")
        whole = list(self.tokenizer("a", verbose=False)["input_ids"])
        for first in range(len(whole) - len(plain) + 1):
            if plain and whole[first : first + len(plain)] == plain:
                return whole[:first]
        return []


def _continued(data: bytes) -> int:
    """How many bytes belong to a character that began before."""
    return next((at for at, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))


@lru_cache(16)
def pieces_of(tokenizer: Any, size: int) -> Pieces:
    """`Pieces`, worked out once."""
    return Pieces(tokenizer, size)


def _proper_first(item: tuple[str, int]) -> tuple[bool, int]:
    token, number = item
    return BYTE_TOKEN.fullmatch(token) is not None, number


def _reader(tokenizer: Any, tokens: Sequence[str]) -> Callable[[str], bytes]:
    """How a tokenizer writes bytes as the text of a token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    known = "" if decoder is None else decoder.__getstate__().decode()
    if "ByteLevel" in known or (not known and any(token.startswith("Ġ") for token in tokens)):
        return _byte_level
    if SPACE in known or "Metaspace" in known or any(SPACE in token for token in tokens):
        return _sentence_piece
    if "WordPiece" in known or any(token.startswith("##") for token in tokens):
        return _word_piece
    return _word


@lru_cache(1)
def _byte_of() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones are themselves, the others follow from 256 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


def _byte_level(token: str) -> bytes:
    letters = _byte_of()
    if any(letter not in letters for letter in token):
        return token.encode()
    return bytes(letters[letter] for letter in token)


def _sentence_piece(token: str) -> bytes:
    if byte := BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(SPACE, " ").encode()


def _word_piece(token: str) -> bytes:
    return token[2:].encode() if token.startswith("##") else f" {token}".encode()


def _word(token: str) -> bytes:
    return f" {token}".encode()
