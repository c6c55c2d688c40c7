"""Pages: which are free, in how many hands each is, and which hold a known text. It knows nothing
of tensors.

A page is a number from 1 on; page 0 is scratch and belongs to nobody. A page that is full may be
known by its text: the hash of all tokens up to its end. Rows with an equal prefix share such pages,
which nobody writes. When the last hand lets go of a known page it is kept until pages are needed;
the one that was let go first is evicted first.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence

from specdec.interfaces import PageUse

Key = bytes  # of a text; b"" is the empty text's


def key_of(before: Key, tokens: Sequence[int]) -> Key:
    """Of a text that goes on by these tokens."""
    digest = hashlib.blake2b(before, digest_size=16)
    digest.update(array("q", tokens).tobytes())
    return digest.digest()


class Pool:
    """The pages of one memory."""

    def __init__(self, pages: int) -> None:
        self.pages = 0
        self.hands = [0]  # of each page, the scratch page included
        self.peak = self.evicted = self.adopted = 0
        self.spared = 0  # pages that rows would hold besides, if each had its own
        self._free: dict[int, None] = {}  # in the order in which they became free
        self._cached: dict[int, None] = {}  # in the order in which they were let go
        self._keys: dict[int, Key] = {}  # of pages whose text is known
        self._known: dict[Key, int] = {}
        self.grow(pages)

    @property
    def free(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._cached)

    @property
    def use(self) -> PageUse:
        shared = sum(hands > 1 for hands in self.hands)
        in_use = self.pages - self.free
        counters = self.peak, self.evicted, self.adopted
        return PageUse(self.pages, in_use, shared, len(self._cached), *counters)

    def grow(self, pages: int) -> None:
        """To so many."""
        new = range(self.pages + 1, pages + 1)
        self._free = {**dict.fromkeys(reversed(new)), **self._free}
        self.hands += [0] * len(new)
        self.pages = pages

    def take(self, wanted: int) -> int:
        """A page for one row: `wanted` if it is free."""
        if wanted in self._free:
            del self._free[wanted]
            page = wanted
        elif self._free:
            page, _ = self._free.popitem()
        else:
            page = next(iter(self._cached))
            del self._cached[page]
            self.forget(page)
            self.evicted += 1
        self.hands[page] = 1
        self.peak = max(self.peak, self.pages - self.free)
        return page

    def share(self, page: int) -> None:
        """One more row holds it."""
        self._cached.pop(page, None)
        self.spared += self.hands[page] > 0
        self.hands[page] += 1
        self.peak = max(self.peak, self.pages - self.free)

    def let_go(self, pages: Iterable[int]) -> None:
        """A row no longer holds them. The last pages of a text come first: they are of less use."""
        for page in pages:
            self.hands[page] -= 1
            self.spared -= self.hands[page] > 0
            if self.hands[page] == 0:
                (self._cached if page in self._keys else self._free)[page] = None

    def is_own(self, page: int) -> bool:
        """Whether the one row that holds it may write it."""
        return self.hands[page] == 1 and page not in self._keys

    def publish(self, page: int, key: Key) -> int:
        """It is full, and `key` is its text's. Returns the page of that text: this one, or one that
        was known before."""
        known = self._known.setdefault(key, page)
        if known == page:
            self._keys[page] = key
        return known

    def forget(self, page: int) -> None:
        """Its text is about to change."""
        key = self._keys.pop(page, None)
        if key is not None:
            del self._known[key]

    def find(self, key: Key) -> int | None:
        """The page at whose end this text ends."""
        return self._known.get(key)

    def check_integrity(self, held: Sequence[Sequence[int]]) -> None:
        """held: the pages of each row, as the rows know them."""
        hands = [0] * (self.pages + 1)
        for pages in held:
            assert len(set(pages)) == len(pages), "a row holds a page twice"
            for page in pages:
                hands[page] += 1
        assert hands[0] == 0, "the scratch page belongs to nobody"
        assert hands == self.hands
        assert self.spared == sum(hands) - (self.pages - self.free)
        idle = {page for page in range(1, self.pages + 1) if not hands[page]}
        assert not self._free.keys() & self._cached.keys()
        assert self._free.keys() | self._cached.keys() == idle
        assert self._cached.keys() <= self._keys.keys()
        assert not self._free.keys() & self._keys.keys()
        assert {page: key for key, page in self._known.items()} == self._keys
        assert all(page in self._keys for page, count in enumerate(hands) if count > 1)
