"""Lossy rules emit the law that they say, and report how far that is from the target's."""

import math
from collections import Counter

import pytest
import torch

import specdec
from specdec import Drafter, SiblingLaw, TokenTree
from specdec.plugins import build
from tests.exact import Toy, exact, make

P, Q = [5, 3, 2], [1, 3, 6]
TOY = Toy({(): P}, {(): Q})
CHAIN = {"name": "small_model", "depth": 1}


def off(emitted, p):
    tv = sum(abs(a - b) for a, b in zip(emitted, p, strict=True)) / 2
    return tv, sum(a * math.log(a / b) for a, b in zip(emitted, p, strict=True) if a)


@pytest.mark.parametrize("lenience", [0.5, 0.8, 1.0])
def test_lenience(lenience):
    """Leviathan et al. 2211.17192, appendix A.5, by hand: min(q, p / l) from the draft, the rest
    from norm((p - min(q, p / l))+)."""
    p, q = ([weight / 10 for weight in row] for row in (P, Q))
    eased = [min(b, a / lenience) for a, b in zip(p, q, strict=True)]
    left = [max(a - e, 0) for a, e in zip(p, eased, strict=True)]
    emitted = [
        e + (1 - sum(eased)) * one / (sum(left) or 1) for e, one in zip(eased, left, strict=True)
    ]
    rule = build("verifier", {"name": "lenient", "lenience": lenience})
    found = exact(TOY, make(CHAIN, TOY), rule, 2, allow_lossy=True)
    first: Counter = Counter()
    for tokens, probability in found.law.items():
        first[tokens[0]] += probability
    assert [first[token] for token in range(3)] == pytest.approx(emitted)
    assert found.accepted == pytest.approx(sum(eased))
    report = specdec.generate(
        TOY.target,
        [[0], [1, 2]],
        drafter=make(CHAIN, TOY)(),
        verifier=rule,
        temperature=1.0,
        max_new_tokens=9,
        allow_lossy=True,
    ).report
    assert (report.deviation["tv"], report.deviation["kl"]) == pytest.approx(off(emitted, p))


class Offers(Drafter):
    """One token, always."""

    max_nodes, chain = 2, True

    def __init__(self, token):
        self.token = token

    def propose(self, state, chance):
        if state.deepest < 1:
            return TokenTree.root(state.roots)
        tokens = torch.stack([state.roots, torch.full_like(state.roots, self.token)], 1)
        return TokenTree.chain(tokens, None, SiblingLaw.DET)


def accepts(token, epsilon, delta):
    rule = build("verifier", {"name": "typical", "epsilon": epsilon, "delta": delta})
    toy = Toy({(): [50, 32, 13, 5]}, {(): [1, 1, 1, 1]})
    report = specdec.generate(
        toy.target,
        [[0]],
        drafter=Offers(token),
        verifier=rule,
        temperature=1.0,
        max_new_tokens=8,
        allow_lossy=True,
    ).report
    assert report.acceptance_rate in (0, 1)
    return report


def test_typical_acceptance():
    """exp(-entropy) is 0.326: the threshold is min(epsilon, delta 0.326), and what is above it is
    always accepted."""
    entropy = -sum(p * math.log(p) for p in (0.5, 0.32, 0.13, 0.05))
    for token, p in enumerate((0.5, 0.32, 0.13, 0.05)):
        for epsilon, delta in ((0.3, 0.09), (0.3, 0.9), (0.3, 1.2), (0.6, 1.2), (0.4, 3.0)):
            threshold = min(epsilon, delta * math.exp(-entropy))
            report = accepts(token, epsilon, delta)
            assert bool(report.acceptance_rate) == (p > threshold)
            if p > threshold:
                assert report.deviation["tv"] == pytest.approx(1 - p)
                assert report.deviation["kl"] == pytest.approx(-math.log(p))
