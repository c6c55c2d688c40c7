"""The verdict: counts of a sampler's continuations against the target's law, by the statistics of
the sampled certificate."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.audits.cells import Cells, cells_of
from experiments.audits.sampler import Request, Sampler, checked
from experiments.certificates.statistics import CELLS, Fit, fit, merged, sample_size
from experiments.terminal.progress import Advance
from specdec.errors import integer, number
from specdec.models.language_model import TransformersLM
from specdec.sampling import Sampling

CONSISTENT, ANOTHER_LAW = "consistent", "another law"


@dataclass(frozen=True)
class Plan:
    """How an audit samples. Raises ValueError for values outside their range."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    samples: int | None = None  # None: as many as find a law at total variation `tv`
    batch: int = 64  # samples of a request
    seed: int = 0
    alpha: float = 1e-4  # how often a faithful sampler may be called another law
    tv: float = 0.05
    least: float = 0.01  # probability of a continuation that has a cell of its own
    double: bool = True  # compute the law in float64; False: in the dtype of the model

    def __post_init__(self) -> None:
        integer("max_new_tokens", self.max_new_tokens, 1)
        integer("batch", self.batch, 1)
        integer("seed", self.seed, 0)
        if self.samples is not None:
            integer("samples (null: as many as needed)", self.samples, 1)
        for name, value in (("alpha", self.alpha), ("tv", self.tv), ("least", self.least)):
            if not 0 < number(name, value) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
        if self.sampling.greedy:
            raise ValueError(
                "an audit tests laws, so temperature must be > 0; at temperature 0 compare tokens "
                "with plain decoding"
            )
        if self.sampling.logits_processors or self.sampling.repetition_penalty != 1:
            raise ValueError("requests carry temperature, top_k and top_p, and nothing else")


def check_prompt(plan: Plan, target: TransformersLM) -> None:
    """Raise ValueError for a prompt that the target cannot continue."""
    if not plan.prompt:
        raise ValueError("the prompt has no tokens; give at least one")
    for token in plan.prompt:
        integer("a token of the prompt", token, 0, target.vocabulary - 1)
    if len(plan.prompt) + plan.max_new_tokens > target.context:
        raise ValueError(
            f"{len(plan.prompt)} tokens of prompt and max_new_tokens={plan.max_new_tokens} exceed "
            f"the context of {target.name}, {target.context} tokens"
        )


def wanted_samples(cells: Cells, plan: Plan) -> int:
    """Raises ValueError where they could tell nothing."""
    possible = min(CELLS, int((cells.law > 0).sum()))
    if possible < 2:
        raise ValueError(
            "the target has only one continuation here, so there is no law to test; a higher "
            "temperature or a larger top_k gives more"
        )
    samples = plan.samples or sample_size(possible, plan.tv, size=plan.alpha)
    expected = samples * cells.law[cells.law > 0]
    if len(merged(expected, expected)[1]) < 2:
        raise ValueError(
            f"{samples} samples are too few to test anything: no two groups of continuations "
            "expect 10 each; give more samples=, or leave it out"
        )
    return samples


def audit(
    target: TransformersLM,
    sampler: Sampler,
    plan: Plan,
    bar: Callable[[str, int], AbstractContextManager[Advance]],
) -> dict[str, Any]:
    """Sample, count and judge. Raises ValueError for a prompt or a sampler that is not in order."""
    check_prompt(plan, target)
    ends = frozenset(target.eos_ids)
    model = copy.deepcopy(target.model).double() if plan.double else target.model
    cells = cells_of(model, plan.prompt, plan.max_new_tokens, plan.sampling, ends, plan.least)
    del model
    samples = wanted_samples(cells, plan)
    batches = -(-samples // plan.batch)
    seeds = np.random.SeedSequence(plan.seed).generate_state(batches)
    counts = np.zeros(len(cells.law), dtype=np.int64)
    with bar("requests", batches) as advance:
        for batch in range(batches):
            request = Request(
                plan.prompt,
                plan.max_new_tokens,
                plan.sampling.temperature,
                plan.sampling.top_k,
                plan.sampling.top_p,
                int(seeds[batch]),
                min(plan.batch, samples - batch * plan.batch),
            )
            for row in checked(sampler.sample(request), request, target.vocabulary, ends):
                counts[cells.cell(row)] += 1
            advance()
    return judged(fit(counts, cells.law, size=plan.alpha), plan.alpha)


def judged(found: Fit, alpha: float) -> dict[str, Any]:
    """What a line of the command says."""
    return {
        "verdict": CONSISTENT if found.p_value > alpha else ANOTHER_LAW,
        "p": found.p_value,
        "samples": found.samples,
        "tv_upper_bound": found.tv_upper,
        "tv": found.tv_empirical,
        "tv_found": found.tv_found,
        "cells": found.cells,
        "impossible": found.impossible,
        "alpha": alpha,
    }
