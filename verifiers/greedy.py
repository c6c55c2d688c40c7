"""Lossless at temperature 0, any tree: the output is the target's own greedy continuation.

Accepts the longest path whose every token is the argmax of its parent's logits (ties to the lowest index). Stern et al.
1811.03115; Leviathan et al. 2211.17192. Exact for DET, WOR, WR and HUB siblings. Cost: one argmax over the scored nodes.
"""

import torch

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws
from specdec.reading import read


class Greedy(Verifier):
    """Exact at temperature 0."""

    laws = frozenset(SiblingLaw)
    zero_temperature_only = True
    coupled = True

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        # Everything that matters here is a few integers, so it is decided on the host, in one read.
        best, tokens, parents = (
            numbers.tolist() for numbers in read([laws.argmax, trees.tokens, trees.parents], trees.tokens.device)
        )
        paths = [follow(*row) for row in zip(best, tokens, parents, strict=True)]
        live = laws.state.on_host.live
        paths = [path if alive else [] for path, alive in zip(paths, live, strict=True)]
        longest = max(map(len, paths))
        return Verdict(
            torch.tensor([path + [-1] * (longest - len(path)) for path in paths], dtype=torch.long).view(
                trees.rows, longest
            ),
            torch.tensor([len(path) for path in paths]),
            torch.tensor([row[path[-1] if path else 0] for row, path in zip(best, paths, strict=True)]),
        )


def follow(best: list[int], tokens: list[int], parents: list[int]) -> list[int]:
    """The path of argmaxes from the root as far as the tree has it. Of two siblings with one token, the first."""
    path, node = [], 0
    for child in range(1, len(tokens)):  # children come after their parents
        if parents[child] == node and tokens[child] == best[node]:
            path.append(child)
            node = child
    return path
