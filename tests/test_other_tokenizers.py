"""Draft models with another tokenizer: what tokens stand for, texts that change their tail, drafts
from the intersection and by text, and the law of the output."""

import random

import pytest
import torch

import specdec
from drafters.small_model import SmallModel
from experiments.vocabularies import compare
from specdec import Sampling, SiblingLaw
from specdec.models.pieces import pieces_of
from specdec.models.table import TableModel
from specdec.models.translated import Translated
from specdec.models.translation import FRESH, Text, between, choose
from specdec.models.vocabulary import digest_of
from specdec.tree import TokenTree
from tests.exact import Toy, exact, table
from tests.tokenizers_of_kinds import (
    CORPUS,
    byte_level,
    model,
    relabelled,
    unigram,
    word_pieces,
    words,
)

TEXT = "the reader's café: naïve 東京 reading\n\n  def read(path): übel 😀 end"
KINDS = {
    "byte-level": lambda: byte_level(400),
    "unigram": lambda: unigram(120),
    "words": lambda: words(["?", "a", "b"]),
    "word pieces": lambda: word_pieces(["a", "b", "##b"]),
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def pieces(tokenizer, more: int = 0):
    return pieces_of(tokenizer, len(tokenizer) + more)


# -------------------------------------------------------------------------------------- pieces


def test_a_token_has_the_same_bytes_in_every_kind_of_tokenizer():
    for tokenizer, token, expected in [
        (byte_level(400), "Ġread", b" read"),
        (byte_level(400), "Ã", b"\xc3"),
        (unigram(120), "▁read", b" read"),
        (unigram(120), "<0xC3>", b"\xc3"),
        (words(["?", "the"]), "the", b" the"),
        (word_pieces(["the", "##re"]), "the", b" the"),
        (word_pieces(["the", "##re"]), "##re", b"re"),
    ]:
        found = pieces(tokenizer)
        assert found.bytes[tokenizer.get_vocab()[token]] == expected
        assert found.bytes[found.ids[expected]] == expected


@pytest.mark.parametrize("kind", ["byte-level", "unigram"])
def test_any_stretch_of_text_is_written_in_full(kind):
    """Cut at any byte, also within a character, also where a tokenizer would put a space."""
    found, data = pieces(KINDS[kind]()), TEXT.encode()
    for cut in range(1, len(data)):
        whole = found.encode(data[:cut], opens=False) + found.encode(data[cut:], opens=False)
        assert found.text(whole) == data, cut
        complete = data[:cut].decode(errors="ignore").encode()
        assert found.text(found.encode(data[:cut], opens=False, cut=True)) == complete


def test_a_text_opens_as_the_tokenizer_opens_it():
    tokenizer = unigram(120)
    found = pieces(tokenizer)
    assert found.opening == [tokenizer.bos_token_id]
    assert found.opening + found.encode(b"the cat", opens=True) == tokenizer("the cat").input_ids
    assert pieces(byte_level(400)).opening == []


def test_special_tokens_and_padding_stand_for_no_bytes():
    tokenizer = byte_level(400, "<|user|>")
    found = pieces(tokenizer, more=7)
    assert found.special["</s>"] == found.special["eos_token"] == tokenizer.eos_token_id
    assert found.bytes[tokenizer.eos_token_id] is None
    assert found.bytes[-7:] == [None] * 7
    assert found.special["<|user|>"] == tokenizer.convert_tokens_to_ids("<|user|>")


# --------------------------------------------------------------------------------- translation


def test_the_intersection_is_what_stands_for_the_same_bytes():
    """In whatever order get_vocab() lists the tokens: that of a fast tokenizer is no order."""
    draft, target = byte_level(400), unigram(120)
    both = between(model(draft), model(target), "intersection")
    ours, theirs = pieces(target), pieces(draft)
    shared = {data for data in ours.ids if data in theirs.ids}
    assert {b"a", b" read", b"\xc3"} <= shared
    assert both.num_shared == len(shared) + 1  # and the end of a text
    for data in shared:
        assert both.into[ours.ids[data]] == theirs.ids[data]
    assert both.into[target.eos_token_id] == draft.eos_token_id
    assert not both.shared[target.bos_token_id]
    logits = torch.randn(1, 1, len(draft), dtype=torch.float64)
    law = both.logits(logits).softmax(-1)[0, 0]
    assert float(law[~both.shared].sum()) == 0
    a, read = ours.ids[b"a"], ours.ids[b" read"]
    ratio = (logits[0, 0, theirs.ids[b"a"]] - logits[0, 0, theirs.ids[b" read"]]).exp()
    assert float(law[a] / law[read]) == pytest.approx(float(ratio))


def test_a_byte_token_never_stands_for_a_character_that_has_a_token():
    target = unigram(120)
    both = between(model(byte_level(400)), model(target), "intersection")
    a, byte = (target.get_vocab()[token] for token in ("a", "<0x61>"))
    assert (bool(both.shared[a]), bool(both.shared[byte])) == (True, False)


def test_chat_markers_are_the_same_by_name_and_ends_by_role():
    target = byte_level(400, "<|user|>", "<|tool|>")
    draft = words(
        ["?", "the", "<end>", "<|user|>"], eos_token="<end>", additional_special_tokens=["<|user|>"]
    )
    both = between(model(draft), model(target), "intersection")
    user, tool, end = (target.get_vocab()[token] for token in ("<|user|>", "<|tool|>", "</s>"))
    the = target(" the", add_special_tokens=False).input_ids
    assert both.pieces([user, *the, tool, *the, end], opens=True) == [3, 1, 1, 2]
    assert both.drafted([1, 2, 1]) == [*the, end]
    assert both.drafted([1, 3, 1]) == [*the, user]


@pytest.mark.parametrize("cut", range(1, 7))
def test_characters_are_finished_in_the_next_tokens(cut):
    """The end of a character comes first in what the draft model writes."""
    tokenizer = byte_level(400)
    both = between(model(tokenizer), model(byte_level(300)), "text")
    data = "東京".encode()
    rest = both.draft.encode(data[cut:], opens=False)
    assert both.target.text(both.drafted(rest)) == data[cut:]


def test_special_characters_of_the_draft_model_end_what_it_writes():
    both = between(model(byte_level(400, "<|x|>")), model(byte_level(300)), "text")
    marker = both.draft.special["<|x|>"]
    the = both.draft.encode(b" the", opens=False)
    assert both.target.text(both.drafted([*the, marker, *the])) == b" the"


# ------------------------------------------------------------------------------ texts in pieces


def committed(tokenizer, text: str, seed: int = 0) -> list[int]:
    """Tokens that make up a text, as a model may write it: not as the tokenizer would."""
    cuts = random.Random(seed)
    found, rest = [], text
    while rest:
        size = cuts.randint(1, 6)
        found += tokenizer(rest[:size], add_special_tokens=False).input_ids
        rest = rest[size:]
    return found


@pytest.mark.parametrize(
    ("target", "draft"), [("byte-level", "unigram"), ("unigram", "byte-level")]
)
def test_the_tail_is_written_anew_as_the_text_grows(target, draft):
    target, draft = KINDS[target](), KINDS[draft]()
    both = between(model(draft), model(target), "intersection")
    tokens = committed(target, " " + TEXT * 6)
    text, memory, back = Text(both, 10_000), [], 0
    for at in range(0, len(tokens), 2):
        text.add(tokens[at : at + 2])
        kept, unread = text.unread()
        assert unread
        back += len(memory) - kept
        memory = memory[:kept] + unread
        assert memory == text.held
        data = both.target.text(tokens[: at + 2])
        assert both.draft.text(memory).lstrip() == data.lstrip(), at
    assert back > 0
    whole = draft(both.target.text(tokens).decode().removeprefix(" ")).input_ids
    known = sum(one == other for one, other in zip(memory, whole, strict=False))
    assert memory[:20] == whole[:20]
    assert known > 0.9 * len(whole) or len(memory) != len(whole)


def test_a_word_that_is_finished_becomes_one_piece():
    target, draft = byte_level(300), byte_level(420)
    both = between(model(draft), model(target), "intersection")
    parts = [target(part, add_special_tokens=False).input_ids for part in (" re", "ad")]
    text = Text(both, 100)
    text.add(parts[0])
    assert both.draft.text(text.unread()[1]) == b" re"
    text.add(parts[1])
    assert text.unread() == (0, [draft.get_vocab()["Ġread"]])


def test_tokens_that_say_nothing_leave_the_text_as_it_is():
    """Its last piece is read again, because its law is asked for."""
    target, draft = byte_level(300, "<|tool|>"), byte_level(420)
    both = between(model(draft), model(target), "intersection")
    text = Text(both, 100)
    text.add([both.target.special["<|tool|>"]])
    assert text.unread() == (0, [0])  # there is nothing yet: any token
    text.add(target(" the paper").input_ids)
    whole = draft(" the paper").input_ids
    assert text.unread() == (0, whole)
    text.add([both.target.special["<|tool|>"]])
    assert text.unread() == (len(whole) - 1, whole[-1:])
    assert text.held == whole


def test_texts_are_settled_at_words():
    """The pieces are those of the whole text, though it comes token by token."""
    target, draft = byte_level(300), byte_level(420)
    both = between(model(draft), model(target), "intersection")
    whole = " ".join(CORPUS)
    text = Text(both, 10_000)
    for token in target(whole).input_ids:
        text.add([token])
        text.unread()
    assert text.held == draft(whole).input_ids


def test_a_tokenizer_may_have_more_tokens_than_ids_in_its_model():
    """And the draft model more ids than tokens."""
    tokenizer = byte_level(420)
    found = pieces_of(tokenizer, 300)
    assert len(found.bytes) == 300
    assert max(found.encode(b" reading the paper", opens=True)) < 300


def test_what_is_settled_is_not_written_again(monkeypatch):
    both = between(model(byte_level(400)), model(byte_level(300)), "intersection")
    text = Text(both, 10_000)
    calls = []
    plain = both.pieces

    def counted(tokens, opens):
        calls.append(len(tokens))
        return plain(tokens, opens)

    monkeypatch.setattr(both, "pieces", counted)
    for token in byte_level(300)(" ".join(CORPUS)).input_ids:
        text.add([token])
        text.unread()
    assert max(calls) <= 2 * FRESH + 1


def test_a_text_that_outgrows_the_draft_model_loses_its_oldest_half():
    target, draft = byte_level(300), unigram(120)
    both = between(model(draft), model(target), "intersection")
    text, limit = Text(both, 60), 60
    for token in committed(target, TEXT * 4):
        text.add([token])
        text.unread()
        assert 0 < len(text.held) <= limit
    assert text.held[0] == draft.bos_token_id
    end = both.draft.text(text.held)
    assert (TEXT * 4).encode().endswith(end[-20:])
    assert len(end) > 25


# -------------------------------------------------------------------------------- the session


@pytest.mark.parametrize("own", [False, True])
def test_the_memory_is_that_of_the_text_whatever_was_drafted(own):
    """After drafts, rejections and changed tails the law is that of a fresh reading."""
    target, draft = byte_level(300), model(byte_level(420))
    both = between(draft, model(target), "intersection")
    texts = [committed(target, TEXT, seed) for seed in range(3)]
    rows, chance = len(texts), random.Random(0)
    starts = [3, 9, 1]
    with Translated(draft, both, own).open(rows, 0) as session:
        for row in range(rows):
            session.read(torch.tensor([texts[row][: starts[row]]]), [starts[row]], [row])
        seen = list(starts)
        for _ in range(12):
            counts = [chance.randint(1, 3) for _ in range(rows)]
            tokens = torch.zeros(rows, 3, dtype=torch.long)
            for row, count in enumerate(counts):
                tokens[row, :count] = torch.tensor(texts[row][seen[row] : seen[row] + count])
                seen[row] += count
            logits = session.read(tokens, counts, root=True).logits
            for row in range(rows):
                with draft.open(1, 0) as fresh:
                    held = torch.tensor([session._texts[row].held])
                    expected = fresh.read(held, [held.shape[1]]).logits
                if not own:
                    expected = both.logits(expected)
                torch.testing.assert_close(logits[row], expected[0])
            # A chain: what comes next in the text, then what does not.
            ahead = [[*texts[row][seen[row] - 1 : seen[row] + 2], 5] for row in range(rows)]
            if own:
                ahead = [[0, 1, 2, 3]] * rows
            tree = TokenTree.chain(torch.tensor(ahead), None)
            session.score(tree, 1)
            accepted = [chance.randint(0, 2) * (not own) for _ in range(rows)]
            path = torch.tensor([[1, 2, -1]] * rows).numpy()
            session.keep(path, accepted)
            seen = [before + more for before, more in zip(seen, accepted, strict=True)]
        assert session.read_again > 0


def test_a_row_is_empty_after_its_release():
    """Also where the tail of its next text changes."""
    target, draft = byte_level(300), model(byte_level(420))
    both = between(draft, model(target), "intersection")
    old, begun, more = (
        torch.tensor([target(part).input_ids]) for part in (" the reader", " re", "ad")
    )
    with Translated(draft, both, False).open(2, 0) as session, draft.open(1, 0) as fresh:
        session.read(old.repeat(2, 1), [old.shape[1]] * 2)
        session.release([1])
        session.read(begun, [begun.shape[1]], [1])
        logits = session.read(more, [more.shape[1]], [1]).logits
        read = torch.tensor([[draft.tokenizer.get_vocab()["Ġread"]]])
        torch.testing.assert_close(logits, both.logits(fresh.read(read, [1]).logits))


# ------------------------------------------------------------------------------------ the whole

WORDS = [f"w{number}" for number in range(40)]
ORDER = random.Random(3).sample(range(2, 44), 40)


def relabelled_pair(others: float, eos: bool = False):
    """A target and the same model in other ids, with words that the target does not know."""
    end = {"eos_token": "w7"} if eos else {}
    target = model(words(WORDS, **end), eos=7 if eos else None)
    names = [f"other{number}" for number in range(max(ORDER) + 1)]
    for word, number in zip(WORDS, ORDER, strict=True):
        names[number] = word
    return target, relabelled(target, ORDER, words(names, **end), others)


PROMPTS = [[1, 2, 3, 4, 5, 6], [9, 8], list(range(10, 30)), [30]]


@pytest.mark.parametrize("seats", [None, 2])
@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({"vocabulary": "intersection"}, 0.0),
        ({"vocabulary": "intersection"}, 1.0),
        ({"vocabulary": "intersection", "branching": [2, 2, 1]}, 1.0),
        ({"vocabulary": "intersection", "lookup": True}, 1.0),
        ({"vocabulary": "text"}, 0.0),
        ({"vocabulary": "auto"}, 1.0),
    ],
)
def test_the_target_in_other_ids_is_always_accepted(settings, temperature, seats):
    # What is not shared is masked, however probable; a draft by text must not write it.
    target, draft = relabelled_pair(others=0.0 if settings["vocabulary"] == "text" else 5.0)
    out = specdec.generate(
        target,
        PROMPTS,
        drafter=SmallModel(draft, **{"depth": 3, **settings}),
        verifier="naive" if temperature == 0 else "auto",
        temperature=temperature,
        max_new_tokens=21,
        seats=seats,
        seed=4,
    )
    if "branching" in settings:
        assert out.report.tau > 2.5
    else:
        assert out.report.tau == pytest.approx(21 / 6)  # 5 rounds of 4 tokens, and one


@pytest.mark.parametrize("mode", ["intersection", "text"])
def test_an_end_of_text_is_drafted(mode):
    target, draft = relabelled_pair(others=0.0, eos=True)
    plain = specdec.generate(target, PROMPTS, drafter="none", max_new_tokens=60, temperature=0)
    found = specdec.generate(
        target,
        PROMPTS,
        drafter=SmallModel(draft, depth=3, vocabulary=mode),
        max_new_tokens=60,
        temperature=0,
    )
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in plain.tokens]


PAIRS = {
    "byte-level, finer": (lambda: byte_level(300), lambda: byte_level(420)),
    "byte-level, coarser": (lambda: byte_level(420), lambda: byte_level(300)),
    "unigram": (lambda: byte_level(400), lambda: unigram(120)),
    "from unigram": (lambda: unigram(120), lambda: byte_level(400)),
    "words": (lambda: words(["?", *" ".join(CORPUS).split()[:50]]), lambda: byte_level(300)),
    "to words": (lambda: byte_level(300), lambda: words(["?", "the", "a", "read", "cat"])),
}


@pytest.mark.parametrize("settings", [{}, {"branching": [2, 1, 1]}, {"vocabulary": "text"}])
@pytest.mark.parametrize("pair", PAIRS)
def test_greedy_tokens_are_those_of_plain_decoding(pair, settings):
    """Both vocabularies are padded; prompts are cut within characters; seats are reused."""
    target, draft = (made() for made in PAIRS[pair])
    target_lm = model(None, len(target) + 5)  # its random bytes are no text to be printed
    drafter = SmallModel(
        model(draft, len(draft) + 9, seed=1, context=96),
        **{"depth": 3, "vocabulary": "intersection", **settings},
    )
    drafter._tokenizers = (draft, target)
    prompts = [target(text).input_ids for text in ("the reader", "東京 café", "a", TEXT)]
    prompts = [row[:-1] or row for row in prompts]
    options = {"temperature": 0, "max_new_tokens": 40, "seats": 2}
    plain = specdec.generate(target_lm, prompts, drafter="none", **options)
    found = specdec.generate(target_lm, prompts, drafter=drafter, **options)
    assert [row.tolist() for row in found.tokens] == [row.tolist() for row in plain.tokens]


@pytest.mark.parametrize("mode", ["intersection", "text"])
def test_no_tree_is_deeper_than_its_row_has_room(mode):
    target, draft = relabelled_pair(others=0.0)
    seen = []

    class Watched(SmallModel):
        def propose(self, state, chance):
            tree = super().propose(state, chance)
            seen.append((state.room - 1 - tree.depths.amax(1))[state.live].tolist())
            return tree

    drafter = Watched(draft, depth=3, vocabulary=mode)
    specdec.generate(target, PROMPTS, drafter=drafter, max_new_tokens=18, temperature=0)
    assert min(min(row) for row in seen) == 0


@pytest.mark.parametrize("mode", ["intersection", "text"])
def test_a_row_has_the_tokens_it_has_alone(mode):
    target, draft = byte_level(300), byte_level(420)
    target_lm, draft_lm = model(target), model(draft, seed=1)
    prompts = [target(text).input_ids for text in ("the reader", "東京 café", "a")]

    def run(rows, **options):
        drafter = SmallModel(draft_lm, depth=3, vocabulary=mode)
        out = specdec.generate(
            target_lm, rows, drafter=drafter, temperature=1.0, max_new_tokens=20, seed=1, **options
        )
        return [row.tolist() for row in out.tokens]

    assert run(prompts) == run(prompts, seats=1)


# -------------------------------------------------------------------------------------- the law


class Spoken(TableModel):
    """A table with a tokenizer."""

    def __init__(self, rows, prompt, tokenizer):
        super().__init__(rows, prompt=prompt)
        self.tokenizer = tokenizer


def joined(*tokens: str):
    """A byte-level BPE whose tokens join into longer ones: ids in this order."""
    import tokenizers as parts

    ids = {token: number for number, token in enumerate(tokens)}
    merges = [(token[:1], token[1:]) for token in tokens if len(token) == 2]
    inner = parts.Tokenizer(parts.models.BPE(ids, merges))
    inner.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = parts.decoders.ByteLevel()
    from tests.tokenizers_of_kinds import fast

    return fast(inner)


LAW_PAIRS = {
    "joins": (lambda: joined("a", "b", "c"), lambda: joined("b", "x", "a", "ab")),
    "splits": (lambda: joined("a", "ab", "b"), lambda: joined("b", "c", "a", "d")),
    "permuted": (lambda: joined("a", "b", "c"), lambda: joined("c", "a", "b", "x")),
    "words": (lambda: words(["a", "b", "c"]), lambda: words(["x", "c", "a", "d"])),
}


@pytest.mark.parametrize("pair", LAW_PAIRS)
@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"depth": 2}, "token"),
        ({"depth": 2}, "block"),
        ({"depth": 1, "branching": 2}, "rrs_wor"),
        ({"depth": 1, "branching": 2, "draw": "wr"}, "kseq"),
        ({"depth": 1, "branching": 3, "draw": "hub"}, "hub"),
        ({"depth": 2, "draw": "adaptive", "nodes": 2}, "traversal"),
        ({"depth": 2, "branching": 2, "draw": "ranked", "nodes": 3}, "naive"),
        ({"depth": 2, "vocabulary": "text"}, "naive"),
        ({"depth": 2, "vocabulary": "text"}, "block"),
    ],
)
def test_the_law_of_the_output_is_the_targets(pair, settings, rule):
    """Exactly, over several rounds, where texts change their tail."""
    target, draft = (made() for made in LAW_PAIRS[pair])

    class Both(Toy):
        @property
        def target(self):
            return Spoken(self.p, len(self.prompt), target)

    toy = Both(table(3, 3, 5), table(4, 3, 6), (0, 1))
    drafter = SmallModel(Spoken(toy.q, 0, draft), **{"vocabulary": "intersection", **settings})
    found = exact(toy, lambda: drafter, rule, tokens=3, rounds=None)
    assert found.distance(toy.plain(3)) < 1e-12


def test_q_is_the_law_that_was_drawn_from():
    """The draft model's, of the shared tokens alone."""
    target, draft = words(["a", "b", "c", "d"]), words(["x", "d", "b", "a"])
    target_lm, draft_lm = model(target), model(draft, seed=1)
    drafter = SmallModel(draft_lm, depth=1, vocabulary="intersection")
    seen = []

    class Watched(SmallModel):
        def propose(self, state, chance):
            tree = super().propose(state, chance)
            seen.append((state.text(0), tree))
            return tree

    drafter.__class__ = Watched
    specdec.generate(target_lm, [[0, 1, 3]], drafter=drafter, temperature=0.7, max_new_tokens=8)
    into = {0: 3, 1: 2, 2: 0, 3: 1}  # the unknown word is the first
    for text, tree in seen:
        if tree.num_nodes == 1:
            continue
        with draft_lm.open(1, 0) as fresh:
            ids = torch.tensor([[into[token] for token in text]])
            logits = fresh.read(ids, [len(text)]).logits[0, 0] / 0.7
        shared = logits[[3, 2, 1]].softmax(-1)
        torch.testing.assert_close(tree.q[0, 0, [0, 1, 3]], shared)
        assert tree.q[0, 0, 2] == 0


def test_a_processor_that_leaves_no_shared_token_leaves_a_law():
    """It allows one token that the draft model does not have."""
    target, draft = words(["a", "b", "c"]), words(["x", "b", "a"])

    def only_c(ids, scores):
        out = torch.full_like(scores, -torch.inf)
        out[:, 2] = scores[:, 2]
        return out

    out = specdec.generate(
        model(target),
        [[0, 1]],
        drafter=SmallModel(model(draft, seed=1), depth=2, vocabulary="intersection"),
        temperature=1.0,
        max_new_tokens=6,
        logits_processors=[only_c],
    )
    assert out.tokens[0].tolist() == [2] * 6


# ------------------------------------------------------------------------- choices and bad input


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        (lambda: byte_level(300), "same"),
        (lambda: byte_level(420), "intersection"),
        (lambda: words(["?", *(f"zz{number}" for number in range(300))]), "text"),
    ],
)
def test_auto_looks_at_the_tokenizers(draft, expected):
    target, other = model(byte_level(300)), model(draft())
    assert choose("auto", other, target, may_write=True) == expected
    drafter = SmallModel(other, vocabulary="auto")
    drafter.begin(target, 1, Sampling(1.0))
    assert drafter.vocabulary == expected
    assert drafter.law is (SiblingLaw.DET if expected == "text" else SiblingLaw.WOR)


def test_padding_alone_is_no_other_vocabulary_for_auto():
    """Both have the same tokens, and all of them are shared."""
    tokenizer = byte_level(300)
    target, draft = model(tokenizer), model(tokenizer, len(tokenizer) + 20)
    assert digest_of(tokenizer) == digest_of(draft.tokenizer)
    assert choose("auto", draft, target, may_write=True) == "intersection"
    assert between(draft, target, "auto").num_shared == len(tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocabulary": "intersect"}, "same, intersection, text or auto.*did you mean 'inters"),
        ({"vocabulary": True}, "same, intersection, text or auto"),
        ({"vocabulary": "text", "branching": 2}, "chain.*branching=2.*vocabulary='intersection'"),
        ({"vocabulary": "text", "draw": "wor"}, "draw is 'auto' or 'topk'.*draw='wor'"),
        ({"vocabulary": "text", "stop": {"threshold": 0.5}}, "stop"),
        ({"vocabulary": "text", "lookup": True}, "lookup=True"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SmallModel(model(byte_level(300)), **settings)


@pytest.mark.parametrize("mode", ["intersection", "text", "auto"])
@pytest.mark.parametrize("which", ["draft model", "target"])
def test_a_model_without_a_tokenizer_is_refused(mode, which):
    tokenizer = byte_level(300)
    one, other = model(tokenizer), model(None, 50)
    draft, target = (other, one) if which == "draft model" else (one, other)
    with pytest.raises(ValueError, match=rf"the {which} .* has none; load it as \(model, token"):
        SmallModel(draft, vocabulary=mode).begin(target, 1, Sampling(1.0))


def test_tokenizers_without_a_shared_token_are_refused():
    target, draft = model(words(["a", "b"])), model(words(["c", "d", "e"]))
    with pytest.raises(ValueError, match=r"\(3 tokens\).*\(2 tokens\) share no token.*'text'"):
        SmallModel(draft, vocabulary="intersection").begin(target, 1, Sampling(1.0))


def test_a_tokenizer_that_lists_no_tokens_is_refused():
    target = model(byte_level(300))
    target.tokenizer = lambda text: text
    drafter = SmallModel(model(byte_level(400)), vocabulary="intersection")
    with pytest.raises(ValueError, match=r"get_vocab\(\) was expected, got function"):
        drafter.begin(target, 1, Sampling(1.0))


def test_what_two_vocabularies_have_in_common():
    """All of the mass is on shared tokens where all are shared, none of the text is read again
    where each word is one token."""
    target, draft = relabelled_pair(others=0.0)
    found = compare(target, draft, ["w1 w2 w3 w4", "w9"], tokens=3)
    assert found.shared == len(WORDS)
    assert found.p_inside == pytest.approx(1)
    assert 0 < found.q_inside < 1
    assert found.read_again == 0
    other = compare(model(byte_level(300)), model(byte_level(420)), CORPUS[:2], tokens=60)
    assert other.read_again > 0
    with pytest.raises(ValueError, match="no token in the texts"):
        compare(target, draft, [""], tokens=3)


def test_same_still_asks_for_the_targets_tokenizer():
    with pytest.raises(ValueError, match=r"the target's tokenizer, or vocabulary='inters"):
        SmallModel(model(byte_level(420))).begin(model(byte_level(300)), 1, Sampling(1.0))


def test_sessions_that_cannot_take_tokens_back_are_refused():
    class Forward:
        """Opens what only goes forward."""

        name, vocabulary, context, hidden_size = "forward", 420, 64, 8
        device, dtype, eos_ids, extra_layers = torch.device("cpu"), torch.float32, (), 0
        tokenizer = byte_level(420)

        def open(self, rows, slots):
            return object()

    both = between(Forward(), model(byte_level(300)), "intersection")
    with pytest.raises(ValueError, match=r"need a method rewind\(rows, lengths\)"):
        Translated(Forward(), both, False).open(1, 0)


def test_hidden_states_of_other_tokens_are_refused():
    draft = model(byte_level(420))
    both = between(draft, model(byte_level(300)), "intersection")
    with (
        Translated(draft, both, False).open(1, 0) as session,
        pytest.raises(ValueError, match="belong to other tokens"),
    ):
        session.read(torch.tensor([[1]]), [1], taps=(0,))
