"""Logits to laws, by transformers' own processors in transformers' order.

Letters: V vocabulary, n places.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from specdec.errors import integer

Processor = Callable[..., Tensor]
Failed = Callable[[int, Exception], None]
COLDEST = 1e-6  # lowest temperature other than 0


@dataclass(frozen=True)
class Sampling:
    """How logits become a law. Temperature 0 is a one-hot law on the argmax (ties to the lowest
    index).

    Order, as in transformers' generate: repetition penalty, the user's processors, temperature,
    top-k, top-p, min-p. Raises ValueError for values outside their range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    logits_processors: Sequence[Processor] = ()

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, lambda t: t >= 0, "a finite number >= 0")
        if 0 < self.temperature < COLDEST:
            raise ValueError(
                f"temperature must be 0 (greedy) or at least {COLDEST}, got {self.temperature!r}: "
                "logits divided by less overflow"
            )
        if self.top_k is not None:
            integer("top_k (None is off)", self.top_k, 1)
        if self.top_p is not None:
            _number("top_p", self.top_p, lambda p: 0 < p <= 1, "in (0, 1] or None (off)")
        if self.min_p is not None:
            _number("min_p", self.min_p, lambda p: 0 <= p <= 1, "in [0, 1] or None (off)")
        _number(
            "repetition_penalty",
            self.repetition_penalty,
            lambda r: r > 0,
            "a finite number > 0; 1 is off",
        )
        if not all(callable(processor) for processor in self.logits_processors):
            raise ValueError(
                "logits_processors must be callables (input_ids, scores) -> scores, as in "
                "transformers, got "
                f"{', '.join(repr(one) for one in self.logits_processors if not callable(one))}"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @cached_property
    def penalties(self) -> list[Processor]:
        """Processors that may read the prefix."""
        found = list(self.logits_processors)
        if self.repetition_penalty != 1:
            from transformers import RepetitionPenaltyLogitsProcessor

            found.insert(
                0, RepetitionPenaltyLogitsProcessor(penalty=float(self.repetition_penalty))
            )
        return found

    @cached_property
    def warpers(self) -> list[Processor]:
        """What shapes the law after the temperature, the same for every prefix."""
        if self.greedy or (self.top_k is None and self.top_p in (None, 1) and not self.min_p):
            return []
        from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        chosen: list[Processor] = []
        if self.top_k is not None:
            chosen.append(TopKLogitsWarper(int(self.top_k)))
        if self.top_p not in (None, 1):
            chosen.append(TopPLogitsWarper(float(self.top_p)))
        if self.min_p:
            chosen.append(MinPLogitsWarper(float(self.min_p)))
        return chosen

    def logits(
        self, logits: Tensor, prefixes: Callable[[], list[Tensor]], failed: Failed | None = None
    ) -> Tensor:
        """(n, V) in float32 or wider, after penalties and the user's processors. `prefixes()` gives
        each place's tokens and is called only if a processor reads them; places with prefixes of
        the same length share a call, and those with an empty one are left as they are.

        failed: is given each place at which a processor raises, and the error. None: it is raised.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if not self.penalties:
            return logits
        out = logits.clone()
        by_length: dict[int, list[int]] = {}
        tokens = prefixes()
        for place, prefix in enumerate(tokens):
            by_length.setdefault(len(prefix), []).append(place)
        by_length.pop(0, None)
        for places in by_length.values():
            ids = torch.stack([tokens[place] for place in places])
            try:
                out[places] = self._processed(ids, out[places])
            except Exception:
                if failed is None:
                    raise
                for place, one in zip(places, ids, strict=True):  # whose fault was it?
                    try:
                        out[place] = self._processed(one[None], out[[place]])[0]
                    except Exception as error:
                        failed(place, error)
        return out

    def _processed(self, ids: Tensor, scores: Tensor) -> Tensor:
        for processor in self.penalties:
            given = processor(ids, scores)
            check_scores(processor, given, scores)
            scores = given.to(scores.dtype)
        return scores

    def law(
        self, logits: Tensor, prefixes: Callable[[], list[Tensor]], failed: Failed | None = None
    ) -> Tensor:
        """(n, V) laws of logits (n, V), each row with its own prefix. failed: see `logits`."""
        scores = self.logits(logits, prefixes, failed)
        if self.greedy:
            return torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1:
            scores = scores / self.temperature
        for warper in self.warpers:
            scores = warper(None, scores)
        return scores.softmax(-1)


def check_scores(processor: Processor, given: Any, scores: Tensor) -> None:
    """Raise ValueError if the scores that a processor returns do not match those it was given."""
    wanted = f"{tuple(scores.shape)} of a floating-point type on {scores.device}"
    came = type(given).__name__
    if isinstance(given, Tensor):
        came = f"{tuple(given.shape)} of {given.dtype} on {given.device}"
        like = given.shape == scores.shape and given.device == scores.device
        if like and given.is_floating_point():
            return
    raise ValueError(
        f"the logits processor {processor!r} must return scores as it was given them, {wanted}; "
        f"it returned {came}"
    )


def _number(name: str, value: Any, fine: Callable[[float], bool], wanted: str) -> None:
    try:
        good = not isinstance(value, bool) and math.isfinite(value) and fine(value)
    except (TypeError, OverflowError):
        good = False
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
