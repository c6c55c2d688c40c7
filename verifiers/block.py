"""Lossless on chains, and optimal for one independently drawn chain: the whole block is judged,
longest prefix first.

Sun et al. 2403.10444, block verification (not its "greedy" variant, which changes the target of
later rounds). Exact for DET, WOR and WR (one child per node). pi_0 = 1, pi_i = min(1, pi_{i-1}
r_i); S_i = sum((pi_i p - q)+) at prefix i; h_i = S_i / (S_i + 1 - pi_i), h at the leaf = pi. The
longest i whose coin shows u < h_i is accepted; the extra token comes from norm((pi_i p - q)+), at
the leaf from p. Expected accepted length: sum_i E_q[pi_i]. Cost: O(V) per node of the chain.
"""

import torch

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws, Sites
from specdec.verifying.walk import bonus_alone, residual


class Block(Verifier):
    """Exact on chains."""

    laws = frozenset({SiblingLaw.DET, SiblingLaw.WOR, SiblingLaw.WR})
    chain_only = True

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        (batch, nodes), rows, alive = trees.tokens.shape, p.rows, p.state.live
        if nodes == 1:
            return bonus_alone(trees, p, chance, zero_residuals=torch.zeros_like(rows))
        numbers = torch.arange(nodes, device=rows.device)
        length = trees.used.sum(1)[:, None] - 1  # (B, 1) drafted tokens; nodes beyond are padding
        real = numbers <= length
        law = p.everywhere
        below, token = law[:, :-1], trees.tokens[:, 1:, None]
        q = (
            torch.zeros_like(below).scatter_(2, token, 1.0)
            if trees.q is None
            else trees.q[:, :-1].to(law.dtype)
        )

        drawn, wanted = q.gather(2, token)[..., 0].double(), below.gather(2, token)[..., 0].double()
        r = torch.where(drawn > 0, wanted / drawn.clamp(min=1e-300), 0.0)
        pi = [torch.ones_like(length[:, 0], dtype=torch.float64)]
        for i in range(nodes - 1):
            pi.append((pi[-1] * r[:, i]).clamp(max=1))
        worth = torch.stack(pi, 1)  # (B, N) pi_i
        scaled = below * worth[:, :-1, None].to(law.dtype)
        surplus = (scaled - q).clamp_(min=0).sum(-1).double()  # S_i of inner nodes
        total = surplus + 1 - worth[:, :-1]
        inner = torch.where(total > 0, surplus / total.clamp(min=1e-300), 1.0)
        h = torch.where(numbers == length, worth, torch.nn.functional.pad(inner, (0, 1)))
        h[:, 0] = 1.0  # the empty prefix always stands

        live = alive[:, None] & real
        node = numbers.expand(batch, -1).flatten()
        at = Sites(
            rows.repeat_interleave(nodes), node, torch.zeros_like(node), node, live.flatten()
        )
        stands = chance.bernoulli(h.flatten(), at, "accept").view(batch, nodes) & live
        best = (stands * numbers).amax(1)  # the longest prefix whose coin says so
        ended = best[:, None] == length
        emitted = law[rows, best]
        at_best = best.clamp(max=nodes - 2)
        left, empty = residual(scaled[rows, at_best], q[rows, at_best])
        emitted = torch.where(ended, emitted, left)
        zero_residuals = (empty & ~ended[:, 0]).long()
        at = Sites(rows, best, torch.zeros_like(best), best, alive)
        bonus = chance.categorical(emitted, at, "bonus")
        path = torch.where(numbers[1:] <= best[:, None], numbers[1:], -1)
        return Verdict(path, best, bonus, {"zero_residuals": zero_residuals})
