"""What a trace notes of a round: every node's token, p and q, the coins that the rule threw and the
tokens that the target drew. The rule's verdict stays as it was; the numbers are read together with
it.

Letters: B rows, N nodes, V vocabulary, n places.
"""

from dataclasses import replace

import torch
from torch import Tensor

from specdec.chance import Draws, KeyedDraws, Sites
from specdec.interfaces import Verifier
from specdec.probs import Laws
from specdec.state import Verdict
from specdec.tree import TokenTree

TOKENS = ("target", "bonus", "accept")  # purposes of draws whose outcome is a token


class Traced(Verifier):
    """A rule that is watched while it judges."""

    def __init__(self, rule: Verifier) -> None:
        self.rule = rule

    def verify(self, trees: TokenTree, p: Laws, chance: Draws) -> Verdict:
        watched = Watched(chance, trees)
        verdict = self.rule.verify(trees, p, watched)
        if not isinstance(verdict, Verdict):
            return verdict  # the loop refuses it by name
        asked, coin, drawn = watched.seen
        # Laws of its own: what the rule has not looked at shall not be reported as its fault.
        laws = Laws(p.scores, trees, p.state)
        if laws.sampling.greedy:
            drawn = laws.argmax
        notes = {
            "tokens": trees.tokens,
            "p": target_p(laws, trees.parents.clamp(min=0), trees.tokens),
            "q": drafter_q(trees),
            "asked": asked,
            "coin": coin,
            "drawn": drawn,
            "drawn_p": target_p(laws, torch.arange(trees.num_nodes, device=drawn.device), drawn),
        }
        return replace(verdict, notes=notes)


def target_p(laws: Laws, nodes: Tensor, tokens: Tensor) -> Tensor:
    """(B, N) p of tokens (B, N) in the laws at nodes (B, N) or (N,); -1 is no token."""
    nodes = nodes.expand_as(tokens)
    if laws.sampling.greedy:
        return (laws.argmax.gather(1, nodes) == tokens).float()
    return laws.everywhere[laws.rows[:, None], nodes, tokens.clamp(min=0)]


def drafter_q(trees: TokenTree) -> Tensor:
    """(B, N) q of every node's token in the law that its siblings came from; NaN for DET."""
    if trees.q is None:
        return torch.full(trees.tokens.shape, torch.nan, device=trees.tokens.device)
    rows = torch.arange(trees.rows, device=trees.tokens.device)[:, None]
    return trees.q[rows, trees.parents.clamp(min=0), trees.tokens]


class Watched(Draws):
    """Another's draws, noted by node. A node's last coin and last token count."""

    def __init__(self, draws: Draws, trees: TokenTree) -> None:
        self.inner, self.by_place = draws, draws.by_place
        self._shape, device = trees.tokens.shape, trees.tokens.device
        places = trees.tokens.numel() + 1  # the last one takes what is not live
        self._asked = torch.full((places,), torch.nan, dtype=torch.float64, device=device)
        self._coin = self._asked.clone()
        self._drawn = torch.full((places,), -1, device=device)

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N) each: the chance with which a coin was asked to accept the node; the coin; the
        token drawn after the node. NaN and -1: none, or a chance without numbers."""
        asked, coin, drawn = (
            noted[:-1].view(self._shape) for noted in (self._asked, self._coin, self._drawn)
        )
        return asked, coin, drawn

    def _note(self, noted: Tensor, values: Tensor, at: Sites) -> None:
        nodes = at.rows * self._shape[1] + at.nodes
        noted.scatter_(0, torch.where(at.live, nodes, len(noted) - 1), values.to(noted.dtype))

    def bernoulli(self, p: Tensor, at: Sites, purpose: str) -> Tensor:
        self._note(self._asked, p, at)
        if isinstance(self.inner, KeyedDraws):
            self._note(self._coin, self.inner.uniform(at, 1, purpose)[:, 0], at)
        return self.inner.bernoulli(p, at, purpose)

    def categorical(self, law: Tensor, at: Sites, purpose: str) -> Tensor:
        token = self.inner.categorical(law, at, purpose)
        if purpose in TOKENS:
            self._note(self._drawn, token, at)
        return token

    def without_replacement(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self.inner.without_replacement(law, k, at, purpose)

    def independent(self, law: Tensor, k: int, at: Sites, purpose: str) -> Tensor:
        return self.inner.independent(law, k, at, purpose)
