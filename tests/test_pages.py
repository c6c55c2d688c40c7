"""Memory in pages is memory: a session over pages says what a contiguous one says, rows share what
is equal and notice nothing of it, and a pool that is full says so before anything is written."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specdec
from drafters.small_model import SmallModel
from experiments.certificates import suite
from specdec.errors import OutOfPages
from specdec.interfaces import KV, Paged
from specdec.models.language_model import TransformersLM
from specdec.models.pool import Pool, key_of
from specdec.tree import TokenTree
from tests import models
from tests.exact import exact, title
from tests.models import ARCHITECTURES, prompts, shared
from tests.test_language_model import both_rounds, padded, tokens_of, worst
from tests.test_sessions import DRAFTERS

ROWS, NODES = 3, 5


@pytest.fixture(scope="module")
def lm():
    return TransformersLM(shared("llama_gqa", torch.float64))


def read(session, row, text):
    return session.read(torch.tensor([text]), [len(text)], rows=[row])


# ---------------------------------------------------------------------------------------- the pool


def test_a_page_goes_from_hand_to_hand():
    pool = Pool(2)
    first, second = pool.take(2), pool.take(0)
    assert {first, second} == {1, 2}
    assert pool.free == 0
    pool.publish(first, key_of(b"", [1, 2]))
    pool.share(first)
    pool.check_integrity([[first, second], [first]])
    pool.let_go([second, first])
    pool.let_go([first])
    pool.check_integrity([[], []])
    assert pool.use[:4] == (2, 0, 0, 1)
    assert pool.free == 2
    assert pool.find(key_of(b"", [1, 2])) == first
    assert pool.take(0) == second  # what nobody remembers goes first
    assert pool.take(0) == first
    assert pool.find(key_of(b"", [1, 2])) is None
    assert pool.use.evicted == 1


def test_the_page_that_was_let_go_first_is_evicted_first():
    pool = Pool(3)
    pages = [pool.take(0) for _ in range(3)]
    for number, page in enumerate(pages):
        pool.publish(page, key_of(b"", [number]))
    for page in (pages[1], pages[2], pages[0]):
        pool.let_go([page])
    pool.share(pages[1])
    pool.let_go([pages[1]])  # used again meanwhile
    assert [pool.take(0) for _ in range(3)] == [pages[2], pages[0], pages[1]]


def test_a_key_is_of_the_whole_text():
    assert key_of(key_of(b"", [1, 2]), [3, 4]) != key_of(key_of(b"", [0, 2]), [3, 4])
    assert key_of(b"", [1, 2]) != key_of(b"", [2, 1])


@pytest.mark.parametrize(
    ("pool", "held", "why"),
    [
        ({"hands": [0, 1, 0]}, [[]], "hands"),
        ({}, [[1, 1]], "twice"),
        ({"hands": [0, 2, 0]}, [[1], [1]], "text is not known"),
    ],
)
def test_integrity_is_checked(pool, held, why):
    one = Pool(2)
    one.take(1)
    vars(one).update(pool)
    with pytest.raises(AssertionError):
        one.check_integrity(held)


# --------------------------------------------------------------------------- against contiguous


class Both:
    """Two sessions of one model, which get the same calls; only one has pages."""

    def __init__(self, lm, random, pages):
        self.random, self.page = random, int(random.integers(1, 7))
        self.plain = lm.open(ROWS, 4)
        self.paged = lm.open(ROWS, 4, kv=KV("paged", page=self.page, pages=pages))
        self.texts = [[] for _ in range(ROWS)]
        self.refused = 0
        for row in range(ROWS):
            assert self.paged.adopt(row, []) == 0

    def check(self):
        self.paged.check_integrity()
        self.plain._memory.check_integrity()
        assert self.paged._memory.lengths == self.plain._memory.lengths
        assert self.plain._memory.lengths == [len(text) for text in self.texts]

    def text(self, most):
        """Few tokens, so that texts begin alike."""
        return self.random.integers(0, 2, int(self.random.integers(1, most))).tolist()

    def begin(self, row):
        """The row is emptied, and takes a new text; some of it is adopted."""
        text = self.text(18)
        for session in (self.plain, self.paged):
            session.release([row])
        self.texts[row] = []
        known = self.paged.adopt(row, text)
        if known:
            read(self.plain, row, text[:known])
        self.texts[row] = text[:known]
        self.check()
        if known < len(text):
            self.read([row], [text[known:]])

    def read(self, rows, texts):
        counts = [len(text) for text in texts]
        tokens = padded(texts)
        try:
            found = self.paged.read(tokens, counts, rows).logits
        except OutOfPages:
            self.refused += 1
            return
        expected = self.plain.read(tokens, counts, rows).logits
        has_tokens = [count > 0 for count in counts]
        assert (found - expected)[has_tokens].abs().max() < 1e-9
        for row, text in zip(rows, texts, strict=True):
            self.texts[row] = self.texts[row] + text

    def go_on(self):
        """Some rows read more, one of them perhaps nothing."""
        rows = self.random.permutation(ROWS)[: int(self.random.integers(1, ROWS + 1))].tolist()
        texts = [self.text(6) for _ in rows]
        if len(rows) > 1 and self.random.random() < 0.5:
            texts[0] = []
        self.read(rows, texts)

    def score(self):
        """A tree, in one pass or in two; a path of some rows is kept."""
        used = self.random.random((ROWS, NODES)) < 0.8
        above = [[-1, *(int(self.random.integers(0, n)) for n in range(1, NODES))]] * ROWS
        parents = np.array(above)
        for node in range(1, NODES):
            for row in range(ROWS):
                parent = parents[row, node]
                if not used[row, node] or (parent and parents[row, parent] < 0):
                    parents[row, node] = -1
        tokens = torch.from_numpy(self.random.integers(0, 2, (ROWS, NODES)))
        tree = TokenTree(tokens, parents.tolist())
        rooms = [len(text) + NODES < models.CONTEXT for text in self.texts]
        if not all(rooms):
            self.rewind(rooms.index(False), 3)
            return
        split = int(self.random.integers(1, NODES))
        first = TokenTree(tokens[:, :split], parents[:, :split].tolist())
        steps = [(tree, 0)] if self.random.random() < 0.5 else [(first, 0), (tree, split)]
        lacking = self.paged.lacking(range(ROWS), NODES)
        for part, start in steps:
            try:
                found = self.paged.score(part, start).logits
            except OutOfPages:
                assert lacking
                self.refused += 1
                return
            expected = self.plain.score(part, start).logits
            is_used = part.structure.used[:, start:]
            if is_used.any():
                assert (found - expected)[is_used].abs().max() < 1e-9
        self.check()
        paths = []
        for row in range(ROWS):
            ends = [node for node in range(NODES) if not node or parents[row, node] >= 0]
            paths.append(tree.path(row, int(self.random.choice(ends))))
        counts = [len(path) if self.random.random() < 0.8 else -1 for path in paths]
        widest = max(1, *map(len, paths))
        kept = np.array([path + [-1] * (widest - len(path)) for path in paths])
        for session in (self.plain, self.paged):
            session.keep(kept, counts)
        for row, (path, count) in enumerate(zip(paths, counts, strict=True)):
            if count >= 0:
                added = tokens[row, [0, *path]].tolist()
                self.texts[row] = self.texts[row] + added

    def rewind(self, row, length):
        length = min(length, len(self.texts[row]))
        for session in (self.plain, self.paged):
            session.rewind([row], [length])
        self.texts[row] = self.texts[row][:length]


@given(st.integers(0, 1 << 32), st.sampled_from([None, 40, 12]))
@settings(max_examples=30)
@torch.inference_mode()
def test_pages_hold_what_contiguous_memory_holds(lm, seed, pages):
    """Reading, scoring, keeping, releasing, adopting and rewinding in any order, in float64."""
    random = np.random.default_rng(seed)
    both = Both(lm, random, pages)
    for _ in range(14):
        which = random.random()
        row = int(random.integers(0, ROWS))
        if which < 0.3:
            both.begin(row)
        elif which < 0.45:
            both.go_on()
        elif which < 0.85:
            both.score()
        else:
            both.rewind(row, int(random.integers(0, len(both.texts[row]) + 1)))
        both.check()
    assert pages is not None or not both.refused
    for session in (both.plain, both.paged):
        session.release(range(ROWS))
    assert both.paged.free == both.paged.pages


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tree_logits_are_plain_logits_of_every_architecture(name, paged):
    """K and V may differ in size and heads, and layers in what they look at."""
    both_rounds(shared(name), 1e-4)


# ----------------------------------------------------------------------------------------- sharing


@torch.inference_mode()
def test_many_samples_of_one_prompt_are_read_once(lm):
    """Also the last page, which is not full: it is copied from a row that has it."""
    (prompt,) = prompts(50)
    with lm.open(8, 60, kv=KV("paged", page=8)) as session:
        read(session, 0, prompt)
        calls = session.calls
        assert [session.adopt(row, prompt) for row in range(1, 8)] == [50] * 7
        assert session.calls == calls
        session.check_integrity()
        assert session.page_use.in_use == 6 + 8
        assert session.page_use.shared == 6
        assert session.page_use.adopted == 7 * 50
        tree = TokenTree(tokens_of(1, 8, 3), [[-1, 0, 0]] * 8)
        assert worst(lm.model, tree, session.score(tree).logits, [prompt] * 8) < 1e-9


@torch.inference_mode()
def test_what_was_read_is_still_known_when_its_row_is_gone(lm):
    (prompt,) = prompts(21)
    with lm.open(2, 30, kv=KV("paged", page=8)) as session:
        read(session, 0, prompt)
        session.release([0])
        assert session.page_use[1:4] == (0, 0, 2)
        other = [*prompt[:12], 96, 95, 94, 93, 92]
        assert session.adopt(1, other) == 8  # the second page goes on otherwise
        read(session, 1, other[8:])
        tree = TokenTree(tokens_of(1, 2, 1), [[-1]] * 2)
        assert worst(lm.model, tree, session.score(tree).logits, [[], other]) < 1e-9
        session.check_integrity()


@torch.inference_mode()
def test_a_text_that_was_decoded_is_known_too(lm):
    """Tokens of kept paths, in pages that a tree had filled in another order."""
    (prompt,) = prompts(6)
    with lm.open(1, 30, kv=KV("paged", page=4)) as session:
        read(session, 0, prompt)
        tree = TokenTree(tokens_of(3, 1, 5), [[-1, 0, 0, 2, 3]])
        session.score(tree)
        session.keep(np.array([[2, 3, 4]]), [3])
        text = [*prompt, *tree.tokens[0, [0, 2, 3, 4]].tolist()]
        session.release([0])
        assert session.adopt(0, [*text, 1]) == 8
        read(session, 0, text[8:])
        again = TokenTree(tokens_of(4, 1, 2), [[-1, 0]])
        assert worst(lm.model, again, session.score(again).logits, [text]) < 1e-9


@torch.inference_mode()
def test_copies_of_a_prompts_last_page_are_one_again_once_they_are_full(lm):
    """The roots fill them: the same one, or in the last row another one."""
    (prompt,) = prompts(15)
    with lm.open(4, 30, kv=KV("paged", page=8)) as session:
        read(session, 0, prompt)
        assert [session.adopt(row, prompt) for row in (1, 2, 3)] == [15] * 3
        assert session.page_use.in_use == 1 + 4
        roots = [5, 5, 5, 6]
        session.score(TokenTree(torch.tensor(roots)[:, None], [[-1]] * 4))
        session.keep(np.array([[-1]] * 4), [0] * 4)
        session.check_integrity()
        assert session.page_use[1:3] == (1 + 2, 2)
        tree = TokenTree(tokens_of(1, 4, 3), [[-1, 0, 0]] * 4)
        texts = [[*prompt, root] for root in roots]
        assert worst(lm.model, tree, session.score(tree).logits, texts) < 1e-9


@torch.inference_mode()
def test_rows_that_read_the_same_text_come_to_share_its_pages(lm):
    (prompt,) = prompts(18)
    with lm.open(3, 30, kv=KV("paged", page=8)) as session:
        session.read(torch.tensor([prompt] * 3), [18, 18, 18])
        assert session.page_use[1:3] == (9, 0)
        session.release([2])
        session.check_integrity()
        assert session.page_use[1:3] == (4, 2)
        tree = TokenTree(tokens_of(1, 3, 3), [[-1, 0, 0]] * 3)
        found = session.score(tree).logits[:2]
        both = TokenTree(tree.tokens[:2], [[-1, 0, 0]] * 2)
        assert worst(lm.model, both, found, [prompt] * 2) < 1e-9


@torch.inference_mode()
def test_a_root_that_was_read_and_not_scored_is_part_of_the_text(lm):
    """A draft model reads its roots. An earlier round's tree has nothing to do with it."""
    (prompt,) = prompts(5)
    with lm.open(1, 30, kv=KV("paged", page=4)) as session:
        read(session, 0, prompt)
        session.read(torch.tensor([[1]]), [1], root=True)
        session.score(TokenTree(torch.tensor([[1, 2]]), [[-1, 0]]), 1)
        session.keep(np.array([[1]]), [1])
        session.read(torch.tensor([[3]]), [1], root=True)
        session.keep(np.array([[-1]]), [0])
        session.release([0])
        assert session.adopt(0, [*prompt, 1, 2, 1]) == 4
        session.release([0])
        assert session.adopt(0, [*prompt, 1, 2, 3]) == 8


@torch.inference_mode()
def test_a_shared_page_is_copied_before_it_is_written(lm):
    """A row is rewound into a page that another row reads."""
    (prompt,) = prompts(16)
    with lm.open(2, 30, kv=KV("paged", page=8)) as session:
        read(session, 0, prompt)
        assert session.adopt(1, prompt) == 16
        session.rewind([1], [11])
        read(session, 1, [1, 2, 3])
        session.check_integrity()
        tree = TokenTree(tokens_of(1, 2, 2), [[-1, 0]] * 2)
        texts = [prompt, [*prompt[:11], 1, 2, 3]]
        assert worst(lm.model, tree, session.score(tree).logits, texts) < 1e-9
        assert session.page_use.shared == 1


@torch.inference_mode()
def test_with_taps_nothing_is_adopted(lm):
    """Hidden states are not kept with pages."""
    (prompt,) = prompts(16)
    with lm.open(2, 30, kv=KV("paged", page=8)) as session:
        read(session, 0, prompt)
        assert session.adopt(1, prompt, taps=("head",)) == 0


@torch.inference_mode()
def test_padding_is_not_written_into_pages_that_others_read(lm):
    """A row that was rewound into a shared page waits while its neighbour reads on."""
    (prompt,) = prompts(16)
    with lm.open(3, 30, kv=KV("paged", page=8)) as session:
        read(session, 0, prompt)
        assert session.adopt(1, prompt) == 16
        session.rewind([1], [11])
        session.read(torch.tensor([[1, 2, 3], [0, 0, 0]]), [3, 0], rows=[2, 1])
        texts = [prompt, prompt[:11], [1, 2, 3]]
        tree = TokenTree(tokens_of(1, 3, 2), [[-1, 0]] * 3)
        assert worst(lm.model, tree, session.score(tree).logits, texts) < 1e-9


# ------------------------------------------------------------------------------------ a full pool


@torch.inference_mode()
def test_a_full_pool_says_so_before_anything_is_written(lm):
    rows = prompts(16, 7)
    with lm.open(2, 0, kv=KV("paged", page=4, pages=7)) as session:
        read(session, 0, rows[0])
        read(session, 1, rows[1])
        assert session.free == 1
        assert session.lacking([0, 1], 5) == 3 - 1
        assert session.lacking([0], 4) == 0  # the other row's root goes into its last page
        tree = TokenTree(tokens_of(1, 2, 5), [[-1, 0, 1, 2, 3]] * 2)
        memory = session._memory
        before = [block.clone() for block in memory.blocks]
        state = [list(pages) for pages in memory.pages], memory.lengths[:]
        for call in (lambda: session.score(tree), lambda: read(session, 1, [3] * 9)):
            with pytest.raises(OutOfPages, match=r"needs \d more pages of 4 tokens.*1 of 7"):
                call()
            assert all(map(torch.equal, before, memory.blocks))
            assert ([list(pages) for pages in memory.pages], memory.lengths) == state
            session.check_integrity()
        small = TokenTree(tree.tokens[:, :1], [[-1]] * 2)
        assert worst(lm.model, small, session.score(small).logits, rows) < 1e-9


@torch.inference_mode()
def test_rows_without_a_text_take_no_pages_of_a_pool_of_a_given_size(lm):
    (prompt,) = prompts(7)
    with lm.open(4, 0, kv=KV("paged", page=4, pages=4)) as session:
        read(session, 0, prompt)
        read(session, 1, prompt[:4])
        session.release([1])
        assert session.lacking([0], 5) == 0
        tree = TokenTree(tokens_of(1, 4, 5), [[-1, 0, 1, 2, 3]] * 4)
        found = session.score(tree).logits
        assert worst(lm.model, TokenTree(tree.tokens[:1], [[-1, 0, 1, 2, 3]]), found, [prompt]) < (
            1e-9
        )
        session.keep(np.array([[1]] * 4), [1, -1, -1, -1])
        session.check_integrity()
        assert session.page_use.in_use == 3
        session.adopt(2, [])  # a text of one token: its root comes with its tree
        root = TokenTree(tokens_of(2, 4, 1), [[-1]] * 4)
        text = [*prompt, *tree.tokens[0, :2].tolist()]
        found = session.score(root).logits[[0, 2]]
        both = TokenTree(root.tokens[[0, 2]], [[-1]] * 2)
        assert worst(lm.model, both, found, [text, []]) < 1e-9


@torch.inference_mode()
def test_pages_that_are_only_remembered_make_room(lm):
    (prompt,) = prompts(16)
    with lm.open(1, 0, kv=KV("paged", page=4, pages=5)) as session:
        read(session, 0, prompt)
        session.release([0])
        (other,) = prompts(18, seed=4)
        assert session.free == session.pages == 5
        read(session, 0, other)
        assert session.page_use.evicted == 4
        tree = TokenTree.root(torch.tensor([3]))
        assert worst(lm.model, tree, session.score(tree).logits, [other]) < 1e-9


def test_settings_are_checked():
    for settings_, message in (
        ({"layout": "page"}, r"layout of kv must be one of.*got 'page'; did you mean 'paged'"),
        ({"dtype": "int4"}, r"dtype of kv must be one of.*'int4'; did you mean 'int8'"),
        ({"layout": "paged", "page": 0}, "page of kv must be an integer >= 1"),
        ({"layout": "paged", "pages": 0}, "pages of kv must be an integer >= 1"),
        ({"pages": 5}, r"pages=5 and layout='contiguous'"),
    ):
        with pytest.raises(ValueError, match=message):
            KV(**settings_)
    with pytest.raises(ValueError, match=r"kv must be a KV or one of.*'int7'; did you mean 'int8'"):
        specdec.load(shared("llama_gqa"), kv="int7")
    assert specdec.load(shared("llama_gqa"), kv="int8").kv == KV(dtype="int8")
    assert specdec.load(specdec.load(shared("llama_gqa")), kv="paged").kv == KV("paged")


# -------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("drafter", DRAFTERS, ids=title)
def test_every_drafter_decodes_over_pages_what_it_decodes_without(drafter, lm):
    target = lm.with_kv(KV("paged", page=4))
    draft = TransformersLM(models.similar(shared("llama_gqa", torch.float64)))
    tokens = []
    for each in (lm, target):
        made = suite.make(drafter, each, draft)
        out = specdec.generate(
            each, prompts(9, 5), drafter=made, max_new_tokens=8, temperature=1.0, seats=1
        )
        tokens.append([row.tolist() for row in out.tokens])
        assert out.report.cache_bytes["target"] > 0
    assert tokens[0] == tokens[1]


def test_draft_models_follow_the_target(lm):
    """Into pages, which are as many as they need."""
    target, draft, opened = lm.with_kv(KV("paged", page=4)), TransformersLM(lm.model), []

    class Held(SmallModel):
        def begin(self, target, rows, sampling):
            super().begin(target, rows, sampling)
            opened.append(self._session)

    specdec.generate(target, prompts(9), drafter=Held(draft), max_new_tokens=2)
    assert isinstance(opened[0], Paged)
    assert opened[0].page == 4


# ------------------------------------------------------------------------------------------ 8 bits


EIGHT = [KV(dtype="int8"), KV("paged", page=4, dtype="int8")]


@pytest.mark.parametrize("kv", EIGHT, ids=["contiguous", "paged"])
@pytest.mark.parametrize("name", ["llama_gqa", "gemma3", "deepseek_v3", "gpt2"])
@torch.inference_mode()
def test_in_8_bits_a_tree_says_what_plain_decoding_says(name, kv):
    """Under the same memory: prompts in one pass, token by token, and nodes of a tree."""
    dtype = torch.float64 if name != "deepseek_v3" else torch.float32
    target, (prompt,) = TransformersLM(shared(name, dtype), kv=kv), prompts(11)
    tree = TokenTree(tokens_of(1, 1, 6), [[-1, 0, 0, 2, 3, 1]])
    with target.open(1, 20) as session:
        read(session, 0, prompt)
        in_tree = session.score(tree).logits[0]
    exact = TransformersLM(shared(name, dtype)).open(1, 20)
    read(exact, 0, prompt)
    unlike = (exact.score(tree).logits[0] - in_tree).abs().max()
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3 * float(unlike)
    assert unlike > 1e-3
    for leaf in (4, 5):
        with target.open(1, 20) as session:
            path = [0, *tree.path(0, leaf)]
            text = [*prompt, *tree.tokens[0, path].tolist()]
            for token in text:
                plain = read(session, 0, [token]).logits[0, 0]
            assert (plain - in_tree[leaf]).abs().max() < tolerance


@pytest.mark.parametrize("kv", EIGHT, ids=["contiguous", "paged"])
@torch.inference_mode()
def test_in_8_bits_logits_are_about_the_same(lm, kv):
    tree, (prompt,), found = TokenTree(tokens_of(1, 1, 3), [[-1, 0, 0]]), prompts(11), []
    for each in (KV(), kv):
        with lm.open(1, 20, kv=each) as session:
            read(session, 0, prompt)
            found.append(session.score(tree).logits.softmax(-1))
    assert (found[0] - found[1]).abs().sum(-1).max() < 0.2


@pytest.mark.parametrize("kv", EIGHT, ids=["contiguous", "paged"])
def test_in_8_bits_the_law_is_that_of_plain_decoding(kv):
    """Enumerated, on a model of three tokens; it is not the law of exact memory."""
    config = {**models.GROUPED, "vocab_size": 3, "num_hidden_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.sharpened(models.hf.LlamaForCausalLM(models.hf.LlamaConfig(**config)))
    model = model.double()
    target, draft = TransformersLM(model, kv=kv), TransformersLM(models.similar(model))

    def law(lm, name, **settings):
        toy = SimpleNamespace(
            target=lm, prompt=(0, 1, 2, 1), completions=lambda emitted, mass, _: [(emitted, mass)]
        )
        drafter = {"small_model": lambda: SmallModel(draft, **settings), "none": lambda: "none"}
        return exact(toy, drafter[name], "auto", tokens=2, rounds=None)

    plain = law(target, "none")
    assert law(target, "small_model", depth=1, branching=2).distance(plain.law) < 1e-12
    assert law(TransformersLM(model), "none").distance(plain.law) > 1e-4


def test_memory_in_8_bits_is_about_half():
    lm = TransformersLM(models.long_llama(head_dim=64).bfloat16())
    assert lm.bytes_per_token(KV()) == 2 * 2 * 2 * 64 * 2  # layers, K and V, heads, numbers
    assert lm.bytes_per_token(KV(dtype="int8")) == 2 * 2 * 2 * (64 + 4)
    with lm.open(3, 40, kv=KV(dtype="int8")) as session:
        assert session.nbytes == 3 * 40 * lm.bytes_per_token(KV(dtype="int8"))
    with lm.open(3, 0, kv=KV("paged", page=8, pages=4, dtype="int8")) as session:
        assert session.nbytes == (4 + 1) * 8 * lm.bytes_per_token(session.kv)
    out = specdec.generate(lm.with_kv(KV(dtype="int8")), prompts(6), max_new_tokens=4)
    assert out.report.cache_bytes["target"] % (64 + 4) == 0
