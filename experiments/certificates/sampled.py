"""The sampled certificate: the real engine at scale. Cache, masks, batches, a processor, keyed
chance.

A tiny transformers model is decoded from one prompt many times over; the joint law of its tokens,
over several rounds, is computed by plain forward passes over every prefix, and the counts are
tested against it.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from experiments.certificates import tiny
from experiments.certificates.statistics import CELLS, SIZE, Fit, fit, sample_size
from specdec import Drafter
from specdec.chance import Chance, Keyed
from specdec.models.language_model import TransformersLM
from specdec.sampling import Sampling

ROWS = 512  # of a batch
# rows beside them that start from a longer prompt, so that batches are ragged; not counted
NEIGHBOURS = 16
SEQUENCES = 20_000  # at most, whose probabilities are computed


class Fatigue:
    """A logits processor: the last token becomes less likely, more so at odd lengths. Wrong unless
    each node sees its own path. The highest token, which ends a text where any does, becomes rarer,
    so that there are several rounds."""

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        last = ids[:, -1:]
        scores = scores.scatter(
            1, last, scores.gather(1, last) - (1.0 if ids.shape[1] % 2 else 0.4)
        )
        return torch.cat([scores[:, :-1], scores[:, -1:] - 0.5], 1)


@dataclass(frozen=True)
class Setting:
    """How one sampled test samples."""

    name: str
    vocabularies: tuple[int, ...]  # the smallest that the drafter takes
    longest: int  # tokens whose joint law is tested, at most
    eos: bool
    sampling: dict[str, Any]


SETTINGS = (
    Setting("temperature", (3, 4, 6, 8), 6, False, {"temperature": 0.9}),
    Setting(
        "processor, filter, end of text",
        (4, 6, 8),
        4,
        True,
        {"temperature": 0.8, "top_p": 0.9, "logits_processors": (Fatigue(),)},
    ),
)


def at_zero(setting: Setting) -> Setting:
    """The same at temperature 0: one sequence has probability 1, any other is impossible."""
    sampling = {**setting.sampling, "temperature": 0.0}
    return replace(setting, name=f"{setting.name}, T = 0", sampling=sampling)


@dataclass(frozen=True)
class Sampled:
    """One sampled test."""

    setting: str
    vocabulary: int
    tokens: int
    rounds_per_row: float
    fit: Fit
    seconds: float

    @property
    def passes(self) -> bool:
        return self.fit.p_value > SIZE

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passes": self.passes}

    def __str__(self) -> str:
        return (
            f"{self.setting}: {self.fit.samples} sequences of {self.tokens} tokens, "
            f"{self.rounds_per_row:.2f} rounds each, {self.fit.cells} cells, p = "
            f"{self.fit.p_value:.3g}, impossible {self.fit.impossible}, TV < "
            f"{self.fit.tv_upper:.3f}"
        )


def next_laws(model: PreTrainedModel, prefixes: Tensor, sampling: Sampling) -> Tensor:
    """(n, V) laws of the token after prefixes (n, length): a plain pass of the stock model."""
    return sampling.law(model(prefixes).logits[:, -1], lambda: list(prefixes))


@torch.inference_mode()
def joint_law(
    model: PreTrainedModel, prompt: list[int], tokens: int, sampling: Sampling, eos: int | None
) -> np.ndarray:
    """(V ** tokens,) probabilities of all continuations, in the order of their digits; what follows
    EOS is EOS again.

    Plain passes of the stock model in float64, one per length: no cache, no mask, no tree.
    """
    model = copy.deepcopy(model).double()
    vocabulary = model.config.vocab_size
    prefixes, law = torch.tensor([prompt]), torch.ones(1, dtype=torch.float64)
    for length in range(tokens):
        rows = next_laws(model, prefixes, sampling)
        if eos is not None and length:
            ended = (prefixes[:, len(prompt) :] == eos).any(1)
            rows[ended] = torch.nn.functional.one_hot(torch.tensor(eos), vocabulary).double()
        law = (law[:, None] * rows).flatten()
        prefixes = torch.cat(
            [
                prefixes.repeat_interleave(vocabulary, 0),
                torch.arange(vocabulary).repeat(len(prefixes))[:, None],
            ],
            1,
        )
    return law.numpy()


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that one sampled test needs, before the first sample."""

    setting: Setting
    drafter: Drafter
    verifier: Any
    target: TransformersLM
    tokens: int
    law: np.ndarray
    samples: int
    chance: Chance

    @property
    def batches(self) -> int:
        return math.ceil(self.samples / ROWS)

    def run(self) -> Iterator[Sampled | None]:
        """None after each batch, and at last the result."""
        began, vocabulary = time.perf_counter(), self.target.vocabulary
        eos = vocabulary - 1
        weights = vocabulary ** np.arange(self.tokens - 1, -1, -1)
        counts, rounds, rows = np.zeros(len(self.law), dtype=np.int64), 0, 0
        for batch in range(self.batches):
            own = min(ROWS, self.samples - batch * ROWS)
            first = batch * (ROWS + NEIGHBOURS)
            out = specdec.generate(
                self.target,
                [prompt(vocabulary)] * own + [[*prompt(vocabulary), 1, 0]] * NEIGHBOURS,
                drafter=self.drafter,
                verifier=self.verifier,
                max_new_tokens=self.tokens,
                request_ids=range(first, first + own + NEIGHBOURS),
                chance=self.chance,
                ignore_eos=not self.setting.eos,
                **self.setting.sampling,
            )
            digits = np.full((own, self.tokens), eos)
            for row, tokens in enumerate(out.tokens[:own]):
                digits[row, : len(tokens)] = tokens
            counts += np.bincount(digits @ weights, minlength=len(counts))
            rounds += sum(int(step.live[:own].sum()) for step in out.steps)
            rows += own
            yield None
        found = fit(counts, self.law)
        seconds = time.perf_counter() - began
        yield Sampled(self.setting.name, vocabulary, self.tokens, rounds / rows, found, seconds)


def prompt(vocabulary: int) -> list[int]:
    """It repeats itself, so that n-grams are found."""
    return [0, 1, 0, 2, 0, 1, 0]


def prepare(
    setting: Setting,
    drafter: Callable[[TransformersLM, TransformersLM], Drafter],
    verifier: Any,
    strength: float = 1.0,
    chance: Chance | None = None,
    lm: Callable[..., TransformersLM] = TransformersLM,
) -> Job:
    """The test at the smallest vocabulary that the drafter takes. `drafter(target, draft)` makes
    it.

    Raises specdec.Refused for a pair that the contract does not allow, and the drafter's own
    ValueError if it takes no vocabulary.
    """
    for vocabulary in setting.vocabularies:
        model = copy.deepcopy(tiny.llama(vocabulary))
        eos = vocabulary - 1 if setting.eos else None
        model.generation_config.eos_token_id = eos
        target = lm(model, name="tiny")
        chosen = drafter(target, tiny.draft(vocabulary))
        try:
            specdec.generate(
                target,
                [prompt(vocabulary)],
                drafter=chosen,
                verifier=verifier,
                max_new_tokens=4,
                **setting.sampling,
            )
            break
        except specdec.Refused:
            raise
        except ValueError as error:
            refusal = error
    else:
        raise refusal
    most = int(math.log(SEQUENCES) / math.log(vocabulary) + 1e-9)
    tokens = min(chosen.max_nodes + 1, setting.longest, most)
    law = joint_law(model, prompt(vocabulary), max(tokens, 3), Sampling(**setting.sampling), eos)
    possible = min(CELLS, int((law > 0).sum()))
    samples = sample_size(possible, strength=strength) if possible > 1 else ROWS
    return Job(setting, chosen, verifier, target, max(tokens, 3), law, samples, chance or Keyed(0))
