"""Weights set to zero, so that a copy of a target drafts for it.

magnitude  the smallest weights go
wanda      the smallest products of a weight and the size of its input, |W| * ||x||, go (2306.11695,
           equation 1); sizes are measured on text, layer by layer, behind the layers pruned before

Weights are compared within an output of a linear layer (a row), or within each group of four
inputs. Embedding, norms and LM head stay whole.

Letters: O outputs, I inputs.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.models.layers import decoder_layers
from specdec.models.quantized import is_quantized

METHODS = ("magnitude", "wanda")
PATTERNS = ("unstructured", "2:4")


def check(method: str, pattern: str, sparsity: float) -> None:
    """Raises ValueError for settings that are none, or do not go together."""
    for name, value, known in (("method", method, METHODS), ("pattern", pattern, PATTERNS)):
        if value not in known:
            raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is a share of the weights, from 0 to below 1; got {sparsity!r}")
    if pattern == "2:4" and sparsity != 0.5:
        raise ValueError(
            f"pattern=2:4 sets two of four weights to zero, sparsity=0.5; got {sparsity!r}"
        )


@torch.inference_mode()
def pruned(
    model: PreTrainedModel, method: str, pattern: str, sparsity: float, texts: Sequence[Tensor] = ()
) -> PreTrainedModel:
    """A copy with zeros. texts: token ids (B, T) for `wanda`.

    Raises ValueError for what `check` refuses, and for a model whose weights are packed.
    """
    check(method, pattern, sparsity)
    if is_quantized(model):
        raise ValueError(
            f"{type(model).__name__} is quantised; prune the weights that it was made from"
        )
    made = copy.deepcopy(model)
    for layer in decoder_layers(made):
        linear = [each for each in layer.modules() if isinstance(each, nn.Linear)]
        sizes = dict.fromkeys(linear, 1.0) if method == "magnitude" else inputs(made, linear, texts)
        for each in linear:
            score = each.weight.abs().float() * sizes[each]
            each.weight.masked_fill_(smallest(score, pattern, sparsity), 0)
    return made


def inputs(
    model: PreTrainedModel, linear: Sequence[nn.Linear], texts: Sequence[Tensor]
) -> dict[nn.Linear, Any]:
    """(I,) for each layer: the root of the sum of squares of every input over the text."""
    squares: dict[nn.Linear, Tensor] = {}

    def note(layer: Any, given: tuple[Tensor, ...]) -> None:
        found = given[0].flatten(0, -2).double().square().sum(0)
        squares[layer] = squares.get(layer, 0) + found

    with _watched(linear, note):
        for ids in texts:
            model(input_ids=ids, use_cache=False)
    return {layer: squares[layer].sqrt().float() if layer in squares else 1.0 for layer in linear}


@contextmanager
def _watched(linear: Sequence[nn.Linear], note: Any) -> Iterator[None]:
    hooks = [each.register_forward_pre_hook(note) for each in linear]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def smallest(score: Tensor, pattern: str, sparsity: float) -> Tensor:
    """(O, I) bool: which weights go, `sparsity` of each row, or two of every four inputs. Of equal
    scores the first goes. Raises ValueError where inputs cannot be grouped by four."""
    outputs, size = score.shape
    if pattern == "2:4":
        if size % 4:
            raise ValueError(f"pattern=2:4 needs inputs in fours; a layer has {size}")
        score = score.view(outputs * size // 4, 4)
    count = round(sparsity * score.shape[1])
    order = score.argsort(dim=1, stable=True)[:, :count]
    found = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True)
    return found.view(outputs, size)


def zeros(model: PreTrainedModel) -> float:
    """The share of weights of the decoder's linear layers that are zero."""
    weights = [
        each.weight
        for layer in decoder_layers(model)
        for each in layer.modules()
        if isinstance(each, nn.Linear)
    ]
    zero = sum(int((weight == 0).sum()) for weight in weights)
    return zero / max(1, sum(weight.numel() for weight in weights))
