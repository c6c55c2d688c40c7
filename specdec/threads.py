"""How the programs (the `specdec` command, experiments.*) share a machine with others: by as many
threads as make the target's passes fastest. The library never calls this: its host process decides
for itself.

At every one of some hundred products of a pass, threads wait for one another. On a busy machine one
of them has often lost its processor, and the others spin. Whether a second thread helps depends on
the model, the machine and its other processes, so it is measured when the target is loaded.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from statistics import mean
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:  # `settle` comes before torch
    from specdec.models.language_model import TransformersLM

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Tells processes of ours that the user has set no number: launchers set OMP_NUM_THREADS in theirs.
OPEN = "SPECDEC_THREADS_OPEN"

LARGE = 2**30  # bytes of weights: measuring a larger model takes seconds, and it gains by threads
CLEARLY = 0.02  # of a pass: what more threads have to save
CONTEXT, NODES = 16, 6  # tokens before the measured passes; nodes of the larger of the two trees
TURNS, LEAST = 8, 3  # how often each number is measured: at most, and however long it takes
RUNS = 3  # at a time: a thread that begins anew is seldom interrupted at once
BUDGET = 0.5  # seconds after which no further turn begins

# Of the process, as torch's number of threads is.
_found: "WeakKeyDictionary[TransformersLM, dict[int, float]]" = WeakKeyDictionary()
_measured: dict[int, float] = {}


def settle() -> None:
    """Note that the user has set no number, for processes that this program starts. Nothing where
    torch is loaded: it has read the environment by then."""
    if "torch" not in sys.modules and not any(name in os.environ for name in COUNTS):
        os.environ[OPEN] = "1"


def chosen_by_user() -> bool:
    """Whether the environment of the program that was started sets a number."""
    return OPEN not in os.environ and any(name in os.environ for name in COUNTS)


def choose(count: int | None) -> None:
    """Threads of torch from now on. None: those that it began with."""
    import torch

    usual = _default()
    _measured.clear()
    wanted = usual if count is None else count
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)


def fit(target: "TransformersLM") -> None:
    """The number of threads that makes the target's passes fastest now, from 1 to those that torch
    began with. Call it before anything is compiled: compiled kernels keep their number.

    A target is measured once in a process. It is not measured, and torch's number stays, where the
    user has set one, on other devices than processors, above `LARGE`, for layers that are fetched
    from a disk, and where several processes hold the target: their numbers have to agree.
    """
    choose(None)
    counts = candidates(_default())
    weights = sum(each.numel() * each.element_size() for each in target.model.parameters())
    elsewhere = target.device.type != "cpu" or target.ranks > 1 or bool(target.spread)
    if len(counts) == 1 or chosen_by_user() or elsewhere or weights > LARGE:
        return
    if target not in _found:
        with passes(target) as run:
            _found[target] = timed(run, counts)
    count = fastest(_found[target])
    choose(count)
    _measured.update(_found[target])


def measured() -> dict[int, float]:
    """Seconds of the measured passes by number of threads, of the last target; empty where nothing
    was measured."""
    return dict(_measured)


def candidates(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def fastest(seconds: Mapping[int, float]) -> int:
    """The number with the shortest time; a larger one only where it is clearly faster than the
    smaller ones."""
    first, *larger = sorted(seconds)
    for count in larger:
        if seconds[count] < (1 - CLEARLY) * seconds[first]:
            first = count
    return first


def timed(
    run: Callable[[], object],
    counts: Sequence[int],
    clock: Callable[[], float] = time.perf_counter,
    choose: Callable[[int], None] = choose,
) -> dict[int, float]:
    """Mean seconds of `run` by number of threads: where others are busy, few passes take most of
    the time. Numbers take turns, up and down, so that a slow moment of the machine meets them
    all."""
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    began = clock()
    for turn in range(TURNS):
        if turn >= LEAST and clock() - began > BUDGET:
            break
        for count in counts if turn % 2 else reversed(counts):
            choose(count)
            run()  # threads begin
            start = clock()
            for _ in range(RUNS):
                run()
            seconds[count].append((clock() - start) / RUNS)
    return {count: mean(times) for count, times in seconds.items()}


@contextmanager
def passes(target: "TransformersLM") -> "Iterator[Callable[[], None]]":
    """Passes as decoding runs them, uncompiled: one over a node, one over a chain."""
    import torch

    from specdec.tree import TokenTree

    context = max(1, min(CONTEXT, target.context - NODES))
    tokens = (torch.arange(context + NODES) % target.vocabulary)[None]
    roots, chain = tokens[:, context], tokens[:, context:]
    trees = [TokenTree.root(roots), TokenTree(chain, [list(range(-1, NODES - 1))])]
    with torch.inference_mode(), target.open(1, context + NODES, compile=False) as session:
        session.read(tokens[:, :context], [context])

        def run() -> None:
            for tree in trees:
                session.score(tree)

        yield run


@cache
def _default() -> int:
    """Torch's own number, as it was before the first choice."""
    import torch

    return torch.get_num_threads()
