"""What verification takes: everything between logits and commit, per rule, at batch 1 over a
vocabulary of any size."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import pandas as pd
import torch

from experiments.terminal.progress import bar
from specdec import Drafter, Keyed, Laws, Sampling, SiblingLaw, State, TokenTree, Verifier
from specdec.chance import Draws
from specdec.drafting.by_level import by_level
from specdec.outcome import Inspector
from specdec.plugins import build

TREE, CHAIN = [4, 3, 2, 1], [1] * 8  # 4 + 12 + 24 + 24 = 64 nodes
RULES = {
    "greedy": (SiblingLaw.DET, TREE, 0.0),
    "naive": (SiblingLaw.WOR, TREE, 1.0),
    "token": (SiblingLaw.WOR, CHAIN, 1.0),
    "block": (SiblingLaw.WOR, CHAIN, 1.0),
    "rrs_wor": (SiblingLaw.WOR, TREE, 1.0),
    "rrs_wr": (SiblingLaw.WR, TREE, 1.0),
    "traversal": (SiblingLaw.WOR, TREE, 1.0),
    "kseq": (SiblingLaw.WR, TREE, 1.0),
    "hub": (SiblingLaw.HUB, TREE, 1.0),
    "typical": (SiblingLaw.DET, TREE, 1.0),
    "lenient": (SiblingLaw.WOR, CHAIN, 1.0),
}


def case(
    vocabulary: int,
    agreement: float,
    seed: int,
    law: SiblingLaw,
    branching: list[int],
    temperature: float,
) -> tuple[State, Any, torch.Tensor]:
    """A state, a tree drawn from correlated draft logits, and the target's logits at its nodes."""
    random = torch.Generator().manual_seed(seed)
    common = torch.randn(1, 1, vocabulary, generator=random)

    def logits(nodes: int) -> torch.Tensor:
        own = torch.randn(1, nodes, vocabulary, generator=random)
        return 4 * (agreement * common + (1 - agreement**2) ** 0.5 * own)

    state = State.of([[0] * 200], Sampling(temperature=temperature), slots=300)
    tree = by_level(
        logits(1),
        lambda grown, start: logits(grown.num_nodes - start),
        state,
        Keyed(0).round(state),
        branching,
        law,
    ).tree
    return state, tree, logits(tree.num_nodes)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - began))
    return median(times)


@torch.inference_mode()
def measure(vocabulary: int, agreement: float, repeats: int, seed: int) -> pd.DataFrame:
    """One row per rule: its tree, its milliseconds per round, those of building 64 laws once, and
    their ratio."""
    rows = []
    with bar("rules", len(RULES)) as advance:
        for name, (law, branching, temperature) in RULES.items():
            drawn = SiblingLaw.DET if temperature == 0 else law
            state, tree, logits = case(vocabulary, agreement, seed, drawn, branching, temperature)
            wide = torch.cat([logits[0]] * -(-64 // logits.shape[1]))[:64]
            took = milliseconds(
                partial(verify, build("verifier", name), tree, logits, state, count()), repeats
            )
            laws = milliseconds(lambda wide=wide: (wide.float() / 0.9).softmax(-1), repeats)
            nodes = "chain of 8" if branching == CHAIN else f"{tree.num_nodes - 1} nodes"
            title = name if build("verifier", name).lossless else f"{name} (lossy)"
            rows.append(
                {
                    "rule": title,
                    "tree": nodes,
                    "ms": took,
                    "64 laws, ms": laws,
                    "ratio": took / laws,
                }
            )
            advance()
    return pd.DataFrame(rows)


class Given(Drafter):
    """Proposes the tree that it was made with."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree, self.law, self.max_nodes = tree, tree.law, tree.num_nodes

    def propose(self, state: State, chance: Draws) -> TokenTree:
        return self.tree


def verify(
    rule: Verifier, tree: TokenTree, logits: torch.Tensor, state: State, seeds: Iterator[int]
) -> None:
    """One round's verification, with fresh chance at every call."""
    drafter = Given(tree)
    inspector = Inspector(drafter, rule, ("given", rule.yaml_name or ""), logits.shape[-1])
    chance = Keyed(next(seeds)).round(state)
    trees = inspector.admitted(drafter.propose(state, chance), state)
    laws = Laws(logits, trees, state)
    inspector.read(rule.verify(trees, laws, chance), trees, laws, state)
