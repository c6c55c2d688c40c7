"""Prompt lookup: the text's own repetitions as drafts. The longest suffix that occurred before says
what may follow.

Saxena 2023 (prompt lookup decoding); Yang et al. 2304.04487. No model, no training. As a chain, the
continuation of the most recent occurrence; as a tree, the trie of the continuations of all
occurrences, the most frequent first.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from specdec import Drafter, LanguageModel, Sampling, SiblingLaw, State, TokenTree
from specdec.chance import Draws
from specdec.errors import integer, switch
from specdec.tree import MOST_NODES

LONGEST = 256  # tokens of an n-gram: what is kept per token of the text grows with its square
Draft = tuple[list[int], list[int]]  # tokens, and the node number of each one's parent


class NGram(Drafter):
    """Siblings are DET: nothing is drawn.

    max_ngram  longest suffix looked up, in tokens; shorter ones follow down to 1
    length     drafted tokens: of the chain, or nodes of the tree (its depth is at most `length`
               too)
    tree       a trie of all continuations instead of the most recent one
    """

    law = SiblingLaw.DET
    variants = ({"max_ngram": 1, "length": 2}, {"max_ngram": 1, "length": 3, "tree": True})

    def __init__(self, max_ngram: int = 3, length: int = 10, tree: bool = False) -> None:
        self.max_ngram = integer("max_ngram", max_ngram, 1, LONGEST)
        self.length = integer("length", length, 1, MOST_NODES)
        self.tree = switch("tree", tree)
        self.chain = not tree
        self.max_nodes = length + 1

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        self._indices = [_Index(self.max_ngram) for _ in range(rows)]

    def enter(self, rows: Sequence[int], state: State) -> None:
        for row in rows:
            self._indices[row] = _Index(self.max_ngram)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        host, root = state.on_host, state.roots
        drafts: list[Draft] = []
        for row, index in enumerate(self._indices):
            if not host.live[row]:
                drafts.append(([], []))
                continue
            index.extend(state.text(row, len(index.tokens)))
            limit = min(self.length, host.room[row] - 1)
            drafts.append(index.trie(self.length, limit) if self.tree else index.chain(limit))
        widest = max(len(drafted) for drafted, _ in drafts)
        if widest == 0:
            return TokenTree.root(root)
        padded = [drafted + [0] * (widest - len(drafted)) for drafted, _ in drafts]
        nodes = torch.cat([root[:, None], torch.tensor(padded).to(root.device)], 1)
        if not self.tree:
            lengths = torch.tensor([len(drafted) for drafted, _ in drafts]).to(root.device)
            return TokenTree.chain(nodes, lengths)
        return TokenTree(
            nodes, [[-1, *above, *[-1] * (widest - len(above))] for _, above in drafts]
        )


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

    def occurrences(self) -> list[int]:
        """Where earlier copies of the longest repeated suffix end; the most recent last."""
        for n in range(min(self.max_ngram, len(self.tokens)), 0, -1):
            found = self.ends.get(tuple(self.tokens[-n:]))
            if found:
                return found
        return []

    def chain(self, limit: int) -> Draft:
        """(tokens, parents) of the most recent continuation."""
        found = self.occurrences()
        drafted = self.continuation(found[-1], limit) if found else []
        return drafted, list(range(len(drafted)))

    def continuation(self, end: int, length: int) -> list[int]:
        """The `length` tokens after position `end`. Past the end of the text the copy goes on into
        itself, so that a text with a period is continued with that period."""
        period = len(self.tokens) - end
        once = self.tokens[end : end + length]
        return [once[i % period] for i in range(length)]

    def trie(self, nodes: int, depth: int) -> Draft:
        """(tokens, parents) of the most frequent continuations, at most `nodes` of them. Ties go to
        the most recent."""
        weights: Counter[tuple[int, ...]] = Counter()
        recent: dict[tuple[int, ...], int] = {}
        for end in self.occurrences():
            continuation = self.continuation(end, depth)
            for length in range(1, len(continuation) + 1):
                prefix = tuple(continuation[:length])
                weights[prefix] += 1
                recent[prefix] = end
        best = sorted(weights, key=lambda prefix: (-weights[prefix], -recent[prefix], len(prefix)))[
            :nodes
        ]
        number: dict[tuple[int, ...], int] = {(): 0}
        for prefix in sorted(best, key=len):
            number[prefix] = len(number)
        return [prefix[-1] for prefix in number if prefix], [
            number[prefix[:-1]] for prefix in number if prefix
        ]
