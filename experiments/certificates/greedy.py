"""The greedy certificate: tokens of a real model at temperature 0, against transformers' own greedy
decoding.

Passes of different shapes round differently, so a near-tie may flip. At the first divergence both
tokens are scored again in float32: a margin within twice the measured rounding is a tie, anything
else a fault. Nothing after a divergence is comparable.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

import specdec
from specdec import Drafter
from specdec.models.language_model import TransformersLM

TIE_CAP = 0.5  # the check fails if a larger share of prompts diverges at ties
QUANTILE = 0.9999
MEASURED = 4  # prompts on which the rounding is measured


@dataclass(frozen=True)
class Divergence:
    """Where one output first parts from plain decoding."""

    prompt: int
    index: int
    ours: int | None  # None: ended there
    plain: int | None
    margin: float | None  # between the two tokens' logits, in float32
    kind: str  # tie | fault | unjudged: logits processors stand between the logits and the choice


@dataclass(frozen=True)
class Greedy:
    """All prompts."""

    target: str
    dtype: str
    prompts: int
    tokens: int
    rounding: float
    tau: float
    divergences: list[Divergence]

    @property
    def tie_rate(self) -> float:
        return sum(one.kind == "tie" for one in self.divergences) / self.prompts

    @property
    def passes(self) -> bool:
        return all(one.kind == "tie" for one in self.divergences) and self.tie_rate <= TIE_CAP

    def as_dict(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "tie_rate": self.tie_rate,
            "tie_cap": TIE_CAP,
            "passes": self.passes,
        }

    def __str__(self) -> str:
        faults = sum(one.kind == "fault" for one in self.divergences)
        return (
            f"{self.target} in {self.dtype}: {self.prompts} prompts, {self.tokens} tokens, tau "
            f"{self.tau:.2f}, {faults} faults, tie rate {self.tie_rate:.2f}"
        )


@torch.inference_mode()
def compare(
    target: TransformersLM,
    prompts: Sequence[list[int]],
    drafter: Drafter,
    verifier: Any,
    max_new_tokens: int = 48,
) -> Greedy:
    """Raises specdec.Refused for a pair that the contract does not allow at temperature 0."""
    out = specdec.generate(
        target,
        prompts,
        drafter=drafter,
        verifier=verifier,
        max_new_tokens=max_new_tokens,
        temperature=0.0,
    )
    plain = [_plain(target, prompt, max_new_tokens) for prompt in prompts]
    judge = Judge(target, [[*a, *b] for a, b in zip(prompts, plain, strict=True)])
    found = []
    for number, (prompt, ours, theirs) in enumerate(zip(prompts, out.tokens, plain, strict=True)):
        index = first_difference(ours.tolist(), theirs)
        if index is not None:
            found.append(judge(number, prompt, ours.tolist(), theirs, index))
    tokens, rounding = sum(map(len, plain)), judge.rounding
    dtype = str(target.dtype).removeprefix("torch.")
    return Greedy(target.name, dtype, len(prompts), tokens, rounding, out.report.tau, found)


def _plain(target: TransformersLM, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = torch.tensor([prompt], device=target.device)
    eos = sorted(target.eos_ids) or None
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
    out = target.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return out[0, len(prompt) :].tolist()


def _rounding(
    model: PreTrainedModel, exact: PreTrainedModel, sequences: Sequence[list[int]]
) -> float:
    """How far logits of the stock model move between passes: token by token with a cache, the whole
    text at once, in float32."""
    worst = 0.0
    for sequence in sequences:
        ids = torch.tensor([sequence], device=model.device)
        reference = exact(ids).logits[0].float()
        cache, steps = None, []
        for token in range(ids.shape[1]):
            step = model(ids[:, token : token + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits[0, -1])
        for logits in (model(ids).logits[0], torch.stack(steps)):
            off = (logits.float() - reference).abs().flatten()
            worst = max(worst, float(off.kthvalue(max(1, int(QUANTILE * len(off)))).values))
    return worst


def first_difference(ours: Sequence[int], plain: Sequence[int]) -> int | None:
    """The index of the first difference between two outputs; the end of the shorter one if it is a
    prefix of the other; None if they are the same."""
    for index, (a, b) in enumerate(zip(ours, plain, strict=False)):
        if a != b:
            return index
    return None if len(ours) == len(plain) else min(len(ours), len(plain))


class Judge:
    """Tells a tie from a fault, by the target in float32 and by how far its passes round (measured
    on a few of `texts`)."""

    def __init__(self, target: TransformersLM, texts: Sequence[list[int]]) -> None:
        with torch.inference_mode():
            self.exact = copy.deepcopy(target.model).float()
            self.rounding = _rounding(target.model, self.exact, texts[:MEASURED])

    @torch.inference_mode()
    def __call__(
        self,
        number: int,
        prompt: Sequence[int],
        ours: Sequence[int],
        plain: Sequence[int],
        index: int,
    ) -> Divergence:
        """Of the two outputs of prompt `number`, which part at `index`."""
        a, b = (tokens[index] if index < len(tokens) else None for tokens in (ours, plain))
        if a is None or b is None:
            return Divergence(number, index, a, b, None, "fault")
        ids = torch.tensor([[*prompt, *plain[:index]]], device=self.exact.device)
        scores = self.exact(ids).logits[0, -1]
        margin = abs(float(scores[a] - scores[b]))
        return Divergence(
            number, index, a, b, margin, "tie" if margin <= 2 * self.rounding else "fault"
        )
