"""Lossless on chains, and optimal for one independently drawn chain: the whole block is judged, longest prefix first.

Sun et al. 2403.10444, block verification (not its "greedy" variant, which changes the target of later rounds). Exact for DET,
WOR and WR (one child per node). pi_0 = 1, pi_i = min(1, pi_{i-1} r_i); S_i = sum((pi_i p - q)+) at prefix i;
h_i = S_i / (S_i + 1 - pi_i), h at the leaf = pi. The longest i whose coin shows u < h_i is accepted; the extra token comes
from norm((pi_i p - q)+), at the leaf from p. Expected accepted length: sum_i E_q[pi_i]. Cost: O(V) per node of the chain.
"""

import torch

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws, Sites
from specdec.descent import one_hot, residual, verdict_at


class Block(Verifier):
    """Exact on chains."""

    laws = frozenset({SiblingLaw.DET, SiblingLaw.WOR, SiblingLaw.WR})
    chain_only = True

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        rows = torch.arange(trees.rows, device=trees.tokens.device)
        length = trees.used.sum(1) - 1  # (B,) drafted tokens
        levels = trees.num_nodes - 1
        live = laws.state.live

        # Forwards: what each prefix is worth, and what accepting it would leave of the target's law.
        pi = torch.ones_like(rows, dtype=torch.float64)
        pis, heads, lefts, empties = [], [], [], []
        for i in range(levels + 1):
            p = laws[rows, torch.where(i <= length, i, 0)]
            if i < levels:
                token = trees.tokens[:, i + 1]
                q = one_hot(token, p) if trees.q is None else trees.q[:, i].to(p.dtype)
                inner = (i < length)[:, None]
                scaled = p * pi[:, None].to(p.dtype)
                surplus = torch.where(inner, (scaled - q).clamp_(min=0), p)
                mass = surplus.sum(-1).double()
                head = torch.where(i < length, _share(mass, 1 - pi), pi)
                left, empty = (
                    residual(scaled, torch.where(inner, q, 0.0)) if i else residual(p, torch.where(inner, q, 0.0))
                )
                below = q.gather(1, token[:, None])[:, 0].double()
                above = p.gather(1, token[:, None])[:, 0].double()
                grown = torch.where(below > 0, pi * above / below, 0.0).clamp(max=1)
                pis.append(pi)
                pi = torch.where(i < length, grown, pi)
            else:
                head, left, empty = pi, p, torch.zeros_like(live)
            heads.append(head)
            lefts.append(left)
            empties.append(empty)

        # Backwards: the longest prefix whose coin says so. h_0 = 1: the empty prefix always stands.
        node, undecided = torch.zeros_like(rows), live.clone()
        on_host = rows.device.type == "cpu"
        for i in range(levels, 0, -1):
            at = Sites(
                rows,
                torch.full_like(rows, i),
                torch.zeros_like(rows),
                torch.full_like(rows, i),
                undecided & (i <= length),
            )
            won = chance.bernoulli(heads[i], at, "accept") & at.live
            node = torch.where(won, i, node)
            undecided = undecided & ~won
            if on_host and not bool(undecided.any()):
                break
        law = torch.stack(lefts, 1)[rows, node]
        at = Sites(rows, node, torch.zeros_like(rows), node, live)
        zero = torch.stack(empties, 1)[rows, node] & (node < length)
        return verdict_at(trees, node, chance.categorical(law, at, "bonus"), zero_residuals=zero.long())


def _share(mass: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """mass / (mass + rest), 1 for 0/0."""
    total = mass + rest
    return torch.where(total > 0, mass / total.clamp(min=1e-300), 1.0)
