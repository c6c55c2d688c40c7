"""Structured output: at every node of a tree, the tokens that a grammar allows after it.

Grammars are read by llguidance (https://github.com/guidance-ai/llguidance). Its matchers fork, so a
node's matcher is a copy of its parent's that has read one token more; nothing is read twice.

What a grammar forbids has probability 0 in the target's law before the temperature, and in the
drafter's, so drafted tokens are allowed ones. The output has the law of sampling from the target
token by token under the same mask.

Letters: B rows (seats), N nodes, V vocabulary, n places.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from specdec.tree import TokenTree

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Where only one text can follow, any tokens that write it are allowed. (By default only those that
# the tokenizer would choose are, which many tokenizers cannot say of a piece of text.)
HEADER = '%llguidance {"no_forcing": true}'
SLASH = "\\x2f"  # as a regular expression may write it
AS_DUMPED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
Texts = Callable[[int, int], Sequence[int]]  # (row, start): its committed tokens from there on
Failed = Callable[[int, Exception], None]  # (row, why): it has no law


@dataclass(frozen=True)
class Grammar:
    """What a text has to be: made by `json_schema`, `regex` or `lark`. Texts that end by EOS match
    it as a whole; one that is cut by `max_new_tokens` or a stop string is the beginning of one that
    does."""

    kind: str  # for messages
    rules: str  # in llguidance's dialect of Lark

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> "Grammar":
        """JSON that a JSON schema describes, on one line, as `json.dumps` writes it; {} or True
        describes any. (Where any whitespace is allowed, models write line breaks without end.)"""
        if not isinstance(schema, (Mapping, bool)):
            raise ValueError(f"a JSON schema is a dictionary, or True for any JSON; got {schema!r}")
        told = {"x-guidance": AS_DUMPED, **({} if isinstance(schema, bool) else schema)}
        if schema is False:
            raise ValueError("the JSON schema False describes nothing; True describes any JSON")
        try:
            return cls("JSON schema", f"start: %json {json.dumps(told)}")
        except (TypeError, ValueError) as error:
            raise ValueError(f"this JSON schema cannot be written as JSON: {error}") from error

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """Text that a regular expression matches as a whole, in the syntax of Rust's regex crate:
        no look-around and no back-references."""
        pattern = _written("a regular expression", pattern)
        # A slash would end it in Lark.
        bare = re.sub(r"\\(.)|/", _without_slash, pattern, flags=re.DOTALL)
        return cls("regular expression", f"start: /{bare}/")

    @classmethod
    def lark(cls, rules: str) -> "Grammar":
        """A context-free grammar in llguidance's dialect of Lark; its first rule is `start`."""
        return cls("Lark grammar", _written("a Lark grammar", rules))

    @classmethod
    def of(cls, given: Any) -> "Grammar | None":
        """A dictionary is a JSON schema; None is no grammar."""
        if given is None or isinstance(given, cls):
            return given
        if isinstance(given, Mapping):
            return cls.json_schema(given)
        raise ValueError(
            "grammar is a JSON schema (a dictionary), Grammar.regex(...), Grammar.lark(...), None, "
            f"or a list of one of these per prompt; got {given!r}"
        )


GrammarChoice = Grammar | Mapping[str, Any] | None


class _Node:
    """Where a text stands in its grammar."""

    def __init__(self, matcher: "LLMatcher | None") -> None:
        self.matcher = matcher  # None: behind the end of a text, or behind a forbidden token
        self._after: dict[int, _Node] = {}
        self._allowed: np.ndarray | None = None

    def after(self, token: int) -> "_Node":
        if token not in self._after:
            fork = None if self.matcher is None else self.matcher.deep_copy()
            if fork is not None and not (fork.try_consume_tokens([token]) and self._goes_on(fork)):
                fork = None
            self._after[token] = _Node(fork)
        return self._after[token]

    @staticmethod
    def _goes_on(matcher: "LLMatcher") -> bool:
        """Not so after EOS."""
        return matcher.stop_reason() != "EndOfSentence"

    def allowed(self) -> np.ndarray | None:
        """Bits of the tokens that may follow; None: any, as nothing that follows is kept."""
        if self._allowed is None and self.matcher is not None:
            self._allowed = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
            if self.matcher.is_error():
                said = self.matcher.get_error().splitlines()[0]
                raise ValueError(f"the grammar cannot go on: {said}")
        return self._allowed


@dataclass
class _Row:
    """The text of a seat and where it stands."""

    node: _Node
    read: int  # tokens of the text that `node` stands behind, the prompt included


@dataclass
class Grammars:
    """Of one run: which seats have one, and how far their texts are. `State.grammars` carries it to
    where laws are made."""

    tokens: "LLTokenizer"  # of the target
    seconds: float = 0.0  # spent here, on the host
    _rows: dict[int, _Row] = field(default_factory=dict)

    def enter(self, row: int, prompt: Sequence[int], grammar: Grammar | None) -> None:
        """A new text begins behind a prompt."""
        self._rows.pop(row, None)
        if grammar is not None:
            self._rows[row] = _Row(_Node(matcher(grammar, self.tokens)), len(prompt))

    def mask(
        self,
        logits: Tensor,
        texts: Texts,
        tree: TokenTree,
        rows: Tensor,
        nodes: Tensor,
        failed: Failed,
    ) -> Tensor:
        """Logits (n, V) with -inf at tokens that may not follow these nodes (n,) of these rows.
        texts: `State.text`. failed: told of rows whose grammar cannot go on; they keep their
        logits.

        The numbers of the nodes and the tree are read from the device.
        """
        began = time.perf_counter()
        places = list(zip(rows.tolist(), nodes.tolist(), strict=True))
        tokens, parents = tree.tokens.tolist(), tree.parents.tolist()
        bits = np.full((len(places), -(-logits.shape[1] // 8)), 0xFF, np.uint8)
        for place, (row, node) in enumerate(places):
            if row in self._rows:
                try:
                    found = self._behind(row, node, texts, tokens[row], parents[row]).allowed()
                except ValueError as error:
                    failed(row, error)
                    continue
                if found is not None:
                    bits[place] = found[: bits.shape[1]]
        allowed = np.unpackbits(bits, axis=1, bitorder="little")[:, : logits.shape[1]] > 0
        masked = logits.masked_fill(torch.from_numpy(~allowed).to(logits.device), -torch.inf)
        self.seconds += time.perf_counter() - began
        return masked

    def _behind(
        self, row: int, node: int, texts: Texts, tokens: Sequence[int], parents: Sequence[int]
    ) -> _Node:
        text = self._rows[row]
        for token in texts(row, text.read):  # what was committed since
            text.node = text.node.after(token)
            text.read += 1
        path = []
        while node > 0:
            path.append(tokens[node])
            node = parents[node]
        found = text.node
        for token in reversed(path):
            found = found.after(token)
        return found


@lru_cache(64)
def _compiled(grammar: Grammar, tokens: "LLTokenizer") -> "LLMatcher":
    from llguidance import LLMatcher

    source = f"{HEADER}\n{grammar.rules}"
    wrong, said = LLMatcher.validate_grammar_with_warnings(source, tokens)
    if wrong:
        raise ValueError(f"no grammar can be made of this {grammar.kind}: {_lines(said)}")
    return LLMatcher(tokens, source, log_level=0)


def matcher(grammar: Grammar, tokens: "LLTokenizer") -> "LLMatcher":
    """At the beginning of a text. Raises ValueError for what no grammar can be made of."""
    return _compiled(grammar, tokens).deep_copy()


def _without_slash(found: re.Match[str]) -> str:
    return SLASH if found[0] in ("/", "\\/") else found[0]


def _lines(said: Iterable[str]) -> str:
    return "; ".join(" ".join(each.split()) for each in said)


def _written(what: str, given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise ValueError(f"{what} is a string that is not empty; got {given!r}")
    return given
