"""Prompt lookup: what the text itself says may follow."""

import random

import pytest
import torch

from drafters.ngram import NGram, _Index
from specdec import Keyed, Sampling
from specdec.state import Last, OnHost, State
from tests.exact import KNOWN


def index_of(tokens, max_ngram=3):
    index = _Index(max_ngram)
    index.extend(list(tokens))
    return index


def test_the_most_recent_copy_is_continued():
    index = index_of([1, 2, 3, 9, 1, 2, 4, 1, 2])
    assert index.chain(2)[:2] == ([4, 1], [0, 1])
    # past the end of the text the copy goes on into itself
    assert index.chain(7)[0] == [4, 1, 2, 4, 1, 2, 4]


def test_the_longest_suffix_decides():
    text = [5, 2, 7, 8, 2, 6, 5, 2]
    assert index_of(text, 2).chain(1)[0] == [7]
    assert index_of(text, 1).chain(1)[0] == [6]
    assert index_of([1, 2, 3]).chain(4)[:2] == ([], [])


def test_a_period_is_gone_on_with():
    assert index_of([1, 2, 3] * 3).chain(8)[0] == [1, 2, 3, 1, 2, 3, 1, 2]
    assert index_of([7, 7]).chain(3)[0] == [7, 7, 7]


def test_the_trie_of_all_continuations():
    index = index_of([1, 2, 1, 3, 1, 2, 1], 1)
    assert index.trie(2, 1)[:2] == ([2, 3], [0, 0])  # the more frequent first
    assert index.trie(1, 1)[:2] == ([2], [0])
    assert index.trie(9, 2)[:2] == ([2, 3, 1, 1], [0, 0, 1, 2])
    assert index_of([1, 2, 1, 3, 1], 1).trie(1, 1)[:2] == ([3], [0])  # ties to the most recent


def test_a_text_that_comes_in_pieces_is_the_same_text():
    source = random.Random(0)
    for _ in range(50):
        text = [source.randrange(4) for _ in range(30)]
        pieces, done = _Index(3), 0
        while done < len(text):
            step = source.randint(1, 5)
            pieces.extend(text[done : done + step])
            done += step
        whole = index_of(text)
        assert pieces.ends == whole.ends
        assert pieces.chain(5) == whole.chain(5)


@pytest.mark.parametrize("tree", [False, True])
def test_a_draft_leaves_room_for_the_bonus_token(tree):
    text, rooms = [1, 2, 1, 2, 1, 2], [9, 4, 2, 1]
    host = OnHost([6] * 4, [True] * 4, rooms, [True] * 4, [text] * 4)
    last = Last(None, None, [0] * 4, None, None)
    state = State(host, torch.tensor([text] * 4), torch.arange(4), Sampling(), last)
    drafter = NGram(length=5, tree=tree)
    drafter.begin(KNOWN.target, 4, state.sampling)
    drafter.enter(range(4), state)
    drafted = drafter.propose(state, Keyed(0).round(state))
    assert drafted.depths.amax(1).tolist() == [5, 3, 1, 0]
