"""A draft model helped by lookup: two levels of speculation give the same draft in fewer passes.

A chain costs its model a pass per token. Here the coming tokens are first guessed by looking them
up in the text, and the guesses are scored together in one pass. Each token is drawn as usual, from
the law after the tokens drawn so far. If it equals the guess, the next law is already known (token
matching, as `naive` does for the target). So the draft and its law are the same as without guesses.

Letters: B rows, N nodes, n nodes of one pass, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.drafting import lookup
from specdec.drafting.by_level import Score
from specdec.drafting.lookup import Budget
from specdec.drafting.suffix_index import Cursor, SuffixIndex, Text
from specdec.state import State
from specdec.tree import TokenTree


class Guesses:
    """Guesses from the rows' own texts, used to save passes. For chains of `depth`."""

    def __init__(self, rows: int, depth: int) -> None:
        self.depth = depth
        self._rows = [_Row() for _ in range(rows)]

    def enter(self, rows: Sequence[int], state: State) -> None:
        for row in rows:
            self._rows[row] = _Row()

    def around(self, score: Score, state: State) -> Score:
        """`score` for the chains of this round. It reads the drawn tokens once per level."""
        host = state.on_host
        for number, row in enumerate(self._rows):
            row.extend(state.text(number, row.length))
        live = [number for number, alive in enumerate(host.live) if alive]
        known: list[list[int]] = []  # per live row: the tokens of the chain that was scored last
        first, logits = 0, torch.empty(0)  # the node of logits[:, 0]

        def scored(tree: TokenTree, start: int) -> Tensor:
            nonlocal known, first, logits
            drawn = tree.tokens[live, 1:].tolist()
            if known and all(
                chain[:start] == tokens for chain, tokens in zip(known, drawn, strict=True)
            ):
                return logits[:, start - first : start - first + 1]
            most = self.depth - 1 - start
            guesses = [self._rows[n].guess(d, most) for n, d in zip(live, drawn, strict=True)]
            wide = max(map(len, guesses), default=0)
            ahead = torch.zeros(tree.rows, wide, dtype=torch.long)
            for number, guess in zip(live, guesses, strict=True):
                ahead[number, : len(guess)] = torch.tensor(guess, dtype=torch.long)
            tokens = torch.cat([tree.tokens, ahead.to(tree.tokens.device)], 1)
            first, logits = start, score(TokenTree.chain(tokens, None), start)
            padded = ahead[live].tolist()
            known = [chain + guess for chain, guess in zip(drawn, padded, strict=True)]
            return logits[:, :1]

        return scored


class _Row:
    """One request's text, indexed."""

    def __init__(self) -> None:
        self.index, self.text, self.cursor, self.length = SuffixIndex(), Text(), Cursor(), 0

    def extend(self, tokens: list[int]) -> None:
        self.length += len(tokens)
        for token in tokens:  # the cursor first: a text never finds itself
            self.index.advance(self.cursor, token)
            self.index.append(self.text, token)

    def guess(self, drawn: list[int], most: int) -> list[int]:
        """Tokens that may follow the text and the tokens drawn so far, at most `most`."""
        cursor = self.cursor.copy()
        for token in drawn:
            self.index.advance(cursor, token)
        budget = Budget(max(most, 0), 0.0, float(most), 0.0)
        return lookup.chain([(self.index, cursor)], budget, most).tokens
