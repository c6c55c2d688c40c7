"""Suffix lookup: what followed the text's last tokens before, in this request and in earlier ones.

SuffixDecoding (Oliaro et al. 2411.04975), on the suffix automaton of SAM-Decoding (Hu et al.
2411.10666). No model, no training. In addition to the request's own text, there may be a store of
earlier outputs, which is searched for all rows.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from specdec import LanguageModel, Sampling, State
from specdec.drafting import lookup
from specdec.drafting.lookup import EMPTY, Budget, Draft, Lookup, Match
from specdec.drafting.suffix_index import LONGEST, Cursor, SuffixIndex, Text
from specdec.drafting.suffix_store import Entry, SuffixStore
from specdec.errors import integer, number, switch
from specdec.tree import MOST_NODES

NONE, MEMORY = "none", "memory"


class Suffix(Lookup):
    """Siblings are DET: nothing is drawn.

    nodes         drafted nodes, at most
    tree          the likeliest nodes of all matches in one trie; else the likeliest chain
    factor        a match of m tokens is worth int(factor x m + offset) nodes
    offset        null: as many as `nodes`, whatever the match
    min_prob      nodes that are less likely, by what the counts say, are left out
    fanout        this many other tokens, the best of the law that the root was drawn from, also
                  become children of the root, each with its own lookup (LogitSpec, Liu et al.
                  2507.01449); for trees
    store         none | memory | FILE (`python -m experiments.store`) | a SuffixStore: texts that
                  all rows look up. A request's output is added when it ends; prompts are not
    learn         whether outputs are added to the store
    concurrent    outputs are added token by token, so that requests side by side help each other:
                  then a request's drafts depend on its neighbours
    store_tokens  the store's size; above it the oldest texts are dropped whole
    """

    variants = (
        {"nodes": 2, "tree": False},
        {"nodes": 3},
        {"nodes": 3, "fanout": 2},
        {"nodes": 2, "store": "memory", "concurrent": True},
    )

    def __init__(
        self,
        nodes: int = 16,
        tree: bool = True,
        factor: float = 0.0,
        offset: float | None = None,
        min_prob: float = 0.0,
        fanout: int = 0,
        store: str | Path | SuffixStore = NONE,
        learn: bool = True,
        concurrent: bool = False,
        store_tokens: int = 200_000,
    ) -> None:
        nodes = integer("nodes", nodes, 1, MOST_NODES)
        self.tree = switch("tree", tree)
        given = number("factor", factor, 0), number("min_prob", min_prob, 0, 1)
        more = float(nodes) if offset is None else number("offset", offset)
        if given[0] * LONGEST + more < 1:
            raise ValueError(
                f"factor={factor} and offset={offset} give a match of {LONGEST} tokens, the "
                "longest, no node; raise one of them"
            )
        self.budget = Budget(nodes, given[0], more, given[1])
        self.fanout = integer("fanout", fanout, 0, MOST_NODES)
        if self.fanout and not self.tree:
            raise ValueError(f"fanout={fanout} puts siblings below the root: set tree=true")
        self.store = _store(store, integer("store_tokens", store_tokens, 1))
        self.concurrent = switch("concurrent", concurrent)
        self.learns = switch("learn", learn) and self.store is not None
        if self.concurrent and not self.learns:
            raise ValueError(
                "concurrent=true adds to a store: it needs store=memory and learn=true"
            )
        self.chain = not self.tree
        self.max_nodes = nodes + 1
        self.runners_up = self.fanout + 1 if self.fanout else 0  # the root may be one of them

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        self._rows: list[_Row | None] = [None] * rows
        if self.store is not None:
            self.store.check(target)
            if self.learns:
                self.store.begin_to_learn()

    def enter(self, rows: Sequence[int], state: State) -> None:
        for row in rows:
            self._rows[row] = _Row(self.store, self.concurrent)
            self._read(row, state)

    def observe(self, state: State) -> None:
        for row in range(len(self._rows)):
            self._read(row, state)

    def _read(self, row: int, state: State) -> None:
        found = self._rows[row]
        if found is not None:
            found.read(state.text(row, found.length))

    def leave(self, rows: Sequence[int]) -> None:
        for row in rows:
            found, self._rows[row] = self._rows[row], None
            if found is not None and self.store is not None and self.learns and not self.concurrent:
                self.store.add(found.output)

    def forget(self) -> None:
        if self.store is not None and self.learns:
            self.store.forget()

    def draft(self, row: int, state: State) -> Draft:
        found, depth = self._rows[row], state.on_host.room[row] - 1
        if found is None:
            return EMPTY
        others = lookup.runners_up(state, row, self.fanout)
        with nullcontext() if self.store is None else self.store.lock:
            return self._grown(found.matches(), depth, others)

    def _grown(self, found: list[Match], depth: int, others: Sequence[tuple[int, float]]) -> Draft:
        if self.chain:
            return lookup.chain(found, self.budget, depth)
        return lookup.tree(found, self.budget, depth, others)

    def settings_in_effect(self) -> dict[str, Any]:
        store = self.store
        held = {} if store is None else {"store": NONE if store is None else store.name}
        return {"offset": self.budget.offset, **held}


def _store(given: str | Path | SuffixStore, tokens: int) -> SuffixStore | None:
    if isinstance(given, SuffixStore):
        return given
    if not isinstance(given, (str, Path)) or not str(given):
        raise ValueError(f"store must be none, memory, a file or a SuffixStore, got {given!r}")
    if given == NONE:
        return None
    return SuffixStore(tokens) if given == MEMORY else SuffixStore.load(given, tokens)


class _Row:
    """One request: its text, indexed, and where it stands in its index and in the store."""

    def __init__(self, store: SuffixStore | None, concurrent: bool) -> None:
        self.index, self.text, self.cursor = SuffixIndex(), Text(), Cursor()
        self.tokens: list[int] = []
        self.prompt = -1  # its length, once it is read
        self.store, self.concurrent = store, concurrent
        self.far, self.version = Cursor(), -1
        self.entry: Entry | None = None

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def output(self) -> list[int]:
        return self.tokens[self.prompt :]

    def read(self, tokens: list[int]) -> None:
        """What was committed since: the prompt at first."""
        for token in tokens:  # the cursor first: a text never finds itself
            self.index.advance(self.cursor, token)
            self.index.append(self.text, token)
        if self.store is not None:
            with self.store.lock:
                self._read_along(self.store, tokens)
        self.tokens += tokens
        if self.prompt < 0:
            self.prompt = len(self.tokens)

    def _read_along(self, store: SuffixStore, tokens: list[int]) -> None:
        """The same for the place in the store, and for what the store is given."""
        if self.concurrent and self.prompt >= 0:
            self.entry = self.entry or store.open()
            for place, token in enumerate(tokens):
                self._follow(store, [token], tokens[:place])
                store.extend(self.entry, [token])
        else:
            self._follow(store, tokens[-LONGEST:], [])

    def _follow(self, store: SuffixStore, tokens: list[int], before: list[int]) -> None:
        """Move on by `tokens`. The place in an index that was built anew is found from the start;
        `before`: tokens ahead of these that `self.tokens` does not hold yet."""
        if self.version != store.version:
            self.far, self.version = Cursor(), store.version
            tokens = [*self.tokens[-LONGEST:], *before, *tokens]
        for token in tokens:
            store.index.advance(self.far, token)

    def matches(self) -> list[Match]:
        if self.store is None:
            return [(self.index, self.cursor)]
        self._follow(self.store, [], [])
        return [(self.index, self.cursor), (self.store.index, self.far)]
