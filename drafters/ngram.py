"""Prompt lookup: the text's own repetitions as drafts. The drafter finds the longest suffix of the
text that occurred before, and drafts what followed it.

Saxena 2023 (prompt lookup decoding); Yang et al. 2304.04487. No model, no training. A chain is the
continuation of the most recent occurrence; a tree is the trie of the continuations of all
occurrences, the most frequent first.
"""

from collections import defaultdict
from collections.abc import Sequence

from specdec import LanguageModel, Sampling, State
from specdec.drafting.lookup import Draft, Lookup, runners_up
from specdec.errors import integer, switch
from specdec.tree import MOST_NODES

LONGEST = 256  # tokens of an n-gram: what is kept per token of the text grows with its square
# How often the next token of a continuation is right, by the length of what was found: one token,
# two, or more (measured on the demo target at T = 0.6).
RIGHT = (0.56, 0.71, 0.88)


class NGram(Lookup):
    """Siblings are DET: nothing is drawn.

    max_ngram  longest suffix looked up, in tokens; shorter ones follow down to 1
    length     drafted tokens: of the chain, or nodes of the tree (its depth is at most `length`
               too)
    tree       a trie of all continuations instead of the most recent one
    fanout     this many other tokens, the best of the law that the root was drawn from, also become
               children of the root, each continued by its own lookup (LogitSpec, Liu et al.
               2507.01449); for trees
    """

    variants = (
        {"max_ngram": 1, "length": 2},
        {"max_ngram": 1, "length": 3, "tree": True},
        {"max_ngram": 1, "length": 3, "tree": True, "fanout": 1},
    )

    def __init__(
        self, max_ngram: int = 3, length: int = 10, tree: bool = False, fanout: int = 0
    ) -> None:
        self.max_ngram = integer("max_ngram", max_ngram, 1, LONGEST)
        self.length = integer("length", length, 1, MOST_NODES)
        self.tree = switch("tree", tree)
        self.fanout = integer("fanout", fanout, 0, MOST_NODES)
        if self.fanout and not tree:
            raise ValueError(f"fanout={fanout} puts siblings below the root: set tree=true")
        self.chain = not tree
        self.max_nodes = length + 1
        self.runners_up = self.fanout + 1 if self.fanout else 0  # the root may be one of them

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        self._indices = [_Index(self.max_ngram) for _ in range(rows)]

    def enter(self, rows: Sequence[int], state: State) -> None:
        for row in rows:
            self._indices[row] = _Index(self.max_ngram)

    def draft(self, row: int, state: State) -> Draft:
        index = self._indices[row]
        index.extend(state.text(row, len(index.tokens)))
        limit = min(self.length, state.on_host.room[row] - 1)
        if self.chain:
            return index.chain(limit)
        others = [token for token, _ in runners_up(state, row, self.fanout)]
        return index.trie(self.length, limit, others)


class _Index:
    """One row's text, and where each of its n-grams has ended so far."""

    def __init__(self, max_ngram: int) -> None:
        self.max_ngram = max_ngram
        self.tokens: list[int] = []
        self.ends: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self.noted = 0

    def extend(self, tokens: list[int]) -> None:
        """Add tokens. An n-gram is noted once a token follows it."""
        self.tokens += tokens
        for end in range(max(1, self.noted), len(self.tokens)):
            for n in range(1, min(self.max_ngram, end) + 1):
                self.ends[tuple(self.tokens[end - n : end])].append(end)
        self.noted = len(self.tokens)

    def occurrences(self, ahead: tuple[int, ...] = ()) -> tuple[list[int], int]:
        """Where earlier copies of the longest repeated suffix end, of the text with the tokens
        `ahead`; the most recent last. And the suffix's length."""
        text = (*self.tokens[-self.max_ngram :], *ahead)
        for n in range(min(self.max_ngram, len(text)), 0, -1):
            found = self.ends.get(text[-n:])
            if found:
                return found, n
        return [], 0

    def chain(self, limit: int) -> Draft:
        """The most recent continuation."""
        found, length = self.occurrences()
        drafted = self.continuation(found[-1], limit) if found else []
        return _draft(drafted, list(range(len(drafted))), [right(length)] * len(drafted))

    def continuation(self, end: int, length: int) -> list[int]:
        """The `length` tokens after position `end`. Past the end of the text the copy goes on into
        itself, so that a text with a period is continued with that period."""
        period = len(self.tokens) - end
        once = self.tokens[end : end + length]
        return [once[i % period] for i in range(length)]

    def trie(self, nodes: int, depth: int, others: Sequence[int] = ()) -> Draft:
        """The most frequent continuations, at most `nodes` of them. Ties go to the most recent.

        others: tokens that may follow as well, the likeliest first. They come after all that the
        text itself suggests, each with its own continuations.
        """
        weights: dict[tuple[int, ...], float] = defaultdict(float)
        recent: dict[tuple[int, ...], int] = {}

        def note(prefix: tuple[int, ...], end: int, weight: float) -> None:
            weights[prefix] += weight
            recent[prefix] = max(end, recent.get(prefix, end))

        ends, longest = self.occurrences()
        for end in ends:
            continuation = self.continuation(end, depth)
            for length in range(1, len(continuation) + 1):
                note(tuple(continuation[:length]), end, 1)
        for rank, token in enumerate(others if depth > 0 else ()):
            share = 1 / (rank + 2)
            found, _ = self.occurrences((token,))
            if not found:
                note((token,), 0, share)
            for end in found:  # a prefix gets at least the counts of its extensions
                continuation = [token, *self.continuation(end, depth - 1)]
                for length in range(1, len(continuation) + 1):
                    note(tuple(continuation[:length]), end, share / len(found))
        best = sorted(weights, key=lambda prefix: (-weights[prefix], -recent[prefix], len(prefix)))[
            :nodes
        ]
        number: dict[tuple[int, ...], int] = {(): 0}
        for prefix in sorted(best, key=len):
            number[prefix] = len(number)
        weights[()] = max(float(len(ends)), sum(weights[one] for one in number if len(one) == 1))
        kept = [prefix for prefix in number if prefix]
        shares = [right(longest) * weights[one] / weights[one[:-1]] for one in kept]
        return _draft([one[-1] for one in kept], [number[one[:-1]] for one in kept], shares)


def right(length: int) -> float:
    """How often the next token of a continuation is right, after so many tokens were found."""
    return RIGHT[min(length, len(RIGHT)) - 1] if length else 0.0


def _draft(tokens: list[int], parents: list[int], shares: list[float]) -> Draft:
    """shares: of each node, how likely it follows its parent."""
    worths = [1.0]
    for parent, share in zip(parents, shares, strict=True):
        worths.append(worths[parent] * share)
    return Draft(tokens, parents, sum(worths[1:]), shares)
