"""The best static trees for given rates of acceptance, and trees that are grown in their shape."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
import torch

import specdec
from experiments import sequoia as program
from experiments.certificates import exact, suite
from experiments.certificates.tables import standard
from experiments.terminal.options import parse
from specdec.drafting import by_level
from specdec.drafting.rank_tree import RankTree
from specdec.drafting.sequoia import (
    DEFAULT_ACCEPTANCE,
    StaticTree,
    best_by_cost,
    best_tree,
    cost_at,
    vectors,
)
from specdec.drafting.shape import Shape
from tests import models

Tree = tuple  # of the trees below the root


@cache
def forests(nodes: int) -> list[tuple[Tree, ...]]:
    """Every ordered forest of so many nodes."""
    if nodes == 0:
        return [()]
    return [
        (first, *rest)
        for size in range(1, nodes + 1)
        for first in forests(size - 1)
        for rest in forests(nodes - size)
    ]


def depth_of(tree: Tree) -> int:
    return 1 + max(map(depth_of, tree)) if tree else 0


def width_of(tree: Tree) -> int:
    return max([len(tree), *map(width_of, tree)])


def value_of(tree: Tree, by_depth: list[list[float]]) -> float:
    """The sum of the nodes' products; below the given depths the last ones hold."""
    below = by_depth[1:] or by_depth
    return 1 + sum(p * value_of(child, below) for p, child in zip(by_depth[0], tree, strict=False))


def tree_of(found: StaticTree) -> Tree:
    """From the children of every level, the deepest first."""
    below: list[Tree] = []
    for counts in reversed(found.children):
        rest: Iterator[Tree] = iter(below)
        below = [tuple(next(rest) for _ in range(count)) for count in counts]
    (tree,) = below
    return tree


ACCEPTANCES = {
    "falling": [0.6, 0.2, 0.1],
    "rising": [0.1, 0.3, 0.5],
    "zeros": [0.5, 0.0, 0.3],
    "only zeros": [0.0, 0.0],
    "sure": [1.0, 0.0],
    "a chain": [0.7],
    "by depth": [[0.3, 0.25, 0.2], [0.1, 0.6], [0.9, 0.05]],
    "by depth, zeros": [[0.0, 0.5], [0.0], [0.4, 0.0, 0.4]],
}


@pytest.mark.parametrize("acceptance", ACCEPTANCES.values(), ids=ACCEPTANCES)
@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_no_tree_of_up_to_seven_nodes_is_better(acceptance, depth):
    """All 197 ordered trees. Their number is Catalan's."""
    by_depth = [list(vector) for vector in vectors(acceptance, depth)]

    def allowed(tree: Tree, level: int = 0) -> bool:
        if not tree:
            return True
        return (
            level < depth
            and len(tree) <= len(by_depth[level])
            and all(allowed(child, level + 1) for child in tree)
        )

    for nodes in range(1, 8):
        every = forests(nodes - 1)
        assert len(every) == math.comb(2 * nodes - 2, nodes - 1) // nodes
        values = [value_of(tree, by_depth) for tree in every if allowed(tree)]
        if not values:
            with pytest.raises(ValueError, match=f"no tree of {nodes} nodes"):
                best_tree(acceptance, nodes, depth)
            continue
        found = best_tree(acceptance, nodes, depth)
        tree = tree_of(found)
        assert found.expected_tokens == pytest.approx(max(values), abs=1e-14)
        assert value_of(tree, by_depth) == pytest.approx(found.expected_tokens, abs=1e-14)
        assert allowed(tree)
        assert (found.nodes, found.levels) == (nodes, depth_of(tree))


def test_small_trees_by_hand():
    """p = (0.8, 0.1): a chain until the second child of the root (0.1) beats the next token of the
    chain (0.8 ** 11 = 0.086)."""
    for nodes in range(1, 12):
        found = best_tree([0.8, 0.1], nodes, 20)
        assert found.children == (*[(1,)] * (nodes - 1), (0,))
        assert found.expected_tokens == pytest.approx((1 - 0.8**nodes) / 0.2, abs=1e-12)
    assert best_tree([0.8, 0.1], 12, 20).children[:2] == ((2,), (1, 0))
    found = best_tree([0.5, 0.3], 4, 10)  # 1 + 0.5 + 0.3 + 0.25
    assert found == StaticTree(((2,), (1, 0), (0,)), 2.05)
    assert best_tree([0.5, 0.3], 4, 2) == found
    assert best_tree([[0.5, 0.3], [0.1], [0.9]], 4, 3).expected_tokens == pytest.approx(1.85)


def test_one_level_is_as_many_children_as_there_are():
    found = best_tree([0.4, 0.2, 0.1, 0.05], 4, 1)
    assert found.children == ((3,), (0, 0, 0))
    assert found.expected_tokens == pytest.approx(1.7, abs=1e-15)
    with pytest.raises(ValueError, match=r"no tree of 6 nodes.* it has 5 at most"):
        best_tree([0.4, 0.2, 0.1, 0.05], 6, 1)


@pytest.mark.parametrize("nodes", [12, 33, 64])
def test_falling_rates_are_where_a_greedy_tree_is_the_best(nodes):
    """There a parent is worth more than its child and a sibling more than the next, so the best
    nodes are a tree."""
    depth, table = 6, [list(DEFAULT_ACCEPTANCE)] * 6
    greedy = RankTree.greedy(table, nodes - 1)
    expected = 1 + sum(math.prod(DEFAULT_ACCEPTANCE[rank] for rank in p) for p in greedy.paths)
    assert best_tree(DEFAULT_ACCEPTANCE, nodes, depth).expected_tokens == pytest.approx(expected)


def test_size_and_levels_are_chosen_by_cost():
    """p = (0.5, 0.3), 4 nodes: one level keeps 1.8 of 3 nodes, two 2.05."""
    costs = {3: 1.0, 5: 2.0}
    free, dear = (best_by_cost([0.5, 0.3], [3, 4], 5, costs, cost) for cost in (0.0, 2.0))
    assert [one.tree.expected_tokens for one in free] == pytest.approx([1.8, 2.05])
    assert [one.cost for one in free] == [1.0, 1.5]  # 4 nodes: halfway between 3 and 5
    assert [(one.tree.levels, one.cost) for one in dear] == [(1, 3.0), (2, 5.5)]
    # 7 nodes: 1.8 + 0.8 * 0.8 = 2.44 tokens of two levels at 1 + 2, more of three at 1 + 3
    (cheap,) = best_by_cost([0.5, 0.3], [7], 6, {7: 1.0}, 0.0)
    (fast,) = best_by_cost([0.5, 0.3], [7], 6, {7: 1.0}, 1.0)
    assert (fast.tree.levels, fast.tree.expected_tokens) == (2, pytest.approx(2.44))
    assert cheap.tree.levels > 2
    assert cheap.tree.expected_tokens > fast.tree.expected_tokens
    assert cost_at({1: 1.0, 9: 2.0}, 3) == 1.25


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"acceptance": []}, "acceptance has an empty list"),
        ({"acceptance": [[0.5], []]}, "acceptance has an empty list"),
        ({"acceptance": [0.5, [0.1]]}, "not a mixture"),
        ({"acceptance": 0.5}, "acceptance must be a list"),
        ({"acceptance": [0.5, 1.2]}, "child 2 at depth 1 must be a number >= 0 and <= 1, got 1.2"),
        ({"acceptance": [[0.5], [-0.1]]}, "child 1 at depth 2 .* got -0.1"),
        ({"acceptance": [math.nan]}, "got nan"),
        ({"sizes": []}, "there are no sizes"),
        ({"sizes": [0]}, "a number of nodes must be an integer >= 1, got 0"),
        ({"sizes": [10**9]}, "a number of nodes must be an integer <= 4097"),
        ({"sizes": [9]}, "known from 1 to 8 nodes, not for 9"),
        ({"depth": 0}, "depth must be an integer >= 1, got 0"),
        ({"target_cost": {}}, "target_cost is empty"),
        ({"target_cost": {1: 0.0, 8: 1.0}}, "target_cost of 1 nodes must be more than 0"),
        ({"target_cost": {1: math.inf, 8: 1.0}}, "target_cost of 1 nodes must be a number"),
        ({"draft_cost": -1}, "draft_cost must be a number >= 0, got -1"),
    ],
)
def test_what_is_refused(given, words):
    order = {"acceptance": [0.5], "sizes": [2], "depth": 3, "target_cost": {1: 1.0, 8: 2.0}}
    with pytest.raises(ValueError, match=words):
        best_by_cost(**{**order, **given})


# ------------------------------------------------------------------------------------- the command


def written(folder, value) -> str:
    (folder / "acceptance.json").write_text(json.dumps(value))
    return f"acceptance={folder / 'acceptance.json'}"


def test_the_command_prints_a_line_for_each_size(tmp_path):
    options = ["target_cost=[1,1.02,1.1,1.2]", "draft_cost=0.3", "nodes=[1,2,4,8]", "depth=10"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.sequoia", written(tmp_path, [0.8, 0.1, 0]), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["nodes"] for line in found] == [1, 2, 4, 8]
    assert [line["best"] for line in found] == [False, False, False, True]
    assert found[0]["children"] == [[0]]
    assert found[1]["children"] == [[1], [0]]
    for line, cost in zip(found, (1, 1.02, 1.1, 1.2), strict=True):
        counts = [len(level) for level in line["children"]]
        assert sum(counts) == line["nodes"]
        assert [sum(level) for level in line["children"]] == [*counts[1:], 0]
        assert line["levels"] == len(counts) - 1
        again = best_tree([0.8, 0.1, 0], line["nodes"], max(line["levels"], 1))
        assert line["expected_tokens"] == again.expected_tokens
        assert line["cost"] == pytest.approx(cost + 0.3 * line["levels"])
        assert line["tokens_per_cost"] == line["expected_tokens"] / line["cost"]
    assert max(found, key=lambda line: line["tokens_per_cost"])["best"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["target_cost=[1,2]", "nodes=[1,2,4]"], "one number for each of nodes: 3 for"),
        (["target_cost=[1,2]", "nodes=[4,4]"], "each size once"),
        (["target_cost=[]", "nodes=[]"], "there are no sizes"),
        (["target_cost=[1]", "nodes=[1]", "acceptance=nowhere.json"], "names no file"),
        (["target_cost=[1]", "nodes=[half]"], "nodes"),
        (["nodes=[1]"], "target_cost must be given.*or costs, the cost table"),
        (["nodes=[1]", "target_cost=[1]", "costs=x.json"], "costs is given, and target_cost"),
        (["nodes=[1]", "draft_cost=1", "costs=x.json"], "leave out one of them"),
        (["nodes=[1]", "costs=nowhere.json"], "costs names no file: nowhere.json"),
    ],
)
def test_what_the_command_refuses(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        program.lines(parse(program.Sequoia, [written(tmp_path, [0.5]), *options]))


def table(folder, *drafters: str) -> str:
    from specdec.pricing.costs import Costs
    from specdec.pricing.measure import here

    target = specdec.load(models.shared("llama_gqa"))
    made = [Costs.written(here(target), name, 1.0, 0.05, 0.3) for name in drafters]
    made[0].joined(made[1:]).save(folder / "costs.json")
    return f"costs={folder / 'costs.json'}"


def test_the_command_takes_a_cost_table_instead_of_numbers(tmp_path):
    """A table of straight lines, and the same costs written out."""
    given, sizes = written(tmp_path, [0.8, 0.1]), "nodes=[1,2,4,8]"
    by_table = program.lines(parse(program.Sequoia, [given, table(tmp_path, "eagle"), sizes]))
    numbers = ["target_cost=[1,1.05,1.15,1.35]", "draft_cost=0.3", sizes]
    by_number = program.lines(parse(program.Sequoia, [given, *numbers]))
    for one, other in zip(by_table, by_number, strict=True):
        assert one["children"] == other["children"]
        assert one["cost"] == pytest.approx(other["cost"])
        assert one["best"] == other["best"]
    several = [given, table(tmp_path, "eagle", "medusa"), sizes]
    with pytest.raises(ValueError, match="has eagle, medusa; name one of its drafters"):
        program.lines(parse(program.Sequoia, several))
    chosen = program.lines(parse(program.Sequoia, [*several, "drafter=eagle"]))
    assert [line["children"] for line in chosen] == [line["children"] for line in by_table]
    with pytest.raises(ValueError, match="has no rounds of suffix"):
        program.lines(parse(program.Sequoia, [*several, "drafter=suffix"]))
    with pytest.raises(ValueError, match="nodes has 500, and cost tables go up to 256"):
        program.lines(parse(program.Sequoia, [given, table(tmp_path, "eagle"), "nodes=[500]"]))


def test_the_command_reads_what_a_run_measured(tmp_path):
    out = specdec.generate(
        specdec.load(models.shared("llama_gqa")),
        models.prompts(5, 6),
        drafter={
            "name": "small_model",
            "model": models.similar(models.shared("llama_gqa")),
            "depth": 2,
            "branching": [3, 1],
        },
        temperature=0.5,
        max_new_tokens=30,
    )
    measured = out.report.acceptance
    written(tmp_path, {"report": json.loads(json.dumps(out.report.as_dict()))})
    found = program.read(str(tmp_path / "acceptance.json"))
    expected = {
        (depth, rank): rate
        for depth, vector in enumerate(found, 1)
        for rank, rate in enumerate(vector)
    }
    assert expected == {
        place: counts.accepted / max(counts.reached, 1) for place, counts in measured.items()
    }
    assert 0 < sum(found[0]) <= 1
    written(tmp_path, {"report": {"acceptance": []}})
    with pytest.raises(ValueError, match="drafted nothing"):
        program.read(str(tmp_path / "acceptance.json"))


# ------------------------------------------------------------------------------------ grown so


def grown(temperature: float, law: str, **shape):
    """Every tree of a run, of all three rows."""
    out = specdec.generate(
        specdec.load(models.shared("llama_gqa")),
        models.prompts(7, 3, 5),
        drafter={
            "name": "small_model",
            "model": models.similar(models.shared("llama_gqa")),
            "draw": "sequoia",
            **shape,
        },
        temperature=temperature,
        max_new_tokens=24,
        seats=2,
    )
    assert out.report.verifier == law
    return out


@pytest.mark.parametrize(("temperature", "law"), [(0.0, "greedy"), (1.0, "traversal")])
def test_trees_have_the_number_of_children_of_each_node(temperature, law):
    acceptance = [[0.5, 0.3, 0.1], [0.6, 0.2, 0.1]]
    shape = best_tree(acceptance, 10, 3)
    assert any(len(set(level)) > 1 for level in shape.children[:-1])
    out = grown(temperature, law, depth=3, nodes=9, acceptance=acceptance)
    expected = [count for level in shape.children for count in level]
    full = 0
    for step in out.steps:
        for row in step.live.nonzero()[0]:
            parents = step.parents[row].tolist()
            if len(parents) == 10 and min(parents[1:]) >= 0:  # room for all levels
                full += 1
                assert [parents.count(node) for node in range(10)] == expected
    assert full >= 10
    assert max(int(accepted.max()) for accepted in (step.num_accepted for step in out.steps)) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_number_everywhere_is_the_tree_by_branching(temperature):
    """Draws are keyed by node, so the text is the same too, though the shape is given by node."""
    acceptance = [[0.5, 0.5], [0.5, 0.5]]
    shape = Shape(2, draw="sequoia", nodes=6, acceptance=acceptance)
    assert shape.children == [2, 2]
    assert shape.fixed_width
    assert not shape.chain
    whole = {"name": "small_model", "model": models.similar(models.shared("llama_gqa")), "depth": 2}
    target, prompts = specdec.load(models.shared("llama_gqa")), models.prompts(7, 3, 5)
    texts = [
        specdec.generate(
            target, prompts, drafter={**whole, **more}, temperature=temperature, max_new_tokens=20
        ).tokens
        for more in ({"branching": 2}, {"draw": "sequoia", "nodes": 6, "acceptance": acceptance})
    ]
    for one, other in zip(*texts, strict=True):
        assert torch.equal(one, other)


def test_children_are_drawn_at_the_places_of_their_parents():
    """Of both rows: where nodes of a level have different numbers of children, those with as many
    are drawn at together."""
    widths = (2, (3, 1), (0, 2, 0, 2))
    rows, nodes, _, depths = by_level._grid(2, widths, torch.device("cpu"))
    firsts = [0, 1, 3]
    assert depths.bincount().tolist() == [2, 4, 8]
    for first, width in zip(firsts[1:], widths[1:], strict=True):
        columns = []
        for k, parents, into, sites in by_level._groups(2, first, width, torch.device("cpu")):
            assert [width[node] for node in parents.tolist()] == [k] * len(parents)
            assert rows[sites].tolist() == [row for row in range(2) for _ in parents]
            assert nodes[sites].tolist() == [first + node for node in parents.tolist()] * 2
            columns += into.tolist()
        assert sorted(columns) == list(range(sum(width)))


def test_one_child_each_is_a_chain():
    shape = Shape(5, draw="sequoia", nodes=3, acceptance=[0.9])
    assert (shape.chain, shape.children, shape.max_nodes) == (True, [1, 1, 1], 4)
    assert not Shape(5, draw="sequoia", nodes=8).chain
    assert not Shape(2, draw="sequoia", nodes=3, acceptance=[0.6, 0.3]).fixed_width


@pytest.mark.parametrize("rule", ["traversal", "rrs_wor"])
def test_larger_trees_are_exact(rule):
    """The root has two children, of which the first has two and the second none."""
    (tables,) = [one for one in standard() if one.name == "zeros"]
    drafter = {
        "name": "small_model",
        "depth": 2,
        "draw": "sequoia",
        "nodes": 4,
        "acceptance": [[0.5, 0.2], [0.6, 0.4]],
    }
    assert Shape(2, draw="sequoia", nodes=4, acceptance=drafter["acceptance"]).children == [
        2,
        (2, 0),
    ]

    def made(tables):
        return suite.make(drafter, tables.target(), tables.draft())

    found = exact.exact(tables, made, rule, tokens=3)
    assert found.lossless, str(found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"draw": "sequoia"}, "needs nodes >= 1"),
        ({"draw": "sequoia", "nodes": 0}, "needs nodes >= 1"),
        ({"draw": "sequoia", "nodes": 10**9}, "at most 4096"),
        ({"draw": "sequoia", "nodes": 3, "branching": 2}, "branching is not for draw='sequoia'"),
        ({"draw": "sequoia", "nodes": 30, "acceptance": [0.5]}, "no tree of 31 nodes"),
        ({"draw": "sequoia", "nodes": 3, "acceptance": [2]}, "child 1 at depth 1 must be"),
        ({"draw": "wor", "acceptance": [0.5]}, "acceptance is for draw='sequoia'"),
    ],
)
def test_shapes_that_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Shape(4, **settings)


def test_more_nodes_never_keep_less():
    values = [best_tree(DEFAULT_ACCEPTANCE, nodes, 5).expected_tokens for nodes in range(1, 40)]
    assert all(more >= less for less, more in pairwise(values))
