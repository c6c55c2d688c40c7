"""Wrong rules of acceptance, and wrong laws handed to right ones."""

from dataclasses import replace

import torch
from torch import Tensor

from specdec import Laws, SiblingLaw, TokenTree, Verdict, Verifier
from specdec.chance import Draws, Sites
from specdec.plugins import build
from specdec.sampling import Sampling


class Row:
    """One row of a round, for rules written without batches."""

    def __init__(self, row: int, trees: TokenTree, laws: Laws, chance: Draws) -> None:
        self.row, self.trees, self.laws, self.chance = row, trees, laws, chance

    def p(self, node: int) -> Tensor:
        return self.laws[torch.tensor([self.row]), torch.tensor([node])][0].double()

    def raw(self, node: int) -> Tensor:
        """softmax(logits), without temperature or filters."""
        return self.laws.scores[self.row, node].double().softmax(-1)

    def q(self, node: int) -> Tensor:
        assert self.trees.q is not None
        return self.trees.q[self.row, node].double()

    def children(self, node: int) -> list[int]:
        return (self.trees.parents[self.row] == node).nonzero()[:, 0].tolist()

    def token(self, node: int) -> int:
        return int(self.trees.tokens[self.row, node])

    def _at(self, node: int) -> Sites:
        depth = int(self.trees.depths[self.row, node])
        return Sites(
            *(torch.tensor([number]) for number in (self.row, node, 0, depth)), torch.tensor([True])
        )

    def coin(self, probability: float | Tensor, node: int, purpose: str = "accept") -> bool:
        chance = torch.as_tensor(probability, dtype=torch.float64).clamp(0, 1)[None]
        return bool(self.chance.bernoulli(chance, self._at(node), purpose)[0])

    def draw(self, law: Tensor, node: int, purpose: str = "bonus") -> int:
        return int(self.chance.categorical(law[None], self._at(node), purpose)[0])


class RowRule(Verifier):
    """`judge(row)` gives the accepted path and the bonus token."""

    laws = frozenset(SiblingLaw)

    def judge(self, row: Row) -> tuple[list[int], int]:
        raise NotImplementedError

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        path = torch.full((trees.rows, max(trees.depth, 1)), -1)
        bonus = torch.zeros(trees.rows, dtype=torch.long)
        for row in laws.state.live.nonzero()[:, 0].tolist():
            nodes, bonus[row] = self.judge(Row(row, trees, laws, chance))
            path[row, : len(nodes)] = torch.tensor(nodes, dtype=torch.long)
        return Verdict(path, (path >= 0).sum(1), bonus)


def left(p: Tensor, q: Tensor) -> Tensor:
    rest = (p - q).clamp(min=0)
    return rest if rest.sum() > 1e-12 else p


class TokenChain(RowRule):
    """The right token-wise rule on chains, with places where a fault can be planted."""

    def law(self, row: Row, node: int) -> Tensor:
        return row.p(node)

    def bonus_law(self, row: Row, node: int) -> Tensor:
        return row.p(node)

    def odds(self, row: Row, node: int, child: int) -> Tensor:
        token = row.token(child)
        return self.law(row, node)[token] / row.q(node)[token]

    def correction(self, row: Row, node: int, child: int) -> Tensor:
        return left(self.law(row, node), row.q(node))

    def judge(self, row: Row) -> tuple[list[int], int]:
        path: list[int] = []
        node = 0
        while children := row.children(node):
            child = children[0]
            if not row.coin(self.odds(row, node, child), child):
                return path, row.draw(self.correction(row, node, child), node)
            path.append(child)
            node = child
        return path, row.draw(self.bonus_law(row, node), node)


class BonusWithoutTemperature(TokenChain):
    def bonus_law(self, row: Row, node: int) -> Tensor:
        return row.raw(node)


class CorrectionFromP(TokenChain):
    def correction(self, row: Row, node: int, child: int) -> Tensor:
        return row.p(node)


class IndependentRatio(TokenChain):
    """From the second token on, the ratio is that of another token drawn from q."""

    def odds(self, row: Row, node: int, child: int) -> Tensor:
        token = row.token(child) if node == 0 else row.draw(row.q(node), node, "another")
        return row.p(node)[token] / row.q(node)[token]


class LateRejection(TokenChain):
    """A rejection is noticed one position late: the rejected token stays and its successor is
    corrected."""

    def judge(self, row: Row) -> tuple[list[int], int]:
        path, bonus = super().judge(row)
        node = path[-1] if path else 0
        children = row.children(node)
        if not path or not children:
            return path, bonus
        return [*path, children[0]], row.draw(row.p(children[0]), children[0], "late")


class UnsharpenedTest(RowRule):
    """Temperature 0: drafts are tested against softmax(logits), the argmax is emitted."""

    def judge(self, row: Row) -> tuple[list[int], int]:
        path: list[int] = []
        node = 0
        while children := row.children(node):
            if not row.coin(row.raw(node)[row.token(children[0])], children[0]):
                break
            node = children[0]
            path.append(node)
        return path, int(row.laws.scores[row.row, node].argmax())


class DrawAgain(RowRule):
    """Token matching that throws the target's draw away on a mismatch and draws again."""

    def judge(self, row: Row) -> tuple[list[int], int]:
        path: list[int] = []
        node = 0
        while children := row.children(node):
            drawn = row.draw(row.p(node), node, "target")
            match = [child for child in children if row.token(child) == drawn]
            if not match:
                break
            node = match[0]
            path.append(node)
        return path, row.draw(row.p(node), node)


class LongestOfManyDraws(RowRule):
    """Each root-to-leaf path draws the target's tokens for itself; the longest match wins."""

    def judge(self, row: Row) -> tuple[list[int], int]:
        drafted = range(1, row.trees.num_nodes)
        leaves = [n for n in drafted if row.trees.parents[row.row, n] >= 0 and not row.children(n)]
        best: list[int] = []
        bonus = -1
        for leaf in leaves or [0]:
            path, kept = row.trees.path(row.row, leaf), []
            node, drawn = 0, row.draw(row.p(0), 0, f"path {leaf}")
            for child in path:
                if row.token(child) != drawn:
                    break
                kept.append(child)
                node = child
                drawn = row.draw(row.p(node), node, f"path {leaf}")
            if bonus < 0 or len(kept) > len(best):
                best, bonus = kept, drawn
        return best, bonus


class Argmax(RowRule):
    """Temperature ignored: the argmax is verified and emitted."""

    def judge(self, row: Row) -> tuple[list[int], int]:
        path: list[int] = []
        node = 0
        while True:
            best = int(row.p(node).argmax())
            match = [child for child in row.children(node) if row.token(child) == best]
            if not match:
                return path, best
            node = match[0]
            path.append(node)


class ChangedLaws(Verifier):
    """A right rule with wrong laws of the target."""

    def __init__(
        self, rule: str, laws: type[Laws] = Laws, sampling: type[Sampling] = Sampling
    ) -> None:
        self.rule, self.changed, self.sampling = build("verifier", rule), laws, sampling
        self.laws = self.rule.laws  # type: ignore[misc]

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        options = {
            name: getattr(laws.sampling, name) for name in laws.sampling.__dataclass_fields__
        }
        state = replace(laws.state, sampling=self.sampling(**options))
        return self.rule.verify(trees, self.changed(laws.scores, trees, state), chance)


class FiltersInTheOtherOrder(Sampling):
    """top-p first, then top-k."""

    @property
    def warpers(self) -> list:  # type: ignore[override]
        return super().warpers[::-1]


class PenaltiesOnce(Laws):
    """Every node is processed with the root's prefix."""

    def prefixes(self, rows: Tensor, nodes: Tensor) -> list[Tensor]:
        return super().prefixes(rows, torch.zeros_like(nodes))


class ForgetsWhatWasRejected(Verifier):
    """On independently drawn siblings: a rejected token is struck from q, for its later siblings
    too."""

    laws = frozenset({SiblingLaw.WR})

    def __init__(self) -> None:
        self.rule = build("verifier", "rrs_wor")

    def verify(self, trees: TokenTree, laws: Laws, chance: Draws) -> Verdict:
        return self.rule.verify(trees.drawn_from(SiblingLaw.WOR, trees.q), laws, chance)
