"""Token recycling: what the matrix holds after prompts and rounds, the trees out of it, and what is
kept across prompts."""

import re

import pytest
import torch

import specdec
from drafters.recycle import NONE, Recycle, empty_matrix, native, write
from specdec.models.prefill import best_tokens
from specdec.plugins import build
from tests.exact import KNOWN, TOY
from tests.models import prompts, shared, similar


def run(drafter, rows=None, **options):
    target = specdec.load(shared("llama_gqa", torch.float64))
    given = {"temperature": 1.0, "max_new_tokens": 12, "seed": 2, **options}
    return specdec.generate(target, rows or prompts(9, 4, 6), drafter=drafter, **given)


class Watched(Recycle):
    """Checks the matrix against plain passes of the target over each row's text, and each tree
    against the matrix."""

    rounds = 0

    def enter(self, rows, state):
        super().enter(rows, state)
        for row in rows:
            own = self.rows_of(row)
            text = state.text(row)[:-1]
            expected = dict.fromkeys(range(len(own)), [-1] * own.shape[1])
            if text:
                logits = shared("llama_gqa", torch.float64)(torch.tensor([text])).logits[0]
                best = logits.topk(own.shape[1]).indices.tolist()
                expected |= dict(zip(text, best, strict=True))
            assert own.tolist() == [expected[token] for token in range(len(own))]

    def rows_of(self, row):
        return self._own[row * self._vocabulary : (row + 1) * self._vocabulary]

    def propose(self, state, chance):
        tree = super().propose(state, chance)
        for row, live in enumerate(state.on_host.live):
            if live and tree.num_nodes > 1:
                own, deepest = self.rows_of(row), state.on_host.room[row] - 1
                for node, parent in enumerate((-1, *self.tree.parents)):
                    if node == 0:
                        continue
                    has_parent = parent == 0 or tree.parents[row, parent] >= 0
                    rank = self.tree.ranks[node - 1]
                    wanted = int(own[tree.tokens[row, parent], rank]) if has_parent else -1
                    if wanted < 0 or self.tree.depths[node - 1] > deepest:
                        assert tree.parents[row, node] == -1
                    else:
                        assert (int(tree.tokens[row, node]), int(tree.parents[row, node])) == (
                            wanted,
                            parent,
                        )
        return tree

    def observe(self, state):
        super().observe(state)
        Watched.rounds += 1
        model = shared("llama_gqa", torch.float64)
        for row, live in enumerate(state.on_host.live):
            if not live:
                continue
            text = state.text(row)
            count = state.last.num_accepted[row] + 1  # the root of that round and what it accepted
            logits = model(torch.tensor([text[:-1]])).logits[0]
            last = {text[place]: place for place in range(len(text) - 1 - count, len(text) - 1)}
            for token, place in last.items():
                best = logits[place].topk(self._own.shape[1]).indices.tolist()
                assert self.rows_of(row)[token].tolist() == best


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_matrix_and_its_trees(temperature):
    Watched.rounds = 0
    run(Watched(nodes=7), prompts(9, 1, 6, 5), temperature=temperature, seats=2)
    assert Watched.rounds > 10


@pytest.mark.parametrize("form", [native, lambda tensor: tensor], ids=["host", "device"])
def test_the_last_writer_wins_and_the_accepted_path_comes_last(form):
    matrix = empty_matrix(1, KNOWN.target, 1)
    where = torch.tensor([[0, 1, 0, 1, 2]])
    best = torch.tensor([[[10], [11], [12], [13], [14]]])
    scored = torch.tensor([[True, True, True, True, False]])
    late = torch.tensor([[True, False, False, False, False]])
    write(*map(form, (matrix, where, best, scored, late)))
    assert matrix[:3, 0].tolist() == [10, 13, -1]


def test_a_tree_of_unknown_tokens_is_empty():
    seen = []

    class Seen(Recycle):
        def propose(self, state, chance):
            tree = super().propose(state, chance)
            seen.append(int((tree.parents >= 0).sum()))
            return tree

    specdec.generate(TOY.target, [[0]], drafter=Seen(nodes=3), max_new_tokens=6)
    assert seen[0] == 0  # a prompt of one token has been scored nowhere
    assert max(seen) > 0


def test_a_request_knows_nothing_of_its_neighbours_and_a_shared_matrix_helps_the_next():
    row = prompts(9)
    options = {"temperature": 0.0, "max_new_tokens": 24}
    alone = run(Recycle(nodes=6), row, **options)
    for store in (NONE, "memory"):
        drafter = Recycle(nodes=6, store=store)
        assert drafter.learns == (store == "memory")
        first = run(drafter, row, **options)
        assert first.report.tau == alone.report.tau
        taus = [run(drafter, row, **options).report.tau for _ in range(2)]
        assert (taus[0] > alone.report.tau) == drafter.learns
        drafter.forget()
        assert run(drafter, row, **options).report.tau == alone.report.tau


def test_a_matrix_of_another_tokenizer_is_refused():
    drafter = Recycle(store="memory")
    specdec.generate("demo-draft", ["import os\n"], drafter=drafter, max_new_tokens=4)
    target = specdec.load(similar(shared("llama_gqa")))
    with pytest.raises(ValueError, match=r"another tokenizer.*forget\(\)"):
        specdec.generate(target, [[1, 2]], drafter=drafter, max_new_tokens=4)
    drafter.forget()
    specdec.generate(target, [[1, 2]], drafter=drafter, max_new_tokens=4)


def test_a_tree_may_name_a_child_before_its_parent():
    given = {"name": "recycle", "tree": [[0, 0], [1], [0]]}
    assert build("drafter", given).tree.paths == ((0,), (1,), (0, 0))


@pytest.mark.parametrize("k", [1, 3, 16])
@pytest.mark.parametrize("vocabulary", [5, 1024, 1100, 5001, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_best_tokens_are_those_of_topk_and_ties_go_to_the_lowest(k, vocabulary, dtype):
    random = torch.Generator().manual_seed(vocabulary)
    logits, k = torch.randn(2, 4, vocabulary, generator=random).to(dtype), min(k, vocabulary)
    logits[1, 2, -1] = 9.0  # in what is left over of the columns
    logits[0, 1, [0, vocabulary // 2, vocabulary - 1]] = 12.0
    best = best_tokens(logits, k)
    assert torch.equal(logits.gather(2, best), logits.topk(k).values)
    assert all(len(set(row)) == k for row in best.flatten(0, 1).tolist())
    assert best[0, 1, :3].tolist() == [0, vocabulary // 2, vocabulary - 1][:k]
    order = logits.float().sort(dim=2, descending=True, stable=True).indices
    assert torch.equal(best, order[..., :k])
    assert torch.equal(best_tokens(logits[:1, :1], k), order[:1, :1, :k])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nodes": 0}, "nodes must be an integer >= 1"),
        ({"tree": []}, "needs at least one path"),
        ({"tree": [[0, 0], [1]]}, "hangs below [0], which the tree does not have"),
        ({"tree": [[0], [0]]}, "names each path once"),
        ({"tree": [[-1]]}, "ranks >= 0"),
        ({"store": "file"}, "store must be none or memory"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        build("drafter", {"name": "recycle", **settings})


def test_who_asks_for_no_tokens_costs_nothing(monkeypatch):
    """The prefill reads one position's logits, and no best tokens are looked for."""
    from specdec.models import prefill

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(prefill, "places", never)
    run("ngram")
