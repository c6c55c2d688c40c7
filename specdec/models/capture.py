"""A compiled pass as a CUDA graph: one launch instead of one per kernel.

Inputs are copied into buffers that stay where they are, and so do the memory's slots. Compiling
with `mode="reduce-overhead"` would skip graphs that write to their inputs, which a pass does to its
memory, so the graph is captured here.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Function = Callable[..., Any]


class Captured:
    """`function(*arguments)`, captured for arguments of these shapes. What it returns is a copy."""

    def __init__(self, function: Function, arguments: tuple[Any, ...]) -> None:
        flat, self._spec = tree_flatten(arguments)
        self._buffers: list[Tensor] = [each.clone() for each in flat]
        self._replay, self._out = record(function, tree_unflatten(self._buffers, self._spec))

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        for buffer, value in zip(self._buffers, tree_flatten(arguments)[0], strict=True):
            buffer.copy_(value)
        self._replay()
        return tree_map(torch.clone, self._out)


def record(function: Function, arguments: tuple[Any, ...]) -> tuple[Callable[[], None], Any]:
    """Capture one call: what replays it, and where its results are afterwards."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # a warm-up, as capturing asks for
        function(*arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        out = function(*arguments)
    return graph.replay, out


@cache
def _pool() -> Any:
    """One memory pool for all graphs, which never run at the same time on a stream."""
    return torch.cuda.graph_pool_handle()
