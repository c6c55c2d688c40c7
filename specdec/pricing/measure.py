"""Measuring a cost table: short runs of the real loop, with trees of given sizes that take turns.

Target, drafter and rule run as they do in a decode, one after the other, so that what alternating
costs is in the table. Tokens are arbitrary: passes take as long for any.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from specdec.chance import Draws
from specdec.drafting.shape import Shape, TreeDrafter
from specdec.interfaces import Drafter, LanguageModel, compile_of
from specdec.measuring.clock import PHASES
from specdec.measuring.machine import Machine
from specdec.measuring.report import Step
from specdec.pairing import name_of
from specdec.pricing import at_once
from specdec.pricing.costs import Costs, Measured, Measuring
from specdec.pricing.growing import Governed
from specdec.pricing.kinds import Bounds, governed
from specdec.pricing.noted import tree_of
from specdec.pricing.policy import Policy
from specdec.sampling import Sampling
from specdec.state import State
from specdec.tree import SiblingLaw, TokenTree

# (levels, nodes without the root) of a round; a drafter that makes its tree at once knows no levels
SIZES = ((0, 0), (1, 1), (1, 4), (2, 2), (2, 8), (4, 4), (4, 16), (7, 7), (7, 32))
PACKAGES = ("specdec", "torch", "transformers", "numpy")
WARM_UP = 2  # rounds of each size
TOKENS = 2  # that a round of arbitrary text keeps, or fewer


class Size(NamedTuple):
    """Of a round."""

    levels: int
    nodes: int  # without the root
    shape: Shape | None = None  # of a draft in one compiled call


def here(target: LanguageModel) -> Measuring:
    """This machine, and this target."""
    return Measuring(
        target=target.name,
        dtype=str(target.dtype).removeprefix("torch."),
        layers=target.extra_layers,
        device=target.device.type,
        machine=Machine.this(),
        threads=torch.get_num_threads(),
        versions={name: _version(name) for name in PACKAGES},
    )


def label(drafter: Drafter) -> str:
    """What a drafter is called in a table: its name and, if it has one, its draft model's."""
    model = getattr(drafter, "model", None)
    return name_of(drafter) + (f" {model.name}" if isinstance(model, LanguageModel) else "")


def measure(
    target: Any,
    drafter: Any = None,
    *,
    rows: Sequence[int] = (1,),
    contexts: Sequence[int] | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
    temperatures: Sequence[float] = (0.0, 1.0),
    repeats: int = 10,
    bounds: Bounds = Bounds(),  # noqa: B008  a frozen value
    seed: int = 0,
) -> Costs:
    """The costs of rounds with `drafter` (None: none) on `target`, which is what `specdec.load`
    takes or returns.

    rows       of a batch
    contexts   committed tokens before a round; None: two, as far as the target's context goes
    sizes      (levels, nodes without the root) of the rounds
    repeats    rounds of each size, of which a table has the medians
    """
    from specdec.models.load import load
    from specdec.requests import make_drafter

    model = target if isinstance(target, LanguageModel) else load(target)
    chosen = None if drafter is None else make_drafter(drafter)
    levels = _known_to(chosen, sizes, bounds)
    found: list[Measured] = []
    turns = repeats + WARM_UP
    for count in rows:
        longest = [*levels, *_at_once(model, chosen, bounds, 0.0)]
        for context in contexts or _contexts(model, longest, turns):
            for temperature in temperatures:
                every = [*levels, *_at_once(model, chosen, bounds, temperature)]
                steps = _steps(
                    model, chosen, every, turns, count, context, temperature, bounds, seed
                )
                name = None if chosen is None else label(chosen)
                found += _medians(steps, name, bool(compile_of(model)), temperature > 0, context)
    return Costs(here(model), tuple(found))


def _at_once(
    target: LanguageModel, drafter: Drafter | None, bounds: Bounds, temperature: float
) -> list[Size]:
    """Rounds of drafts in one compiled call. They follow others: a drafter that has been idle has
    more to read than such a call does."""
    if drafter is None:
        return []
    grower = governed(drafter, Forced(), bounds, Sampling(temperature), target)[1]
    wholes = () if grower is None else grower.wholes
    return [
        Size(shape.depth, min(shape.max_nodes - 1, shape.depth * (1 if shape.chain else 4)), shape)
        for shape in wholes
    ]


def measured_on_first_use(
    target: LanguageModel, drafter: Drafter | None, rows: int, bounds: Bounds
) -> Costs:
    """The same, told on stderr: it takes a few seconds."""
    began = time.perf_counter()
    title = f"{target.name}" + ("" if drafter is None else f" with {label(drafter)}")
    print(f"measuring the costs of {title} ...", end="", file=sys.stderr, flush=True)
    plain = measure(target, None, rows=(rows,), sizes=((0, 0),), bounds=bounds)
    costs = measure(target, drafter, rows=(rows,), bounds=bounds).joined([plain])
    print(f" {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return costs


def _contexts(model: LanguageModel, sizes: Sequence[Size], turns: int) -> tuple[int, ...]:
    """Near the start of a text, and as far as there is room for the rounds of a measurement."""
    widest = max(size.nodes for size in sizes)
    left = model.context - turns * len(sizes) * TOKENS - widest
    far = min(max(left, 32), 512)
    return (32, far) if far > 64 else (32,)


def _known_to(
    drafter: Drafter | None, sizes: Sequence[tuple[int, int]], bounds: Bounds
) -> list[Size]:
    deepest = bounds.of(drafter).depth if isinstance(drafter, TreeDrafter) else 1
    return [Size(*each) for each in sorted({(min(at, deepest), nodes) for at, nodes in sizes})]


def _steps(
    target: LanguageModel,
    drafter: Drafter | None,
    sizes: Sequence[Size],
    turns: int,
    rows: int,
    context: int,
    temperature: float,
    bounds: Bounds,
    seed: int,
) -> dict[Size, list[Step]]:
    """Rounds by size. The sizes take turns, so that a slow moment of the machine meets them all."""
    from specdec.generate import Run
    from specdec.requests import prepare

    random = torch.Generator().manual_seed(seed)
    prompts = torch.randint(target.vocabulary, (rows, context), generator=random)
    sized = Sized(drafter, sizes, bounds)
    longest = target.context - context
    asked = prepare(
        target,
        prompts,
        drafter=sized,
        max_new_tokens=min(longest, turns * len(sizes) * (2 + bounds.depth)),
        temperature=temperature,
        ignore_eos=True,
        seed=seed,
    )
    found: dict[Size, list[Step]] = defaultdict(list)
    rounds = Run(*asked).rounds()
    for number, step in enumerate(rounds):
        if number >= turns * len(sizes) or not step.live.all():
            break
        size = sizes[number % len(sizes)]
        if number >= WARM_UP * len(sizes) and sized.at_once[-1] == size.shape:
            found[size].append(step)
    rounds.close()
    return found


def _medians(
    steps: Mapping[Size, Sequence[Step]],
    name: str | None,
    compiled: bool,
    sampled: bool,
    context: int,
) -> list[Measured]:
    found = []
    for (levels, _, shape), rounds in steps.items():
        nodes = 1 + round(median(int(step.num_nodes.max()) for step in rounds))
        each = [step.seconds for step in rounds]
        draft, score = (median(one.get(phase, 0.0) for one in each) for phase in ("draft", "score"))
        rest = [phase for phase in PHASES if phase not in ("draft", "score")]
        host = median(sum(one.get(phase, 0.0) for phase in rest) for one in each)
        low, high = np.quantile([step.decode_seconds for step in rounds], (0.25, 0.75))
        rows = len(rounds[0].live)
        found.append(
            Measured(
                name,
                compiled,
                sampled,
                levels if name else 0,
                nodes,
                context,
                rows,
                draft if name else 0.0,
                score,
                host,
                float(high - low),
                None if shape is None else at_once.kind_of(shape),
            )
        )
    return found


class Sized(Drafter):
    """Trees of given sizes in turn. `inner` drafts them, if it grows trees; else what it drafts is
    replaced by arbitrary tokens, so that the tree has the size."""

    def __init__(self, inner: Drafter | None, sizes: Sequence[Size], bounds: Bounds) -> None:
        self.inner, self.sizes, self.bounds = inner, sizes, bounds
        # Of each draft, if it was one compiled call. A list, since runs use copies of a drafter.
        self.at_once: list[Shape | None] = []
        self.learns = True

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        self._turn, self._vocabulary = -1, target.vocabulary
        self._policy = Forced()
        self._governed: Governed | None = None
        if self.inner is None:
            self.max_nodes = 1 + max(size.nodes for size in self.sizes)
            return
        self.inner, self._governed = governed(
            self.inner, self._policy, self.bounds, sampling, target
        )
        self.inner.begin(target, rows, sampling)
        self.taps, self.opened = self.inner.taps, self.inner.opened
        self.runners_up, self.best_tokens = self.inner.runners_up, self.inner.best_tokens
        if self._governed is not None:
            self.law, self.chain = self.inner.law, self.inner.chain
        self.max_nodes = max(self.inner.max_nodes, 1 + max(size.nodes for size in self.sizes))

    def enter(self, rows: Sequence[int], state: State) -> None:
        if self.inner is not None:
            self.inner.enter(rows, state)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        self._turn += 1
        levels, nodes, shape = self.sizes[self._turn % len(self.sizes)]
        self.at_once.append(None)
        if self.inner is None:
            return self._filled(state, nodes)
        self._policy.levels, self._policy.nodes, self._policy.shape = levels, nodes, shape
        self._policy.rows = state.rows
        if self._governed is not None:
            self._governed.noted = None
        asked = state if levels else idle(state)
        if self.inner.taps:  # what it reads of the target it has to read in every round
            asked = state
        tree = self.inner.propose(asked, chance)
        self.aside = self.inner.aside
        if self._governed is not None and self._governed.noted is not None:
            self.at_once[-1] = self._governed.noted.whole
        if self._governed is None or (tree.num_nodes == 1 and nodes):
            self.aside = None
            return self._filled(state, nodes)
        return tree

    def _filled(self, state: State, nodes: int) -> TokenTree:
        """A binary tree of arbitrary tokens, no deeper than there is room."""
        if self.law is not SiblingLaw.DET:
            return TokenTree.root(state.roots, self.law)
        parents = (np.arange(nodes + 1) - 1) // 2
        parents[0] = -1
        tokens = (np.arange(nodes) * 7 + self._turn) % self._vocabulary
        deepest = int(np.log2(nodes + 1)) if nodes else 0
        if not nodes or state.shallowest < deepest:
            return TokenTree.root(state.roots)
        every = (state.rows, 1)
        drafted = torch.from_numpy(np.tile(tokens, every)).to(state.device)
        return tree_of(state.roots, drafted, np.tile(parents, every))

    def observe(self, state: State) -> None:
        if self.inner is not None and (self._governed is not None or self.inner.taps):
            self.inner.observe(state)

    def leave(self, rows: Sequence[int]) -> None:
        if self.inner is not None:
            self.inner.leave(rows)


class Forced(Policy):
    """So many levels and nodes, whatever they are worth."""

    levels, nodes, rows = 1, 1, 1
    shape: Shape | None = None

    def conditional(self, q: np.ndarray, depth: int | np.ndarray, drawn: bool) -> np.ndarray:
        return q.clip(1e-6, 0.999)

    def goes_on(self, depth: int, nodes: int, frontier: np.ndarray) -> bool:
        return depth < self.levels

    def draws(self, nodes: int, sites: np.ndarray) -> int:
        if self.levels == 0:
            return 0
        some = int((sites > 0).any(0).sum())
        return min(some, -(-self.nodes // self.levels), self.nodes - nodes)

    def keep(self, candidates: np.ndarray) -> int:
        return min(self.nodes, int((candidates > 0).any(0).sum()))

    def choose(self, shapes: Sequence[Shape]) -> Shape | None:
        return self.shape

    def before(self, shape: Shape) -> np.ndarray:
        return np.full((self.rows, shape.depth), 0.5)


def idle(state: State) -> State:
    """The same state with no row live: a drafter that is asked at it drafts nothing."""
    host = state.on_host
    return replace(state, on_host=host._replace(live=[False] * state.rows))


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
