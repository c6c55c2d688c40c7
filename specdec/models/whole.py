"""A whole draft as one function of tensors: what is new is read, tokens are drawn, their nodes are
scored, and so on for all levels. Compiled, it costs one dispatch instead of one for every pass and
every draw.

The Python that drafts is the same as without: it is run once on tensors that record what is done to
them (`traced`), and finds its passes in `Passes`, where lengths are tensors.

Letters: B rows, n nodes of one pass.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import pad

from specdec.models.masks import WIDEST, tree_of
from specdec.tree import Structure, TokenTree

Function = Callable[..., Any]


class Passes:
    """Passes of one draft, inside the traced function. Tokens are stored behind `first` (B,), and
    `counts` (B,) of those that are read are real."""

    def __init__(
        self, one_pass: Function, first: Tensor, counts: Tensor, memory: tuple[Any, ...]
    ) -> None:
        self._one_pass, self._memory = one_pass, memory  # its last arguments
        self.first, self.counts = first, counts

    def read(self, **inputs: Tensor) -> Tensor:
        """Commit what is new, padded to (B, n, ...), the roots of the coming trees last. What the
        model says after the roots, (B, 1, ...)."""
        nodes = next(iter(inputs.values())).shape[1]
        structure = Structure.chain(len(self.first), nodes, self.first.device)
        out = self._run(structure, 0, self.first, self.counts, inputs)
        return self.newest(out)

    def newest(self, values: Tensor) -> Tensor:
        """(B, 1, ...) the last real one of values (B, n, ...)."""
        last = (self.counts - 1).clamp(min=0)
        return values[torch.arange(len(values), device=values.device), last][:, None]

    def score(self, tree: TokenTree, start: int, **inputs: Tensor) -> Tensor:
        """What the model says at nodes >= start, (B, n, ...), as in `Session.score`."""
        roots = self.first + self.counts - 1
        count = torch.full((1,), tree.num_nodes - start, device=roots.device)
        return self._run(tree.structure, start, roots, count, inputs)

    def together(self, counts: Tensor, **inputs: Tensor) -> Tensor:
        """What the model says at tokens (B, n, ...) that see the text and one another, earlier and
        later ones alike; the first `counts` (B,) of each row are real."""
        rows, nodes = next(iter(inputs.values())).shape[:2]
        number = torch.arange(WIDEST, device=counts.device).expand(rows, -1)
        seen = (number < counts[:, None])[:, None].expand(-1, nodes, -1)
        return self._pass((number, seen), 0, self.first, counts, inputs)

    def _run(
        self,
        structure: Structure,
        start: int,
        first: Tensor,
        counts: Tensor,
        inputs: dict[str, Tensor],
    ) -> Tensor:
        shape = tree_of(structure, start, structure.num_nodes - start)
        return self._pass(shape, start, first, counts, inputs)

    def _pass(
        self,
        shape: tuple[Tensor, Tensor],
        start: int,
        first: Tensor,
        counts: Tensor,
        inputs: dict[str, Tensor],
    ) -> Tensor:
        where = torch.cat([first, torch.full((1,), start, device=first.device), counts])
        out = self._one_pass(inputs, *shape, where, *self._memory)
        scores: Tensor = out if isinstance(out, Tensor) else out[0]
        return scores


class Piece(NamedTuple):
    """A draft that may be run as a whole. key: whatever its function depends on besides tensors."""

    key: Hashable
    counts: list[int]  # new tokens of each row, which are committed
    inputs: dict[str, Tensor]
    nodes: int  # that are stored from the roots on
    steps: int  # passes
    make: Callable[[Passes, dict[str, Tensor]], tuple[list[Tensor], Any]]
    """Tensors, and what is known besides them whatever they are."""

    root: bool = True  # whether the last new token of a row is the root of its tree


class Whole(NamedTuple):
    """A compiled piece."""

    function: Function
    facts: list[Any]  # what it says besides its tensors


def traced(function: Function, arguments: tuple[Any, ...]) -> Function:
    """What `function` does to these arguments, for others of the same shapes. Raises RuntimeError
    where it looks at values."""
    recorded: Function = make_fx(function, tracing_mode="real")(*arguments)
    return recorded


def padded(values: Tensor, nodes: int) -> Tensor:
    """(B, nodes, ...) of (B, n, ...): zeros follow."""
    missing = nodes - values.shape[1]
    if missing == 0:
        return values.contiguous()
    return pad(values, (0, 0) * (values.ndim - 2) + (0, missing))
