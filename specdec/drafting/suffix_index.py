"""A suffix automaton with counts: where a substring occurred before, and how often each token came
next.

A state stands for all substrings that end at the same places of the indexed texts. Its transitions
are exactly the tokens that follow those substrings, and the count of the state that a transition
leads to is how often that token followed. SuffixDecoding (2411.04975) keeps the same numbers in a
suffix tree; the automaton (SAM-Decoding, 2411.10666) needs at most two states per token, and no
depth limit.

A token is indexed in constant amortised time. Counts are kept for substrings of at most COUNTED
tokens, which bounds the cost of a text in a loop. Removing a text lowers its counts; its states
stay until the index is rebuilt.
"""

from collections.abc import Iterator, Sequence
from heapq import nsmallest
from typing import NamedTuple

ROOT = 0
LONGEST = 64  # tokens of a match
COUNTED = 2 * LONGEST  # tokens of a substring whose occurrences are counted: a match and its draft
MANY = 64  # continuations of a state whose ranking is kept
UNIGRAM = 0.2  # the weight of a token's share when no text before it matches


class Continuation(NamedTuple):
    """A token that may come next."""

    token: int
    worth: float  # an estimate of its probability
    state: int  # of the substring with this token
    length: int  # tokens of that substring that the text has in common with it


class Cursor:
    """A substring of the index: the `length` last tokens of some text, in the state `state`."""

    __slots__ = ("length", "state")

    def __init__(self, state: int = ROOT, length: int = 0) -> None:
        self.state, self.length = state, length

    def copy(self) -> "Cursor":
        return Cursor(self.state, self.length)


class Text:
    """A text that is being indexed: the state of all of it, and of its last tokens."""

    __slots__ = ("tail", "whole")

    def __init__(self) -> None:
        self.whole, self.tail = ROOT, Cursor()


class SuffixIndex:
    """Substrings of any number of texts. Nothing crosses from one text to the next.

    trust  what each estimate is multiplied by: counts of other requests say less about this one
    """

    def __init__(self, trust: float = 1.0) -> None:
        self.trust = trust
        self._lengths = [0]  # of each state's longest substring
        self._links = [-1]  # the state of its longest suffix with more occurrences
        self._counts = [0]  # occurrences
        self._followed = [0]  # of these, how many have a token after them
        self._next: list[dict[int, int]] = [{}]
        self._ranked: dict[int, tuple[int, list[tuple[int, int]]]] = {}

    @property
    def states(self) -> int:
        return len(self._lengths)

    # -------------------------------------------------------------------------------- writing

    def extend(self, text: Text, tokens: Sequence[int]) -> None:
        """More tokens of a text."""
        for token in tokens:
            self.append(text, token)

    def append(self, text: Text, token: int) -> None:
        """One more token of a text."""
        nexts, links, tail = self._next, self._links, text.tail
        self._settle(tail)
        state = tail.state
        followed = self._followed
        while state >= 0:
            followed[state] += 1
            state = links[state]
        text.whole = self._after(text.whole, token)
        tail.state = nexts[tail.state][token]
        tail.length = min(tail.length + 1, COUNTED)
        self._settle(tail)
        state, counts = tail.state, self._counts
        while state > ROOT:
            counts[state] += 1
            state = links[state]

    def remove(self, tokens: Sequence[int]) -> None:
        """Count down a text that was indexed from its beginning to its end."""
        nexts, links, counts, followed = self._next, self._links, self._counts, self._followed
        tail = Cursor()
        for token in tokens:
            state = tail.state
            while state >= 0:
                followed[state] -= 1
                state = links[state]
            tail.state = nexts[tail.state][token]
            tail.length = min(tail.length + 1, COUNTED)
            self._settle(tail)
            state = tail.state
            while state > ROOT:
                counts[state] -= 1
                state = links[state]

    def _after(self, last: int, token: int) -> int:
        """The state of a whole text with one more token. `last`: that of the text so far."""
        nexts, links, lengths = self._next, self._links, self._lengths
        known = nexts[last].get(token)
        if known is not None:
            same = lengths[known] == lengths[last] + 1
            return known if same else self._split(last, known, token)
        new = self._state(lengths[last] + 1, {})
        state = last
        while state >= 0:
            transitions = nexts[state]
            if token in transitions:
                break
            transitions[token] = new
            state = links[state]
        if state < 0:
            links[new] = ROOT
        else:
            known = nexts[state][token]
            same = lengths[known] == lengths[state] + 1
            links[new] = known if same else self._split(state, known, token)
        return new

    def _split(self, state: int, known: int, token: int) -> int:
        """A state of its own for the shorter substrings of `known`: those that occur elsewhere,
        behind `state`."""
        nexts, links = self._next, self._links
        shorter = self._state(self._lengths[state] + 1, nexts[known].copy())
        links[shorter], links[known] = links[known], shorter
        self._counts[shorter] = self._counts[known]
        self._followed[shorter] = self._followed[known]
        while state >= 0 and nexts[state].get(token) == known:
            nexts[state][token] = shorter
            state = links[state]
        return shorter

    def _state(self, length: int, transitions: dict[int, int]) -> int:
        self._lengths.append(length)
        self._links.append(ROOT)
        self._counts.append(0)
        self._followed.append(0)
        self._next.append(transitions)
        return len(self._lengths) - 1

    def _settle(self, cursor: Cursor) -> None:
        """A state may have been split since, or its substrings may all be longer."""
        lengths, links, state = self._lengths, self._links, cursor.state
        while state > ROOT and cursor.length <= lengths[links[state]]:
            state = links[state]
        cursor.state = state

    # -------------------------------------------------------------------------------- reading

    def advance(self, cursor: Cursor, token: int) -> None:
        """Go on to the longest suffix of cursor + token that occurs. If the text itself is indexed,
        advance the cursor first, so that a text never finds itself."""
        self._settle(cursor)
        nexts, links, counts, lengths = self._next, self._links, self._counts, self._lengths
        state, length = cursor.state, cursor.length
        while True:
            following = nexts[state].get(token)
            if following is not None and counts[following] > 0:
                cursor.state, cursor.length = following, min(length + 1, LONGEST)
                break
            if state == ROOT:
                cursor.state, cursor.length = ROOT, 0
                return
            state = links[state]
            length = lengths[state]
        self._settle(cursor)

    def matches(self, cursor: Cursor) -> Iterator[tuple[int, int]]:
        """(length, state) of the suffixes of a text that occur and were continued, from the longest
        to the empty one. All suffixes of one state have the same continuations, so only the longest
        is given."""
        self._settle(cursor)
        state, length = cursor.state, cursor.length
        while state >= ROOT:
            if self._followed[state]:
                yield length, state
            state = self._links[state]
            length = self._lengths[state]

    def continuations(self, state: int, length: int, most: int) -> Iterator[Continuation]:
        """The tokens that came next, the most frequent first, at most `most`; ties go to the token
        that first appeared last. At the end of a text: the tokens after its longest suffix that was
        continued.

        Each count is reduced by 1 / (length + 0.3). This is absolute discounting (Ney, Essen and
        Kneser 1994) with a discount that falls with the length of the match: one occurrence of a
        long match says much, one of a single token says little.
        """
        links, followed = self._links, self._followed
        while state > ROOT and not followed[state]:
            state = links[state]
            length = min(length, self._lengths[state])
        total = followed[state]
        if not total:
            return
        less, each = 1 / (length + 0.3), self.trust / total
        if state == ROOT:
            less, each = 0.0, UNIGRAM * each
        counts = self._counts
        for token, following in self._best(state, most):
            worth = (counts[following] - less) * each
            if worth > 0:
                yield Continuation(token, worth, following, length + 1)

    def _best(self, state: int, most: int) -> list[tuple[int, int]]:
        """(token, state), ranked by counts. Where there are many, the ranking is kept until the
        state has grown or shrunk by an eighth."""
        counts, transitions = self._counts, self._next[state]
        if len(transitions) == 1:
            return list(transitions.items())

        def fewest(item: tuple[int, int]) -> int:
            return -counts[item[1]]

        if most == 1 and len(transitions) <= MANY:
            return [min(reversed(transitions.items()), key=fewest)]
        if len(transitions) <= MANY:
            found = list(transitions.items())
            found.reverse()
            found.sort(key=fewest)
            return found[:most]
        total = self._followed[state]
        then, kept = self._ranked.get(state, (0, []))
        if abs(total - then) * 8 > then or len(kept) < most:
            kept = nsmallest(max(most, MANY), transitions.items(), key=fewest)
            self._ranked[state] = total, kept
        return sorted(kept[:most], key=fewest)
