"""Suffix lookup: the index against plain search, drafts, the store of earlier outputs and its file,
runners-up of the root's law, and the programs that write and read stores."""

import json
import random
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import specdec
from drafters.ngram import NGram
from drafters.suffix import Suffix
from experiments import store as program
from experiments.measuring.outputs import read_outputs
from specdec.drafting import lookup, suffix_store
from specdec.drafting.lookup import Budget
from specdec.drafting.suffix_index import COUNTED, LONGEST, ROOT, Cursor, SuffixIndex, Text
from specdec.drafting.suffix_store import SuffixStore
from specdec.plugins import build
from tests.exact import KNOWN
from tests.models import prompts, shared

ALL = Budget(16, 0.0, 16.0, 0.0)


def indexed(*texts: list[int]) -> SuffixIndex:
    index = SuffixIndex()
    for text in texts:
        index.extend(Text(), text)
    return index


def found(index: SuffixIndex, tokens: list[int]) -> int:
    """The state of a substring."""
    state = ROOT
    for token in tokens:
        state = index._next[state][token]
    return state


def random_texts(seed: int, count: int = 4) -> list[list[int]]:
    """Of few different tokens, some with long repetitions."""
    source = random.Random(seed)
    texts = []
    for _ in range(count):
        text = [source.randrange(3) for _ in range(source.randrange(1, 30))]
        texts.append(text + text[: source.randrange(len(text) + 1)] * source.randrange(3))
    return texts


def substrings(texts: list[list[int]]) -> tuple[Counter, Counter]:
    """Occurrences of every substring; of these, how many have a token after them."""
    counts: Counter[tuple[int, ...]] = Counter()
    followed: Counter[tuple[int, ...]] = Counter()
    for text in texts:
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                counts[tuple(text[start:end])] += 1
                followed[tuple(text[start:end])] += end < len(text)
    return counts, followed


# ----------------------------------------------------------------------------------- the index


@pytest.mark.parametrize("seed", range(8))
def test_counts_are_those_of_plain_search(seed):
    texts = random_texts(seed)
    index = indexed(*texts)
    for gone in range(len(texts)):
        counts, followed = substrings(texts[gone:])
        for substring, count in counts.items():
            state = found(index, list(substring))
            assert index._counts[state] == count
            assert index._followed[state] == followed[substring]
        if gone == 0:
            assert index.states <= 2 * sum(map(len, texts)) + 1
        index.remove(texts[gone])
    assert not any(index._counts)
    assert not any(index._followed)


@pytest.mark.parametrize("seed", range(8))
def test_texts_that_grow_side_by_side_are_counted_alike(seed):
    texts, source, index = random_texts(seed), random.Random(seed), SuffixIndex()
    growing = [Text() for _ in texts]
    places = [0] * len(texts)
    while any(place < len(text) for place, text in zip(places, texts, strict=True)):
        one = source.randrange(len(texts))
        if places[one] < len(texts[one]):
            index.append(growing[one], texts[one][places[one]])
            places[one] += 1
    counts, _ = substrings(texts)
    for substring, count in counts.items():
        assert index._counts[found(index, list(substring))] == count


@pytest.mark.parametrize("seed", range(8))
def test_a_cursor_finds_the_longest_suffix_met_before_and_never_the_text_itself(seed):
    text = [token for one in random_texts(seed) for token in one]
    index, grown, cursor = SuffixIndex(), Text(), Cursor()
    for end in range(1, len(text) + 1):
        index.advance(cursor, text[end - 1])
        index.append(grown, text[end - 1])
        longest = max(
            (
                n
                for n in range(1, min(end, LONGEST) + 1)
                for start in range(end - n)
                if text[start : start + n] == text[end - n : end]
            ),
            default=0,
        )
        assert cursor.length == longest


def test_a_text_in_a_loop_costs_no_more_than_the_longest_counted_substring():
    index, text = SuffixIndex(), Text()
    index.extend(text, [7] * 3000)
    assert text.tail.length == COUNTED
    assert index._counts[found(index, [7] * COUNTED)] == 3000 - COUNTED + 1


def test_nothing_crosses_from_one_text_to_the_next():
    index = indexed([1, 2], [3, 4])
    assert 3 not in index._next[found(index, [2])]


# -------------------------------------------------------------------------------------- drafts


def matched(tokens: list[int]) -> tuple[SuffixIndex, Cursor]:
    index, text, cursor = SuffixIndex(), Text(), Cursor()
    for token in tokens:
        index.advance(cursor, token)
        index.append(text, token)
    return index, cursor


def test_a_chain_copies_what_followed_and_goes_on_with_a_period():
    draft = lookup.chain([matched([5, 6, 7, 8, 5, 6, 7, 8, 5, 6])], ALL, 10)
    assert draft.tokens == [7, 8, 5, 6, 7, 8, 5, 6, 7, 8]
    assert draft.parents == list(range(10))
    assert 4 < draft.expected < 10


def test_a_budget_by_match_length_and_by_probability():
    met = [matched([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3])]
    assert lookup.chain(met, Budget(16, 1.0, 0.0, 0.0), 99).tokens == [4, 5, 6]
    assert lookup.chain(met, Budget(16, 1.0, 1.0, 0.0), 99).tokens == [4, 5, 6, 7]
    assert lookup.chain(met, Budget(2, 1.0, 0.0, 0.0), 99).tokens == [4, 5]
    assert len(lookup.tree(met, Budget(16, 1.0, 0.0, 0.0), 99).tokens) == 3
    strict = lookup.tree(met, Budget(16, 0.0, 16.0, 0.5), 99)
    assert strict.tokens
    assert strict.expected >= 0.5 * len(strict.tokens)


def test_a_tree_merges_matches_of_all_lengths_the_likeliest_first():
    met = [matched([1, 2, 3, 9, 2, 4, 9, 2, 4, 1, 2])]
    draft = lookup.tree(met, ALL, 99)
    below_root = [t for t, p in zip(draft.tokens, draft.parents, strict=True) if p == 0]
    assert below_root[:2] == [3, 4]  # after 1 2, and more often after 2
    assert len(below_root) == len(set(below_root))
    assert all(parent < node for node, parent in enumerate(draft.parents, 1))


def grown_at_once(matches, most: int, depth: int, runners_up=()) -> tuple[list, list, float]:
    """`lookup.tree` in few words: all continuations are put in order as soon as their node is."""
    from heapq import heappop, heappush
    from itertools import count

    tokens, parents, depths, children, expected = [], [], [0], {}, 0.0
    heap, order = [], count()

    def offer(index, state, length, parent, worth):
        for found in index.continuations(state, length, most):
            entry = (-worth * found.worth, next(order), parent, found.token, index)
            heappush(heap, (*entry, found.state, found.length))

    for index, cursor in matches:
        for length, state in index.matches(cursor):
            offer(index, state, length, 0, 1.0)
    for token, worth in runners_up:
        heappush(heap, (-worth, next(order), 0, token, None, 0, 0))
    while heap and len(tokens) < most:
        worth, _, parent, token, found_in, state, length = heappop(heap)
        if (parent, token) not in children:
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            children[parent, token] = len(tokens)
            expected -= worth
        node = children[parent, token]
        if depths[node] == depth:
            continue
        for index, cursor in matches if found_in is None else ():
            ahead = cursor.copy()
            index.advance(ahead, token)
            if ahead.length > 1:
                offer(index, ahead.state, ahead.length, node, -worth)
        if found_in is not None:
            offer(found_in, state, length, node, -worth)
    return tokens, parents, expected


@pytest.mark.parametrize("seed", range(30))
def test_a_tree_is_the_same_when_continuations_are_looked_at_one_by_one(seed):
    text = [token for one in random_texts(seed) for token in one]
    own, store, cursor = matched(text), indexed(*random_texts(seed + 100)), Cursor()
    for token in text:
        store.advance(cursor, token)
    for most, depth, others in ((16, 99, []), (16, 3, []), (40, 99, [(2, 0.4), (7, 0.1)])):
        draft = lookup.tree([own, (store, cursor)], Budget(most, 0.0, most, 0.0), depth, others)
        found = grown_at_once([own, (store, cursor)], most, depth, others)
        assert (draft.tokens, draft.parents, draft.expected) == found


def test_the_requests_own_text_wins_ties():
    own, store, cursor = matched([1, 2, 1]), indexed([1, 3]), Cursor()
    store.advance(cursor, 1)
    for grow in (lookup.chain, lookup.tree):
        assert grow([own, (store, cursor)], ALL, 1).tokens[0] == 2
        assert grow([(store, cursor), own], ALL, 1).tokens[0] == 3


def test_no_draft_goes_deeper_than_asked():
    for depth in (0, 1, 3):
        met = [matched([1, 1, 1, 1, 2, 1, 1])]
        draft = lookup.tree(met, ALL, depth, [(5, 0.9)])
        depths = [0]
        for parent in draft.parents:
            depths.append(depths[parent] + 1)
        assert max(depths) <= depth
        assert len(lookup.chain(met, ALL, depth).tokens) <= depth


def test_a_runner_up_is_continued_by_a_lookup_of_its_own():
    met = [matched([1, 2, 3, 4, 9, 8])]
    draft = lookup.tree(met, Budget(5, 0.0, 5.0, 0.0), 99, [(2, 0.9)])
    assert (draft.tokens[0], draft.parents[0]) == (2, 0)
    draft = lookup.tree([matched([8, 2, 3, 4, 9, 8])], ALL, 99, [(7, 0.5), (2, 0.4)])
    nodes = dict(enumerate(zip(draft.tokens, draft.parents, strict=True), 1))
    seven = next(node for node, pair in nodes.items() if pair == (7, 0))
    two = next(node for node, pair in nodes.items() if pair == (2, 0))
    assert (3, two) in nodes.values()
    assert not [pair for pair in nodes.values() if pair[1] == seven]


# --------------------------------------------------------------------------------- the drafter


def run(drafter, rows=None, **options):
    target = specdec.load(shared("llama_gqa", torch.float64))
    given = {"temperature": 1.0, "max_new_tokens": 12, "seed": 2, **options}
    return specdec.generate(target, rows or prompts(9, 4, 6), drafter=drafter, **given)


class Asked(Suffix):
    """Remembers which runners-up it was given."""

    def begin(self, target, rows, sampling):
        super().begin(target, rows, sampling)
        self.seen = []
        Asked.last = self

    def propose(self, state, chance):
        tree = super().propose(state, chance)
        for row in range(state.rows):
            if state.on_host.room[row] > 1 and not state.on_host.fresh[row]:
                first = tree.tokens[row][tree.parents[row] == 0].tolist()
                self.seen.append((state.text(row), state.last.runners_up[row].tolist(), first))
        return tree


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_runners_up_are_those_of_the_law_that_the_root_came_from(temperature):
    model = shared("llama_gqa", torch.float64)
    run(Asked(nodes=100, fanout=2), temperature=temperature)
    assert len(Asked.last.seen) > 5
    for text, best, drafted in Asked.last.seen:
        logits = model(torch.tensor([text[:-1]])).logits[0, -1]
        assert best == logits.topk(3).indices.tolist()
        others = [token for token in best if token != text[-1]][:2]
        assert len(drafted) == len(set(drafted))
        assert set(others) <= set(drafted)


def test_ngrams_fan_out_too():
    seen = []

    class Seen(NGram):
        def propose(self, state, chance):
            tree = super().propose(state, chance)
            for row in range(state.rows):
                if state.on_host.room[row] > 1 and not state.on_host.fresh[row]:
                    first = tree.tokens[row][tree.parents[row] == 0].tolist()
                    seen.append((state.text(row), state.last.runners_up[row].tolist(), first))
            return tree

    run(Seen(length=100, tree=True, fanout=3))
    assert len(seen) > 5
    for text, best, drafted in seen:
        others = [token for token in best if token != text[-1]][:3]
        assert len(drafted) == len(set(drafted))
        assert set(others) <= set(drafted)


def test_a_trie_of_ngrams_that_fans_out_has_every_parent():
    """Shares of three, which do not add up to the whole in floating point."""
    from drafters.ngram import _Index

    index = _Index(1)
    index.extend([token for n in range(7) for token in (59, 1, 2, n + 3)] + [9])
    for nodes in range(1, 12):
        for others in ([59, 1], [1, 59, 2], [4, 59]):
            tokens, parents = index.trie(nodes, 4, others)[:2]
            assert all(parent <= node for node, parent in enumerate(parents))
            assert len(tokens) == nodes


def test_who_asks_for_no_runners_up_is_given_none():
    seen = []

    class Plain(Suffix):
        def observe(self, state):
            super().observe(state)
            seen.append(state.last.runners_up)

    run(Plain())
    assert set(seen) == {None}


def test_a_store_is_of_outputs_and_makes_the_next_run_better():
    drafter = Suffix(nodes=8, store="memory")
    row = prompts(9)
    first = run(drafter, row, temperature=0.0, max_new_tokens=24)
    assert drafter.store.tokens == 24  # the output, not the prompt
    again = run(drafter, row, temperature=0.0, max_new_tokens=24)
    assert again.tokens[0].tolist() == first.tokens[0].tolist()
    assert again.report.tau > first.report.tau
    drafter.forget()
    assert drafter.store.tokens == 0
    cold = run(drafter, row, temperature=0.0, max_new_tokens=24)
    assert cold.report.tau == first.report.tau


def test_an_empty_store_is_as_none():
    empty = run(Suffix(nodes=4, store=SuffixStore(10), learn=False))
    none = run(Suffix(nodes=4))
    assert [step.parents.tolist() for step in empty.steps] == [
        step.parents.tolist() for step in none.steps
    ]


def test_a_store_that_does_not_learn_stays_as_it_is():
    store = SuffixStore(1000)
    store.add([1, 2, 3])
    drafter = Suffix(store=store, learn=False)
    assert not drafter.learns
    run(drafter)
    assert store.tokens == 3


def test_concurrent_requests_help_each_other_before_they_end():
    (row,) = prompts(9)
    options = {"temperature": 0.0, "max_new_tokens": 16}
    ahead = row + run("none", [row], **options).tokens[0].tolist()[:6]

    def tau(concurrent: bool) -> float:
        drafter = Suffix(nodes=8, store="memory", concurrent=concurrent)
        found = run(drafter, [row, ahead], **options).report.tau
        assert drafter.store.tokens == 32
        return found

    assert tau(True) > tau(False)


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_store_that_is_always_full_serves_on(concurrent):
    drafter = Suffix(nodes=4, store="memory", store_tokens=20, concurrent=concurrent)
    out = run(drafter, prompts(*range(3, 15)), seats=3)
    assert len(out.tokens) == 12
    assert drafter.store.tokens <= 20
    assert drafter.store.version > 0  # the index was built anew more than once


def test_expected_tokens_are_told_per_row():
    seen = []

    class Told(Suffix):
        def propose(self, state, chance):
            tree = super().propose(state, chance)
            seen.append((self.expected, [int(n) for n in (tree.parents >= 0).sum(1)]))
            return tree

    run(Told(nodes=5))
    for expected, nodes in seen:
        assert len(expected) == len(nodes) == 3
        assert all(0 <= each <= n for each, n in zip(expected, nodes, strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nodes": 0}, "nodes must be an integer >= 1"),
        ({"factor": 0, "offset": 0}, "no node"),
        ({"factor": -1}, "factor must be a number >= 0"),
        ({"offset": "much"}, "offset must be a number"),
        ({"min_prob": 2}, "min_prob must be a number >= 0 and <= 1"),
        ({"tree": "yes"}, "tree must be True or False"),
        ({"tree": False, "fanout": 2}, "set tree=true"),
        ({"store_tokens": 0}, "store_tokens must be an integer >= 1"),
        ({"concurrent": True}, "needs store=memory"),
        ({"concurrent": True, "store": "memory", "learn": False}, "learn=true"),
        ({"store": 5}, "store must be none, memory, a file"),
        ({"store": "/no/such/file"}, "no suffix store at /no/such/file"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        build("drafter", {"name": "suffix", **settings})


def test_fan_out_of_ngrams_needs_a_tree():
    with pytest.raises(ValueError, match="set tree=true"):
        NGram(fanout=2)


# ----------------------------------------------------------------------------------- the store


def texts_of(store: SuffixStore) -> list[list[int]]:
    return [list(entry.tokens) for entry in store._entries]


def test_the_oldest_texts_go_whole():
    store = SuffixStore(10)
    for text in ([1] * 4, [2] * 4, [3] * 4):
        store.add(text)
    assert texts_of(store) == [[2] * 4, [3] * 4]
    assert not store.index._counts[found(store.index, [1])]
    store.add([5] * 11)
    assert texts_of(store) == []


def test_an_index_is_built_anew_once_it_holds_more_that_has_gone_than_may_be_there():
    store = SuffixStore(10)
    for number in range(40):
        store.add([number, number + 1])
    assert store.index.states < 60
    assert store.version >= 3
    cursor = Cursor()
    store.index.advance(cursor, 39)
    assert cursor.length == 1


def test_a_file_holds_what_was_saved(tmp_path):
    store = SuffixStore(100, "digest")
    store.add([1, 2, 3])
    store.add([4])
    store.save(tmp_path / "new" / "store.safetensors")
    again = SuffixStore.load(tmp_path / "new" / "store.safetensors", 100)
    assert texts_of(again) == [[1, 2, 3], [4]]
    assert again.tokenizer == "digest"
    assert texts_of(SuffixStore.load(tmp_path / "new" / "store.safetensors", 3)) == [[4]]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["store.safetensors"]
    empty = SuffixStore(5)
    empty.save(tmp_path / "empty")
    assert texts_of(SuffixStore.load(tmp_path / "empty", 5)) == []


def test_forgetting_goes_back_to_the_file(tmp_path):
    store = SuffixStore(100)
    store.add([1, 2, 3])
    store.save(tmp_path / "store")
    drafter = Suffix(store=tmp_path / "store")
    run(drafter)
    assert drafter.store.tokens == 3 + 3 * 12
    drafter.forget()
    assert texts_of(drafter.store) == [[1, 2, 3]]


def test_saving_while_in_use_writes_whole_texts(tmp_path):
    store, over = SuffixStore(2000), threading.Event()

    def add() -> None:
        while not over.is_set():
            store.add([1, 2, 3, 4])

    threads = [threading.Thread(target=add) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            store.save(tmp_path / "store")
            saved = texts_of(SuffixStore.load(tmp_path / "store", 2000))
            assert all(text == [1, 2, 3, 4] for text in saved)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def broken(kind: str, path: Path) -> None:
    store = SuffixStore(100)
    store.add([1, 2, 3])
    store.save(path)
    tensors = {"tokens": torch.tensor([1, 2], dtype=torch.int32), "ends": torch.tensor([2])}
    if kind == "half written":
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "older layout":
        save_file(tensors, path, {"suffix_store": "0", "tokenizer": ""})
    elif kind == "other file":
        save_file({"weight": torch.zeros(3)}, path)
    elif kind == "pickle":
        torch.save(tensors, path)
    elif kind == "ends":
        save_file(
            {**tensors, "ends": torch.tensor([3])}, path, {"suffix_store": "1", "tokenizer": ""}
        )
    elif kind == "negative":
        wrong = {**tensors, "tokens": torch.tensor([1, -2], dtype=torch.int32)}
        save_file(wrong, path, {"suffix_store": "1", "tokenizer": ""})
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("half written", "no whole safetensors file"),
        ("older layout", "suffix store of layout 0, expected layout 1"),
        ("other file", "is no suffix store"),
        ("pickle", "no whole safetensors file"),
        ("ends", "broken suffix store"),
        ("negative", "broken suffix store"),
        ("folder", "no suffix store at"),
    ],
)
def test_files_that_are_no_store(kind, words, tmp_path):
    broken(kind, tmp_path / "store")
    with pytest.raises(ValueError, match=words):
        build("drafter", {"name": "suffix", "store": str(tmp_path / "store")})


def test_a_folder_that_takes_no_file(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(suffix_store, "save_file", refuse)
    with pytest.raises(ValueError, match=r"cannot be written to .*Permission denied.*may be"):
        SuffixStore(5).save(tmp_path / "store")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        SuffixStore(5).save(tmp_path / "file" / "store")


def test_a_store_of_another_tokenizer_is_refused():
    target = specdec.load("demo")
    with pytest.raises(ValueError, match=r"tokens of another tokenizer \(other\).*demo"):
        Suffix(store=SuffixStore(5, "other")).begin(target, 1, specdec.Sampling())
    large = SuffixStore(5)
    large.add([KNOWN.target.vocabulary])
    with pytest.raises(ValueError, match=r"holds token 3, and the target table has 3 tokens"):
        specdec.generate(KNOWN.target, [0], drafter=Suffix(store=large))
    used = Suffix(store="memory")
    used.begin(target, 1, specdec.Sampling())
    assert used.store.tokenizer is not None
    used.begin(KNOWN.target, 1, specdec.Sampling())  # no tokenizer: sizes alone


# -------------------------------------------------------------------------------- the programs


def line(**changes) -> str:
    entry = {"category": "c", "given": [1], "tokens": [5, 6], "tokenizer": None, **changes}
    return json.dumps(entry) + "\n"


def test_a_store_of_texts_and_of_a_studys_outputs(tmp_path, capsys):
    from specdec.models.load import load_tokenizer
    from specdec.models.vocabulary import digest_of

    tokenizer = load_tokenizer("demo")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("import os\n")
    (tmp_path / "texts" / "b.txt").write_text("import sys\n")
    (tmp_path / "study" / "0").mkdir(parents=True)
    recorded = tmp_path / "study" / "0" / "outputs.jsonl"
    recorded.write_text(line(tokenizer=digest_of(tokenizer)))
    output = tmp_path / "store.safetensors"
    wanted = program.Store(str(output), str(tmp_path / "texts"), str(tmp_path / "study"))
    program.main(wanted)
    assert "3 texts" in capsys.readouterr().out
    found = texts_of(SuffixStore.load(output, 1000))
    assert found[-1] == [5, 6]
    assert tokenizer.decode(found[0]) == "import os"
    Suffix(store=output).begin(specdec.load("demo"), 1, specdec.Sampling())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "nothing to build a store from"),
        ({"text": "empty"}, "no tokens"),
        ({"text": "none"}, "no text at"),
        ({"records": "empty"}, "no outputs.jsonl at"),
        ({"records": "other"}, "tokens of another tokenizer"),
        ({"records": "broken"}, r"line 1, is no output of a run"),
        ({"text": "full", "store_tokens": 1}, "longer than store_tokens=1"),
        ({"text": "full", "tokenizer": "./nowhere"}, "no tokenizer of './nowhere'"),
    ],
)
def test_stores_that_cannot_be_built(given, words, tmp_path):
    for name in ("empty", "full", "other", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "a.txt").write_text("import os\n")
    (tmp_path / "other" / "outputs.jsonl").write_text(line(tokenizer="x"))
    (tmp_path / "broken" / "outputs.jsonl").write_text(line(tokens="many"))
    paths = {
        key: str(tmp_path / value) if key in ("text", "records") else value
        for key, value in given.items()
    }
    with pytest.raises(ValueError, match=words):
        program.build(program.Store(str(tmp_path / "store"), **paths))
    assert not (tmp_path / "store").exists()


def test_outputs_of_a_run(tmp_path):
    (tmp_path / "outputs.jsonl").write_text(line() + line(prompt=3, tokens=[]))
    assert [(one.prompt, one.tokens) for one in read_outputs(tmp_path)] == [(0, [5, 6]), (3, [])]
