"""Token trees: what their structure says, and what is refused."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec import SiblingLaw, TokenTree
from specdec.tree import Structure

# def ── read ── _csv        node   0    1     2     3     4     5
#  │      └───── _table      parent -1   0     0     1     1     2
#  └─ load ───── _csv
PICTURE = [-1, 0, 0, 1, 1, 2]


def tree_of(*parents: list[int], tokens: list[int] | None = None, **options) -> TokenTree:
    width = len(parents[0])
    values = torch.tensor([tokens or list(range(10, 10 + width))] * len(parents))
    return TokenTree(values, parents, **options)


@st.composite
def forests(draw) -> list[list[int]]:
    """Parents of 1 to 3 rows of one width; unused nodes anywhere behind the root."""
    width, rows = draw(st.integers(1, 9)), []
    for _ in range(draw(st.integers(1, 3))):
        row = [-1]
        for node in range(1, width):
            used = [other for other in range(node) if other == 0 or row[other] >= 0]
            row.append(draw(st.sampled_from([-1, *used])))
        rows.append(row)
    return rows


def climb(row: list[int], node: int) -> list[int]:
    """The path from below the root to a node, by following parents."""
    path: list[int] = []
    while node > 0:
        path.insert(0, node)
        node = row[node]
    return path


def test_the_picture():
    tree = tree_of(PICTURE)
    assert tree.depths.tolist() == [[0, 1, 1, 2, 2, 2]]
    assert tree.ranks.tolist() == [[0, 0, 1, 0, 1, 0]]
    assert tree.path(0, 4) == [1, 4]
    assert tree.ancestors[0, 5].tolist() == [True, False, True, False, False, True]
    assert (tree.depth, tree.width) == (2, 2)


@given(forests())
def test_structure_follows_from_parents(parents):
    tree = tree_of(*parents)
    for i, row in enumerate(parents):
        for node, parent in enumerate(row):
            path = climb(row, node) if parent >= 0 else []
            assert bool(tree.used[i, node]) == (node == 0 or parent >= 0)
            if parent < 0 and node:
                continue
            assert tree.path(i, node) == path
            assert int(tree.depths[i, node]) == len(path)
            assert set(tree.ancestors[i, node].nonzero()[:, 0].tolist()) == {0, *path}
            assert int(tree.ranks[i, node]) == (
                sum(other == parent for other in row[:node]) if node else 0
            )
    assert tree.width >= max(
        (row.count(parent) for row in parents for parent in row if parent >= 0), default=0
    )


@given(forests(), st.data())
def test_a_tensor_of_parents_means_the_same_as_lists(parents, data):
    """Bounds that are large enough change nothing; without any they are the number of nodes."""
    known = tree_of(*parents)
    depth = data.draw(st.integers(known.depth, max(known.depth, len(parents[0]) - 1)))
    for bound in (depth, None):
        tree = TokenTree(known.tokens, torch.tensor(parents), depth=bound)
        assert torch.equal(tree.depths, known.depths)
        assert torch.equal(tree.ancestors, known.ancestors)
        assert tree.depth == (len(parents[0]) - 1 if bound is None else bound)
        assert tree.width >= known.width


@given(forests())
def test_a_tree_that_grows_level_by_level_is_the_tree(parents):
    whole = tree_of(*parents)
    depths = whole.depths.numpy()
    tree, numbers = TokenTree.root(whole.tokens[:, 0]), [{0: 0} for _ in parents]
    for depth in range(1, whole.depth + 1):
        level = [
            [node for node, parent in enumerate(row) if parent >= 0 and depths[i, node] == depth]
            for i, row in enumerate(parents)
        ]
        widest = max(map(len, level))
        above = [
            [numbers[i][parents[i][node]] for node in nodes] + [-1] * (widest - len(nodes))
            for i, nodes in enumerate(level)
        ]
        tokens = [
            [int(whole.tokens[i, node]) for node in nodes] + [0] * (widest - len(nodes))
            for i, nodes in enumerate(level)
        ]
        for i, nodes in enumerate(level):
            numbers[i] |= {node: tree.num_nodes + place for place, node in enumerate(nodes)}
        tree = tree.grow(
            torch.tensor(tokens).view(len(parents), -1),
            torch.tensor(above, dtype=torch.long).view(len(parents), -1),
        )
    for i, names in enumerate(numbers):
        for node, number in names.items():
            assert int(tree.depths[i, number]) == depths[i, node]
            assert [names[other] for other in whole.path(i, node)] == tree.path(i, number)
            above = {names[other] for other in whole.ancestors[i, node].nonzero()[:, 0].tolist()}
            assert set(tree.ancestors[i, number].nonzero()[:, 0].tolist()) == above
    assert not tree.depths[~tree.used].any()
    assert tree.width >= max(
        (row.count(parent) for row in parents for parent in row if parent >= 0), default=0
    )


@given(forests(), st.data())
def test_rows_of_a_shared_frame_use_parts_of_it(parents, data):
    frame = parents[0]
    frame = [-1, *(max(parent, 0) for parent in frame[1:])]
    depths = Structure.of([frame]).depths
    limit = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=2)))
    shared = Structure.shared(frame, 2, torch.device("cpu"), depths <= limit[:, None])
    for row in range(2):
        plain = Structure.of(
            [[parent if depths[0, node] <= limit[row] else -1 for node, parent in enumerate(frame)]]
        )
        used = plain.used[0]
        assert torch.equal(shared.parents[row], plain.parents[0])
        assert torch.equal(shared.depths[row], plain.depths[0])
        assert torch.equal(shared.ancestors[row][used], plain.ancestors[0][used])
    assert Structure.shared(frame, 2, torch.device("cpu")) is Structure.shared(
        frame, 2, torch.device("cpu")
    )


def test_a_tree_is_not_written_to():
    tree = tree_of(PICTURE)
    with pytest.raises(AttributeError):
        tree.tokens = tree.tokens + 1
    with pytest.raises(AttributeError):
        tree.note = 1
    with pytest.raises(FrozenInstanceError):
        tree.structure.depth = 7


@given(forests(), st.data())
def test_one_wrong_parent_is_refused(parents, data):
    """Any parent that does not come before its child, or that is not there."""
    width = len(parents[0])
    node = data.draw(st.integers(0, width - 1))
    unused = [other for other in range(1, node) if parents[0][other] < 0]
    wrong = data.draw(
        st.sampled_from(
            [*range(max(node, 1), width + 2), -2, *unused] if node else [*range(width), 5]
        )
    )
    parents[0][node] = wrong
    with pytest.raises(ValueError, match="malformed tree in row 0"):
        tree_of(*parents)


@given(st.integers(1, 6), st.lists(st.integers(0, 6), min_size=1, max_size=3))
def test_chains(width, lengths):
    lengths = [min(length, width - 1) for length in lengths]
    tree = TokenTree.chain(torch.arange(width).expand(len(lengths), -1), torch.tensor(lengths))
    assert tree.used.sum(1).tolist() == [length + 1 for length in lengths]
    for row, length in enumerate(lengths):
        assert tree.path(row, length) == list(range(1, length + 1))
    assert torch.equal(TokenTree(tree.tokens, tree.parents).depths, tree.depths)


def test_the_empty_tree():
    tree = TokenTree.root(torch.tensor([4, 5]), SiblingLaw.WOR)
    assert tree.tokens.tolist() == [[4], [5]]
    assert tree.used.all()
    assert (tree.num_nodes, tree.depth, tree.width) == (1, 0, 0)


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([-1, 2, 0], "earlier node"),  # a parent after its child
        ([-1, 2, 1], "no cycles"),
        ([-1, 1, 0], "no cycles"),  # its own parent
        ([-1, 0, -3], "earlier node"),
        ([-1, 0, 7], "earlier node"),
        ([-1, -1, 1], "below an unused node"),
        ([0, 0, 0], "root's parent"),
    ],
)
def test_malformed_parents_are_refused(parents, message):
    with pytest.raises(ValueError, match=f"malformed tree in row 1:.*{message}"):
        tree_of([-1, 0, 0], parents)


@pytest.mark.parametrize("law", [SiblingLaw.WOR, SiblingLaw.WR, SiblingLaw.HUB])
def test_sampled_siblings_need_their_law(law):
    with pytest.raises(ValueError, match=f"{law.name} tree must carry q"):
        tree_of([-1, 0], law=law)


def test_shapes_are_refused_with_what_came():
    with pytest.raises(ValueError, match=r"one shape.*\(1, 2\) and \(1, 3\)"):
        TokenTree(torch.zeros(1, 2, dtype=torch.long), torch.tensor([[-1, 0, 0]]))
    with pytest.raises(
        ValueError, match=r"q must be \(rows, nodes, vocabulary\) = \(1, 2, V\), got \(1, 3, 7\)"
    ):
        tree_of([-1, 0], law=SiblingLaw.WR, q=torch.zeros(1, 3, 7))
