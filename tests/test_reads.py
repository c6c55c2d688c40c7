"""One read of the device a round: whatever drafts and whatever verifies, numbers cross to the host
once."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import specdec
from experiments.certificates import suite
from specdec import Drafter, State, TokenTree
from specdec.generate import Run
from specdec.plugins import build, names
from specdec.requests import prepare
from tests.exact import title
from tests.models import prompts, shared, similar

READS = (
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "cpu",
    "numpy",
    "nonzero",
    "unique",
)


class Reads(TorchFunctionMode):
    """Counts calls that bring values of tensors to the host, as an accelerator would have to wait
    for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        # .cpu().numpy() is one read: the array is a view of what has come over.
        self.found[name] += name in READS and name != "numpy"
        return function(*arguments, **(options or {}))


# priced decides level by level, on the host: on a device it reads once more per level; a portfolio
# and a cascade by price read what their lookups have drafted, to score it
BY_TIMES = ("priced", "portfolio", "auto", "cascade")
SHAPES = [
    *({"name": name} for name in names("drafter") if name not in BY_TIMES),
    {"name": "cascade", "threshold": 1.0},
    {"name": "ngram", "tree": True},
    {"name": "small_model", "depth": 3, "branching": [3, 2, 1]},
    {"name": "small_model", "depth": 3, "branching": 2, "draw": "wr"},
    {"name": "small_model", "depth": 3, "branching": 2, "draw": "hub"},
    {"name": "small_model", "depth": 3, "branching": 3, "draw": "ranked", "nodes": 9},
    {"name": "small_model", "depth": 3, "draw": "adaptive", "nodes": 7},
    {"name": "small_model", "depth": 5, "stop": {"length": 3}},
    {"name": "eagle", "depth": 3, "draw": "wor", "branching": 2},
    {"name": "early_exit", "depth": 3, "branching": 3, "draw": "ranked", "nodes": 6},
    {"name": "layer_skip", "depth": 3, "branching": 3, "draw": "ranked", "nodes": 6},
]


def counted(
    drafter: Drafter, rule: Any, temperature: float, trace: bool = False
) -> list[tuple[int, Counter[str]]]:
    """Per round of a run in which rows end and begin: how many rows were new in it, and what was
    read."""
    asked = prepare(
        specdec.load(shared("llama_gqa")),
        prompts(9, 4, 6),
        drafter=drafter,
        verifier=rule,
        temperature=temperature,
        max_new_tokens=16,
        allow_lossy=True,
        seats=2,
        trace=trace,
    )
    rounds, found, known = Run(*asked).rounds(), [], {-1}
    while True:
        with Reads() as reads:
            step = next(rounds, None)
        if step is None:
            return found
        here = set(step.prompts.tolist())
        found.append((len(here - known), reads.found))
        known |= here


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("settings", SHAPES, ids=title)
def test_a_round_reads_the_device_once(settings, temperature):
    model = shared("llama_gqa")
    made = suite.make(settings, specdec.load(model), specdec.load(similar(model)))
    for new, reads in counted(made, "auto", temperature):
        assert sum(reads.values()) == 1 or new, reads


ORACLES = ("ot", "is2")  # of small vocabularies, worked out on the host
RULES = [rule for rule in suite.rules() if rule not in ORACLES]


def drafter_for(rule: str) -> tuple[dict[str, Any], float]:
    """The settings of a drafter that the rule takes, and the temperature at which it does."""
    return next(
        (drafter, temperature)
        for temperature in (1.0, 0.0)
        for drafter, name in suite.pairs(temperature)
        if name == rule and drafter["name"] in ("small_model", "ngram")
    )


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_leaves_the_device_alone(rule):
    drafter, temperature = drafter_for(rule)
    model = shared("llama_gqa")
    made = suite.make(drafter, specdec.load(model), specdec.load(similar(model)))
    for new, reads in counted(made, build("verifier", rule), temperature):
        assert sum(reads.values()) == 1 or new, reads


@pytest.mark.parametrize(
    "stop", [{"threshold": 0.02}, {"acceptance": 0.6, "threshold": 0.02}], ids=str
)
def test_a_stop_rule_that_looks_at_q_reads_once_more_per_drafted_token(stop):
    model = shared("llama_gqa")
    settings = {"name": "small_model", "depth": 4, "stop": stop}
    made = suite.make(settings, specdec.load(model), specdec.load(similar(model)))
    for new, reads in counted(made, "auto", 1.0):
        assert sum(reads.values()) <= 1 + 4 or new, reads


class Asks(Drafter):
    """Reads a tensor of its own in every round."""

    def propose(self, state: State, chance: Any) -> TokenTree:
        int(state.roots[0])
        return TokenTree.root(state.roots)


def test_the_count_sees_a_read():
    assert {sum(reads.values()) for new, reads in counted(Asks(), "auto", 0.0) if not new} == {2}


class Numbers(Drafter):
    """What it puts aside comes back with the verdict."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    def propose(self, state: State, chance: Any) -> TokenTree:
        self.aside = torch.stack([state.roots, state.roots + 1], 1)
        return TokenTree.root(state.roots)

    def observe(self, state: State) -> None:
        for row, live in enumerate(state.on_host.live):
            if live:
                self.seen.append((state.last.aside[row].tolist(), state.text(row)[-2]))


def test_what_a_drafter_puts_aside_is_read_along():
    seen: list[Any] = []
    for new, reads in counted(Numbers(seen), "auto", 0.0):
        assert sum(reads.values()) == 1 or new
    assert seen
    for aside, root in seen:
        assert aside == [root, root + 1]
