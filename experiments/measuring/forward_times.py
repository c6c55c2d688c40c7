"""What one forward pass costs on this machine: against nodes, at a given context; and how much
memory generate takes."""

import pickle
import time
from collections.abc import Sequence
from statistics import median

import torch

import specdec
from experiments.measuring.memory import PEAK_RESET, peak
from experiments.system.libraries import quiet_transformers, synchronize
from specdec.tree import TokenTree

WARM_UP = 5  # passes of each size; a compiled model has compiled all of them by then


@torch.inference_mode()
def forward_times(
    model: specdec.TransformersLM,
    context: int,
    nodes: Sequence[int],
    rows: int = 1,
    repeats: int = 30,
) -> dict[int, float]:
    """Median seconds of a pass over binary trees of `nodes` nodes (root included), all after
    `context` committed tokens. The sizes take turns, so that a slow moment of the machine meets
    them all."""
    random = torch.Generator().manual_seed(0)
    widest = max(nodes)
    tokens = torch.randint(model.vocabulary, (rows, context + widest), generator=random).to(
        model.device
    )
    session = model.open(rows, context + widest)
    session.read(tokens[:, :context], [context] * rows)
    trees = {}
    for count in nodes:
        parents = (torch.arange(count, device=model.device) - 1) // 2
        parents[0] = -1
        trees[count] = TokenTree(
            tokens[:, context : context + count], parents.expand(rows, -1).contiguous()
        )
    seconds: dict[int, list[float]] = {count: [] for count in nodes}
    for turn in range(repeats + WARM_UP):
        for count, tree in trees.items():
            synchronize(model.device)
            began = time.perf_counter()
            session.score(tree)
            synchronize(model.device)
            if turn >= WARM_UP:
                seconds[count].append(time.perf_counter() - began)
    return {count: median(times) for count, times in seconds.items()}


def peak_memory(target: str, draft: str, dtype: str | None, new_tokens: int) -> int | None:
    """Bytes that generate took at its peak beyond weights, caches and its list of steps. Run it in
    a fresh process; None where the system does not tell (it needs Linux)."""
    quiet_transformers()
    if not PEAK_RESET.exists():
        return None
    model, drafter_model = (
        specdec.load(target, dtype=dtype, device="cpu"),
        specdec.load(draft, dtype=dtype, device="cpu"),
    )
    options = {"drafter": {"name": "small_model", "model": drafter_model}, "ignore_eos": True}
    prompt = [list(range(1, 33))]
    specdec.generate(model, prompt, max_new_tokens=16, **options)
    with peak(model.device) as found:
        out = specdec.generate(model, prompt, max_new_tokens=new_tokens, **options)
    kept = sum(out.report.cache_bytes.values()) + len(pickle.dumps(out.steps))
    return (
        None if found.bytes is None or found.before is None else found.bytes - found.before - kept
    )
