"""Token matching draws at all nodes at once where it can; it accepts what a walk from the root
would."""

import torch

from specdec import Keyed, Laws, Sampling, TokenTree
from specdec.verifying import walk
from tests.test_sampling import state_of

ROWS, NODES, VOCABULARY = 40, 9, 3


def random_trees(seed: int) -> tuple[TokenTree, Laws]:
    """Few tokens, so that siblings repeat; unused nodes, and rows that are not live."""
    random = torch.Generator().manual_seed(seed)
    parents = [[-1] for _ in range(ROWS)]
    for row in parents:
        for node in range(1, NODES):
            used = [other for other in range(node) if other == 0 or row[other] >= 0]
            pick = int(torch.randint(len(used) + 1, (1,), generator=random))
            row.append(([*used, -1])[pick])
    tokens = torch.randint(VOCABULARY, (ROWS, NODES), generator=random)
    trees = TokenTree(tokens, parents)
    logits = torch.randn(ROWS, NODES, VOCABULARY, generator=random, dtype=torch.float64)
    state = state_of(tokens[:, :1], [1] * ROWS, Sampling(1.0))
    state.on_host.live[::5] = [False] * len(state.on_host.live[::5])
    return trees, Laws(logits, trees, state)


def test_matching_at_once_is_matching_node_by_node(monkeypatch):
    for seed in range(5):
        trees, laws = random_trees(seed)
        draws = Keyed(seed).round(laws.state)
        at_once = walk.matched(trees, laws, draws)
        with monkeypatch.context() as patch:
            patch.setattr(walk, "AT_ONCE", {"cpu": 0})
            one_by_one = walk.matched(trees, laws, draws)
        live = laws.state.live
        assert torch.equal(at_once.num_accepted, one_by_one.num_accepted)
        assert not at_once.num_accepted[~live].any()
        assert torch.equal(at_once.bonus[live], one_by_one.bonus[live])
        for row in live.nonzero()[:, 0].tolist():
            n = int(at_once.num_accepted[row])
            assert torch.equal(at_once.path[row, :n], one_by_one.path[row, :n])
        assert at_once.num_accepted.max() > 1
