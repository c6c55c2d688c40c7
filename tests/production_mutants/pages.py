"""Pages: who holds them, who may write them, and what 8 bits keep."""

from tests.production_mutants.mutant import Mutant

POOL, PAGED = "specdec/models/pool.py", "specdec/models/paged.py"
SESSION, EIGHT = "specdec/models/paged_session.py", "specdec/models/eight_bits.py"
SLOTS, PAGES = "specdec/models/slots.py", "tests/test_pages.py"
SHARING = f"{PAGES} -k 'shared_page or contiguous_memory_holds'"
KNOWN = f"{PAGES} -k 'known or samples or key or page_goes'"
BITS = f"{PAGES} -k 'in_8_bits'"

MUTANTS = (
    Mutant(
        "a shared page is written",
        PAGED,
        "            for number in self._foreign(row, first, end):\n"
        "                self._replace(row, number)",
        "            pass",
        "another row reads what this one wrote over its text",
        SHARING,
    ),
    Mutant(
        "a copied page is empty",
        PAGED,
        "        self._copy(old, new)",
        "        pass",
        "a row loses the beginning of the page that it shared",
        SHARING,
    ),
    Mutant(
        "a page keeps its name while its text changes",
        PAGED,
        "            self.pool.forget(page)",
        "            pass",
        "a later row adopts a page that says something else",
        SHARING,
    ),
    Mutant(
        "a page is free while a row reads it",
        POOL,
        "if self.hands[page] == 0:",
        "if self.hands[page] <= 1:",
        "a freed page is given to another row and read by this one",
        SHARING,
    ),
    Mutant(
        "an evicted page is still known",
        POOL,
        "            self.forget(page)\n            self.evicted += 1",
        "            self.evicted += 1",
        "a row adopts a page that holds another text",
        f"{PAGES} -k 'page_goes or contiguous_memory_holds'",
    ),
    Mutant(
        "the newest page is evicted",
        POOL,
        "page = next(iter(self._cached))",
        "page = next(reversed(self._cached))",
        "what was used last is read again",
        f"{PAGES} -k let_go_first",
    ),
    Mutant(
        "a page is known by its own tokens alone",
        POOL,
        "hashlib.blake2b(before, digest_size=16)",
        "hashlib.blake2b(b'', digest_size=16)",
        "a page is shared between texts that began in another way",
        KNOWN,
    ),
    Mutant(
        "padding is written into a row's own pages",
        PAGED,
        "places = np.where(slots < memory.ends[chosen][:, None], places, slots % memory.page)",
        "pass",
        "padding of a row that was rewound spoils a page that others read",
        f"{PAGES} -k 'padding'",
    ),
    Mutant(
        "full pages are counted up",
        PAGED,
        "for number in range(len(keys), min(self.roots[row], len(text)) // page):",
        "for number in range(len(keys), self.pages_for(min(self.roots[row], len(text)))):",
        "a page is shared that is still being written",
        SHARING,
    ),
    Mutant(
        "pages are taken although some are lacking",
        PAGED,
        "if lacking and self.bounded:",
        "if False:",
        "a bounded pool grows",
        f"{PAGES} -k full_pool",
    ),
    Mutant(
        "pages past a row's end are not given back",
        PAGED,
        "            if len(pages) > needed:",
        "            if False:",
        "a released row holds its pages for ever",
        SHARING,
    ),
    Mutant(
        "a kept path is moved the other way",
        PAGED,
        "by_slot[:, :, target] = by_slot[:, :, origin]",
        "by_slot[:, :, origin] = by_slot[:, :, target]",
        "a kept path is overwritten by what was in its place",
        f"{PAGES} -k 'contiguous_memory_holds'",
    ),
    Mutant(
        "compiled passes write past a row's end",
        "specdec/models/fixed.py",
        "own = written < ends[:, None]",
        "own = written < ends[:, None] + 4",
        "padding of a pass goes to pages that hold a text",
        "tests/test_compiled.py -k 'padding_over_pages'",
    ),
    Mutant(
        "nodes of a whole draft lose their pages",
        PAGED,
        "needed = self.pages_for(self.lengths[row] + nodes)",
        "needed = self.pages_for(self.lengths[row])",
        "what a round keeps of a draft is in a page that another row may take",
        "tests/test_whole_drafts.py -k pages_draft",
    ),
    Mutant(
        "hidden states are thought to be kept",
        SESSION,
        "        if taps:\n            return 0",
        "        if False:\n            return 0",
        "a head is given no states of an adopted prefix",
        f"{PAGES} -k taps",
    ),
    Mutant(
        "the root of a kept path is forgotten",
        SESSION,
        "for node in (0, *path[row, :count].tolist())",
        "for node in path[row, :count].tolist()",
        "pages are known by a text that they do not hold",
        f"{PAGES} -k 'decoded_is_known'",
    ),
    Mutant(
        "a pass sees its own tokens in full",
        SLOTS,
        "fresh = (eight_bits.encode(key_states), eight_bits.encode(value_states))",
        "fresh = (eight_bits.encode(key_states), eight_bits.encode(2 * value_states))",
        "values are twice what they were",
        f"{PAGES} -k 'about_the_same'",
    ),
    Mutant(
        "one scale for all tokens of a pass",
        EIGHT,
        "scale = (states.abs().amax(-1, keepdim=True) / MOST).float()",
        "scale = (states.abs().amax((-2, -1), keepdim=True) / MOST).float()"
        ".expand(*states.shape[:-1], 1).contiguous()",
        "a node's law depends on its siblings",
        BITS,
    ),
)
