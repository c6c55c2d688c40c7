"""Logits to laws. Every node is processed with its own path, by transformers' own processors in transformers' order.

Letters: B rows, N nodes, V vocabulary, n places, L tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from specdec.checks import integer
from specdec.interfaces import State
from specdec.tree import TokenTree

Processor = Callable[..., Tensor]
COLDEST = 1e-6  # lowest temperature other than 0


@dataclass(frozen=True)
class Sampling:
    """How logits become a law. Temperature 0 is a one-hot law on the argmax (ties to the lowest index).

    Order, as in transformers' generate: repetition penalty, the user's processors, temperature, top-k, top-p, min-p.
    Raises ValueError for values outside their range.
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
                f"temperature must be 0 (greedy) or at least {COLDEST}, got {self.temperature!r}: logits divided by less overflow"
            )
        if self.top_k is not None:
            integer("top_k (None is off)", self.top_k, 1)
        if self.top_p is not None:
            _number("top_p", self.top_p, lambda p: 0 < p <= 1, "in (0, 1] or None (off)")
        if self.min_p is not None:
            _number("min_p", self.min_p, lambda p: 0 <= p <= 1, "in [0, 1] or None (off)")
        _number("repetition_penalty", self.repetition_penalty, lambda r: r > 0, "a finite number > 0; 1 is off")
        if not all(callable(processor) for processor in self.logits_processors):
            raise ValueError(
                "logits_processors must be callables (input_ids, scores) -> scores, as in transformers, got "
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

            found.insert(0, RepetitionPenaltyLogitsProcessor(penalty=float(self.repetition_penalty)))
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

    def logits(self, logits: Tensor, prefixes: Callable[[], list[Tensor]]) -> Tensor:
        """(n, V) in float32 or wider, after penalties and user's processors. `prefixes()` gives each place's tokens, and
        is called only if somebody reads them; places with prefixes of one length share a call."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if not self.penalties:
            return logits
        out = logits.clone()
        by_length: dict[int, list[int]] = {}
        tokens = prefixes()
        for place, prefix in enumerate(tokens):
            by_length.setdefault(len(prefix), []).append(place)
        for places in by_length.values():
            ids, scores = torch.stack([tokens[place] for place in places]), out[places]
            for processor in self.penalties:
                given = processor(ids, scores)
                if not isinstance(given, Tensor) or given.shape != scores.shape:
                    raise ValueError(
                        f"the logits processor {processor!r} must return scores of the shape that it was given, "
                        f"{tuple(scores.shape)}; it returned {tuple(given.shape) if isinstance(given, Tensor) else given!r}"
                    )
                scores = given
            out[places] = scores
        return out

    def law(self, logits: Tensor, prefixes: Callable[[], list[Tensor]]) -> Tensor:
        """(n, V) laws of logits (n, V), each row with its own prefix."""
        scores = self.logits(logits, prefixes)
        if self.greedy:
            return torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
        if self.temperature != 1:
            scores = scores / self.temperature
        for warper in self.warpers:
            scores = warper(None, scores)
        return scores.softmax(-1)


def _number(name: str, value: Any, fine: Callable[[float], bool], wanted: str) -> None:
    try:
        good = not isinstance(value, bool) and math.isfinite(value) and fine(value)
    except (TypeError, OverflowError):
        good = False
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


class Laws:
    """The target's laws at the nodes of scored trees, computed when a rule asks for them.

    `laws[rows, nodes]` is (n, V); `laws.argmax` is (B, N), the mode of every node's law, which is all that temperature 0
    needs.
    """

    def __init__(self, logits: Tensor, trees: TokenTree, state: State) -> None:
        self.scores, self.trees, self.state = logits, trees, state
        self.sampling = state.sampling
        self._faults: list[Tensor] = []  # (B,) bool per use

    @property
    def faulty(self) -> Tensor:
        """(B,) bool: whether a law used so far was none: NaN, or no token left."""
        if not self._faults:
            return torch.zeros(len(self.scores), dtype=torch.bool, device=self.scores.device)
        return self._faults[0] if len(self._faults) == 1 else torch.stack(self._faults).any(0)

    def _note(self, rows: Tensor, values: Tensor) -> None:
        """`values` (n,) are finite where the law is one."""
        bad = ~values.isfinite()
        everyone = len(self.scores)
        self._faults.append(torch.zeros(everyone, device=bad.device).index_add_(0, rows, bad.float()) > 0)

    @property
    def vocabulary(self) -> int:
        return self.scores.shape[-1]

    def __getitem__(self, index: tuple[Tensor, Tensor]) -> Tensor:
        rows, nodes = index
        logits = picked(self.scores, rows, nodes)
        law = self.sampling.law(logits, lambda: self.prefixes(rows, nodes))
        self._note(rows, logits.amax(-1) if self.sampling.greedy else law[:, 0])
        return law

    @cached_property
    def argmax(self) -> Tensor:
        if self.sampling.penalties:
            rows, nodes = self.trees.used.nonzero(as_tuple=True)
            scores = self.sampling.logits(self.scores[rows, nodes], lambda: self.prefixes(rows, nodes))
            values, winners = scores.max(-1)
            best = torch.zeros_like(self.trees.tokens)
            best[rows, nodes] = winners
            self._note(rows, values)
            return best
        # argmax is slow in bfloat16. The largest score is finite where the law is one; padding is scored like any node.
        scores = self.scores if self.scores.dtype == torch.float64 else self.scores.float()
        self._faults.append(~scores.amax(-1).isfinite().all(1))
        return scores.argmax(-1)

    def prefixes(self, rows: Tensor, nodes: Tensor) -> list[Tensor]:
        return prefixes(self.state, self.trees, rows, nodes)


def picked(values: Tensor, rows: Tensor, nodes: Tensor) -> Tensor:
    """(n, V) values[rows, nodes] of (B, N, V), as a copy. Whole rows are copied at once, where indexing by two tensors goes
    number by number: at a large vocabulary that takes several times as long."""
    if not values.is_contiguous():
        return values[rows, nodes]
    return values.flatten(0, 1).index_select(0, rows * values.shape[1] + nodes)


def prefixes(state: State, trees: TokenTree, rows: Tensor, nodes: Tensor) -> list[Tensor]:
    """The committed tokens of each row followed by the drafted path to the node."""
    numbers = torch.arange(trees.num_nodes, device=nodes.device)
    on_path = trees.ancestors[rows, nodes] & (numbers > 0)
    path = (
        torch.where(on_path, numbers, trees.num_nodes).sort(1).values[:, : trees.levels]
    )  # (n, D), parents come first
    drafted = trees.tokens[rows[:, None], path.clamp(max=trees.num_nodes - 1)]
    lengths, steps = state.lengths[rows], torch.arange(path.shape[1], device=nodes.device)
    texts = torch.cat([state.tokens[rows], torch.zeros_like(drafted)], 1)
    texts.scatter_(1, lengths[:, None] + steps, drafted)
    ends = (lengths + on_path.sum(1)).tolist()
    return [text[:end] for text, end in zip(texts, ends, strict=True)]


def top(values: Tensor, k: int) -> Tensor:
    """(n, k) indices of the largest values (n, V), largest first; ties go to the lowest index, which topk does not promise.

    Values are compared as float32, made into integers that also carry the index.
    """
    if k == 1:
        return values.argmax(-1, keepdim=True)
    bits = (values.float() + 0.0).view(torch.int32)  # + 0.0: minus zero and zero are one value
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    index = torch.arange(values.shape[-1], device=values.device)
    return ((ordered << 24) - index).topk(k, sorted=True).indices
