"""A target's tokens in those of a draft model with another tokenizer.

Tokens are the same where they stand for the same bytes (`specdec.models.pieces`); special tokens
where they have the same role or name. Committed text is written anew in the draft model's tokens.
Only its newest part may still change: `def re` and `ad` are two tokens, `def read` is another.

Letters: V tokens of the target, W tokens of the draft model, n nodes of a pass.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from specdec.errors import did_you_mean
from specdec.interfaces import LanguageModel
from specdec.models.pieces import ROLES, Pieces, pieces_of
from specdec.models.vocabulary import tokenizer_digest

SAME, INTERSECTION, TEXT, AUTO = "same", "intersection", "text", "auto"
MODES = (SAME, INTERSECTION, TEXT, AUTO)
ENOUGH = 0.5  # of the smaller vocabulary is shared: `auto` drafts from the intersection
FRESH = 16  # the target's newest tokens, whose pieces may still change
FAR = -1e30
"""The logit of a token that is not shared: its probability is 0. It is finite, so that q is a law
even where a processor leaves no shared token."""


class Translation:
    """From the tokens of `target` to those of `draft` and back.

    into      (V,) the draft model's id of each of the target's tokens; 0 where it has none
    shared    (V,) bool: it has one
    """

    def __init__(self, draft: Pieces, target: Pieces, device: torch.device) -> None:
        self.draft, self.target = draft, target
        self._special: dict[int, int] = {}  # to the draft model's, to read them
        self._back: dict[int, int] = {}
        found = {
            number: draft.ids[data] for data, number in target.ids.items() if data in draft.ids
        }
        for key in (*ROLES, *target.special):
            if key in target.special and key in draft.special:
                number, other = target.special[key], draft.special[key]
                self._special.setdefault(number, other)
                if self._back.setdefault(other, number) == number:
                    found.setdefault(number, other)
        every = range(len(target.bytes))
        self.into = torch.tensor([found.get(number, 0) for number in every], device=device)
        self.shared = torch.tensor([number in found for number in every], device=device)

    @property
    def num_shared(self) -> int:
        return int(self.shared.sum())

    def tokens(self, tokens: Int[Tensor, "B n"]) -> Int[Tensor, "B n"]:
        """The draft model's ids; 0 for tokens that are not shared."""
        return self.into[tokens]

    def logits(self, logits: Float[Tensor, "B n W"]) -> Float[Tensor, "B n V"]:
        """Over the target's tokens; those that are not shared have none of the law."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return wide[..., self.into].masked_fill(~self.shared, FAR)

    def pieces(self, tokens: Sequence[int], opens: bool) -> list[int]:
        """The draft model's tokens for a stretch of the target's. Special tokens that it does not
        have are left out. opens: it is the beginning of a text."""
        found: list[int] = []
        data = b""
        for token in (*tokens, -1):
            text = None if token < 0 else self.target.bytes[token]
            if text is not None:
                data += text
                continue
            if data:
                data = data.removeprefix(b" ") if opens and self.target.adds_space else data
                found += self.draft.encode(data, opens)
                opens, data = False, b""
            if token in self._special:
                found.append(self._special[token])
        return found

    def drafted(self, pieces: Sequence[int]) -> list[int]:
        """The target's tokens for what the draft model wrote, up to the first special token; one
        with a counterpart is the last."""
        data, last = b"", []
        for piece in pieces:
            text = self.draft.bytes[piece]
            if text is None:
                last = [self._back[piece]] if piece in self._back else []
                break
            data += text
        return self.target.encode(data, opens=False, cut=not last) + last

    def begins_word(self, before: int, token: int) -> bool:
        """Whether a tokenizer parts the text before `token`, whatever comes later."""
        one, other = self.target.bytes[before], self.target.bytes[token]
        if one is None or other is None:
            return True
        return other[:1].isspace() and not one[-1:].isspace()

    def begins_character(self, token: int) -> bool:
        data = self.target.bytes[token]
        return not data or data[0] & 0xC0 != 0x80


class Text:
    """One row's committed text in the draft model's tokens, of which at most `limit` are kept: the
    oldest are dropped, half of them at once.

    held    the draft model's tokens that are in its memory
    """

    def __init__(self, translation: Translation, limit: int) -> None:
        self.translation, self.limit = translation, limit
        self.held: list[int] = []
        self._settled = list(translation.draft.opening)  # these no longer change
        self._same = 0  # of them are in memory, in their places
        self._fresh: list[int] = []  # the target's tokens after those
        self._opens = True  # nothing is settled

    def add(self, tokens: Sequence[int]) -> None:
        """Committed tokens of the target."""
        self._fresh += tokens
        if len(self._fresh) > 2 * FRESH:
            cut = self._cut()
            self._settled += self._pieces(self._fresh[:cut])
            self._fresh, self._opens = self._fresh[cut:], False

    def _pieces(self, tokens: Sequence[int]) -> list[int]:
        found = self.translation.pieces(tokens, self._opens)
        opening = self.translation.draft.opening
        repeated = self._opens and opening and found[: len(opening)] == opening
        return found[len(opening) :] if repeated else found

    def _cut(self) -> int:
        """How many of the fresh tokens are settled: at the last beginning of a word, at least at
        that of a character."""
        tokens, most = self._fresh, len(self._fresh) - FRESH
        for cut in range(most, 0, -1):
            if self.translation.begins_word(tokens[cut - 1], tokens[cut]):
                return cut
        return next(
            (cut for cut in range(most, 0, -1) if self.translation.begins_character(tokens[cut])),
            most,
        )

    def unread(self) -> tuple[int, list[int]]:
        """How much of what is in memory stays, and what has to be read after that, at least one
        token; then that is in memory."""
        pieces = self._pieces(self._fresh)
        if len(self._settled) + len(pieces) > self.limit:
            opening = self.translation.draft.opening
            half = (self.limit - len(opening)) // 2
            self._settled = [*opening, *self._settled[len(opening) :][-half:]]
            self._same, pieces = 0, pieces[-half:]
        wanted = self._settled[self._same :] + pieces
        if not self._settled and not wanted:
            wanted = [self.translation.draft.special.get("bos_token", 0)]  # to draft after nothing
        kept = self._same
        for held, piece in zip(self.held[kept:], wanted, strict=False):
            if held != piece:
                break
            kept += 1
        kept = min(kept, self._same + len(wanted) - 1)
        unread = (self._settled + pieces)[kept:] or wanted
        self.held[kept:] = unread
        self._same = min(len(self._settled), len(self.held))
        return kept, unread


def choose(mode: str, draft: LanguageModel, target: LanguageModel, may_write: bool) -> str:
    """What `vocabulary: auto` comes to: same | intersection | text, if the drafter may write."""
    if mode != AUTO:
        return mode
    ours, theirs = tokenizer_digest(draft), tokenizer_digest(target)
    if draft.vocabulary == target.vocabulary and (ours is None or theirs is None or ours == theirs):
        return SAME
    translation = between(draft, target, AUTO)
    smaller = min(translation.draft.num_tokens, translation.target.num_tokens)
    few = translation.num_shared < ENOUGH * smaller
    return TEXT if few and may_write else INTERSECTION


def check_mode(mode: Any) -> str:
    """Raises ValueError for what is none of `MODES`."""
    if mode in MODES:
        return str(mode)
    raise ValueError(
        f"vocabulary must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}"
        f"{did_you_mean(str(mode), MODES)}"
    )


def between(
    draft: LanguageModel,
    target: LanguageModel,
    mode: str,
    tokenizers: tuple[Any, Any] | None = None,
) -> Translation:
    """The translation from a target to a draft model. tokenizers: the draft model's and the
    target's, in place of their own.

    Raises ValueError where one of them has no tokenizer, and for `intersection` where no token is
    shared.
    """
    given = tokenizers or (draft.tokenizer, target.tokenizer)
    for what, model, tokenizer in zip(
        ("draft model", "target"), (draft, target), given, strict=True
    ):
        if tokenizer is None:
            raise ValueError(
                f"vocabulary={mode!r} compares two tokenizers, and the {what} {model.name} has "
                "none; load it as (model, tokenizer)"
            )
    found = _translation(
        pieces_of(given[0], draft.vocabulary), pieces_of(given[1], target.vocabulary), target.device
    )
    if mode == INTERSECTION and not found.num_shared:
        raise ValueError(
            f"the draft model {draft.name} ({found.draft.num_tokens} tokens) and the target "
            f"{target.name} ({found.target.num_tokens} tokens) share no token, so there is no "
            "intersection to draft from; take vocabulary='text'"
        )
    return found


@lru_cache(16)
def _translation(draft: Pieces, target: Pieces, device: torch.device) -> Translation:
    """Worked out once; nothing writes to it."""
    return Translation(draft, target, device)
