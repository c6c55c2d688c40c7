"""How many drafted tokens any lossless rule can accept in a round, on table models.

The length of the longest tree prefix of the output is a sum over depths d of "the output's first d
tokens were drafted". Each probability is at most the transport optimum between the law of the
target's length-d prefixes and the sets of drafted ones.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array

import specdec
from experiments.certificates.enumeration import outcomes
from experiments.certificates.tables import Law, Prefix, Tables
from specdec import Drafter, Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Chance, Draws

Drafted = frozenset[Prefix]


class _Look(Verifier):
    """Accepts nothing and remembers the trees."""

    laws = frozenset(SiblingLaw)

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        self.trees = trees
        nothing = torch.zeros(trees.rows, dtype=torch.long)
        return Verdict(torch.empty(trees.rows, 0, dtype=torch.long), nothing, nothing)


def drafted_prefixes(
    tables: Tables, drafter: Callable[[Tables], Drafter], depth: int
) -> dict[Drafted, float]:
    """The law of the set of prefixes that a first round drafts."""

    def program(chance: Chance, rows: int) -> list[Drafted]:
        look = _Look()
        prompts = [list(tables.prompt)] * rows
        events = specdec.stream(
            tables.target(),
            prompts,
            drafter=drafter(tables),
            verifier=look,
            max_new_tokens=depth + 1,
            chance=chance,
            **tables.sampling,
        )
        next(iter(events))
        tokens, used = look.trees.tokens.tolist(), look.trees.used.tolist()
        return [
            frozenset(
                tuple(tokens[row][step] for step in look.trees.path(row, node))
                for node in range(1, look.trees.num_nodes)
                if used[row][node]
            )
            for row in range(rows)
        ]

    found: dict[Drafted, float] = defaultdict(float)
    for probability, prefixes in outcomes(program):
        found[prefixes] += probability
    return dict(found)


def transport(sets: dict[Drafted, float], law: Law) -> float:
    """The largest Pr(output in the drafted set) of any coupling: a linear programme."""
    names, targets = list(sets), {prefix: number for number, prefix in enumerate(law)}
    edges = [
        (row, targets[prefix])
        for row, name in enumerate(names)
        for prefix in name
        if prefix in targets
    ]
    if not edges:
        return 0.0
    lines = [row for row, _ in edges] + [len(names) + column for _, column in edges]
    columns = [*range(len(edges)), *range(len(edges))]
    limits = np.array([*sets.values(), *law.values()])
    matrix = coo_array((np.ones(len(lines)), (lines, columns)), shape=(len(limits), len(edges)))
    return -float(
        linprog(-np.ones(len(edges)), A_ub=matrix.tocsr(), b_ub=limits, method="highs").fun
    )


def most_accepted(tables: Tables, drafter: Callable[[Tables], Drafter], depth: int) -> float:
    """The bound on the expected number of accepted drafted tokens of a first round."""
    whole = drafted_prefixes(tables, drafter, depth)
    total = 0.0
    for length in range(1, depth + 1):
        sets: dict[Drafted, float] = defaultdict(float)
        for prefixes, probability in whole.items():
            sets[frozenset(prefix for prefix in prefixes if len(prefix) == length)] += probability
        total += transport(sets, tables.plain(length))
    return total
