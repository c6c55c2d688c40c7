"""How trees grow, on a table: as deep as each row may go, the best nodes, the decision before the
draw; and a draft model's memory, in step with the text."""

import pytest
import torch

import specdec
from drafters.small_model import SmallModel
from experiments.certificates import exact, suite
from experiments.certificates.tables import standard
from specdec import Keyed, Sampling, SiblingLaw, TokenTree
from specdec.drafting.adaptive import adaptive
from specdec.drafting.by_level import by_level
from specdec.drafting.ranked import ranked
from specdec.models.table import TableModel
from specdec.state import Last, OnHost, State
from tests import models

V = 5
_numbers = torch.Generator().manual_seed(0)
TABLE = TableModel(
    {
        prefix: (torch.rand(V, generator=_numbers) + 0.02).tolist()
        for prefix in [(), *((a,) for a in range(V)), *((a, b) for a in range(V) for b in range(V))]
    }
)


def begun(rooms, live=None, temperature=1.0, request=0):
    """A state of rows that hold one token, logits after it, and how to score more."""
    rows = len(rooms)
    host = OnHost([1] * rows, live or [True] * rows, rooms, [True] * rows, [[0]] * rows)
    tokens = torch.zeros(rows, 9, dtype=torch.long)
    requests = torch.arange(rows) + request
    last = Last(None, None, [0] * rows, None, None)
    state = State(host, tokens, requests, Sampling(temperature), last)
    session = TABLE.open(rows, 0)
    logits = session.read(tokens[:, :1], [1] * rows, root=True).logits
    return state, logits, lambda tree, start: session.score(tree, start).logits


def paths_of(tree: TokenTree, row: int = 0) -> list[tuple[int, ...]]:
    """The drafted tokens down to each node."""
    return [
        tuple(tree.tokens[row, tree.path(row, node)].tolist())
        for node in range(1, tree.num_nodes)
        if tree.used[row, node]
    ]


GROWN = {
    "chain": lambda logits, score, state, draws: by_level(
        logits, score, state, draws, [1, 1, 1], SiblingLaw.WOR
    ),
    "tree": lambda logits, score, state, draws: by_level(
        logits, score, state, draws, [2, 2, 1], SiblingLaw.WOR
    ),
    "ranked": lambda logits, score, state, draws: ranked(logits, score, state, 3, 2, 9),
    "adaptive": lambda logits, score, state, draws: adaptive(logits, score, state, draws, 3, 9),
}


@pytest.mark.parametrize("grow", GROWN.values(), ids=GROWN)
def test_a_row_drafts_as_deep_as_its_room_and_not_at_all_once_it_ended(grow):
    rooms, live = [4, 2, 1, 3, 9], [True, True, True, False, True]
    state, logits, score = begun(rooms, live)
    tree = grow(logits, score, state, Keyed(0).round(state)).tree
    deepest = tree.depths.amax(1).tolist()
    assert deepest == [3, 1, 0, 0, 3]
    assert [bool(tree.used[row, 1:].any()) for row in range(5)] == [True, True, False, False, True]


def test_a_state_knows_how_deep_trees_may_be():
    """The bonus token needs one of the room."""
    state, *_ = begun([4, 2])
    assert (state.deepest, state.shallowest) == (3, 1)
    state, *_ = begun([4, 2, 9], [True, True, False])
    assert (state.deepest, state.shallowest) == (3, -1)


@pytest.mark.parametrize(
    ("law", "children"),
    [(SiblingLaw.WOR, 2), (SiblingLaw.DET, 2), (SiblingLaw.HUB, 2), (SiblingLaw.WR, 3)],
)
def test_a_node_has_no_more_children_than_its_law_has_tokens(law, children):
    """Independent ones may repeat."""
    state, _, score = begun([9])
    logits = torch.tensor([[[0.3, 0.0, 0.7, 0.0, 0.0]]], dtype=torch.float64).log()
    tree = by_level(logits, score, state, Keyed(0).round(state), [3], law).tree
    assert len(paths_of(tree)) == children
    assert {path[0] for path in paths_of(tree)} <= {0, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("expand", "nodes"), [(2, 6), (3, 9), (2, 3)])
def test_ranked_trees_are_the_best_nodes_of_the_best(expand, nodes, temperature):
    """EAGLE-2 2406.16858, written down once more, in plain Python. The logits of each node have an
    offset of their own, which no law notices."""
    state, logits, score = begun([9], temperature=temperature)

    def offset(tree, start):
        shift = torch.arange(start, tree.num_nodes)[None, :, None] % 3 * 5.0
        return score(tree, start) + shift

    tree = ranked(logits, offset, state, 3, expand, nodes).tree
    frontier: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    candidates: list[tuple[tuple[int, ...], float]] = []
    for _ in range(3):
        level = [
            ((*path, token), value + float(TABLE.law(path)[token].log()))
            for path, value in frontier
            for token in TABLE.law(path).argsort(descending=True)[:expand].tolist()
        ]
        candidates += level
        frontier = sorted(level, key=lambda one: -one[1])[:expand]
    best = sorted(candidates, key=lambda one: -one[1])[:nodes]
    assert sorted(paths_of(tree)) == sorted(path for path, _ in best)


def test_adaptive_trees_grow_where_a_child_is_most_probable():
    """A site's worth: the probability of its path times what is left of its law. As many nodes per
    level as were asked for."""
    shapes = set()
    for request in range(20):
        state, logits, score = begun([9], request=request)
        tree = adaptive(logits, score, state, Keyed(0).round(state), 3, 8).tree
        assert [(tree.depths[0] == depth).sum().item() for depth in (1, 2, 3)] == [3, 3, 2]
        worth, left = {0: 1.0}, {}
        for node in range(1, 9):
            parent, token = int(tree.parents[0, node]), int(tree.tokens[0, node])
            depth = int(tree.depths[0, node])
            sites = [one for one in range(node) if int(tree.depths[0, one]) == depth - 1]
            best = max(sites, key=lambda one: worth[one] * left.get(one, 1.0))
            assert parent == best
            q = float(tree.q[0, parent, token])
            left[parent] = left.get(parent, 1.0) - q
            worth[node] = worth[parent] * q
        shapes.add(tuple(tree.parents[0].tolist()))
        assert len(set(paths_of(tree))) == 8
    assert len(shapes) > 1  # the shape follows what was drawn


@pytest.mark.parametrize("rule", ["traversal", "rrs_wor"])
@pytest.mark.parametrize("name", ["zeros", "four tokens"])
def test_larger_adaptive_trees_are_exact(name, rule):
    """Four nodes, two of them siblings at either depth: with three, a token that is not taken out
    of q shows in no law."""
    (tables,) = [one for one in standard() if one.name == name]
    drafter = {"name": "small_model", "depth": 2, "draw": "adaptive", "nodes": 4}

    def made(tables):
        return suite.make(drafter, tables.target(), tables.draft())

    found = exact.exact(tables, made, rule, tokens=3)
    assert found.lossless, str(found)


# --------------------------------------------------------------------------- a draft model's memory

SHAPES = {  # and temperatures at which some drafts are accepted
    "chain": (1.0, {"depth": 3}),
    "tree": (1.0, {"depth": 3, "branching": [2, 2, 1]}),
    "ranked": (0.3, {"depth": 3, "branching": 3, "draw": "ranked", "nodes": 8}),
}


class Checked(SmallModel):
    """Compares what its memory holds with what one pass over each text writes."""

    def observe(self, state):
        super().observe(state)
        memory = self._session._memory
        for row, live in enumerate(state.on_host.live):
            text = state.text(row)
            length = memory.lengths[row]
            if not live:
                continue
            assert len(text) - length in (1, 2)  # the root, and a leaf that was never scored
            assert self._seen[row] == length
            with self.model.open(1, length) as again:
                again.read(torch.tensor([text[:length]]), [length])
                for ours, fresh in zip(memory.blocks, again._memory.blocks, strict=True):
                    torch.testing.assert_close(
                        ours[:, row, :, :length], fresh[:, 0], rtol=0, atol=1e-9
                    )


@pytest.mark.parametrize(("temperature", "shape"), SHAPES.values(), ids=SHAPES)
def test_a_draft_models_memory_is_in_step(temperature, shape):
    model = models.shared("llama_gqa", torch.float64)
    drafter = Checked(specdec.load(models.similar(model)), **shape)
    out = specdec.generate(
        specdec.load(model),
        models.prompts(7, 3, 5),
        drafter=drafter,
        temperature=temperature,
        max_new_tokens=40,
        seats=2,
    )
    accepted = {int(n) for step in out.steps for n in step.num_accepted[step.live]}
    assert len(accepted) >= 3
