"""A prototype of lookahead decoding (2402.02057) beside lookups, at temperature 0: why it is no
drafter here (docs/drafters.md).

    python -m experiments.lookahead
    python -m experiments.lookahead limit=2 window=5 ngram=4 candidates=5        a trial

A window of `window` columns and `ngram` - 1 levels is decoded in the pass that verifies. Level 0 is
the root and guesses behind it; column i of level l is at position root + i + l, and sees level 0 up
to column i and its own column. What follows the last level completes an n-gram for every column.
N-grams that begin with the root are the candidates of the next pass. Nodes of the window are no
candidates, and neither mask nor positions follow from one parent a node, as those of a
`TokenTree` do: the pass is put together here, over a session's memory.

Letters: W columns, L levels, n nodes, T slots.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.benchmarks.options import Options
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    import torch

    import specdec


@dataclass
class Lookahead(Options):
    """python -m experiments.lookahead: tau and time of a prototype of lookahead decoding beside
    those of lookups with as many nodes."""

    deep_limit: int = 0
    max_new_tokens: int = 96
    # columns of the window
    window: int = 4
    # tokens of an n-gram
    ngram: int = 3
    candidates: int = 4  # n-grams that a pass verifies


class Nodes(NamedTuple):
    """Of one pass, the root first."""

    tokens: list[int]
    depths: list[int]  # positions behind the root
    seen: list[set[int]]  # which nodes each one sees, itself included
    last: list[int]  # the window's last level, by column
    branches: list[list[int]]  # nodes of each candidate


def nodes_of(root: int, levels: list[list[int]], candidates: list[tuple[int, ...]]) -> Nodes:
    """levels: L lists of W tokens; the first of level 0 is the root."""
    tokens, depths, seen = [root], [0], [{0}]
    number: dict[tuple[int, int], int] = {(0, 0): 0}
    for level, row in enumerate(levels):
        for column, token in enumerate(row):
            if (level, column) == (0, 0):
                continue
            number[level, column] = len(tokens)
            above = {number[0, before] for before in range(column + (level > 0))}
            own = {number[before, column] for before in range(level)}
            seen.append(above | own | {len(tokens)})
            tokens.append(token)
            depths.append(level + column)
    branches = []
    for candidate in candidates:
        branch = [len(tokens) + place for place in range(len(candidate))]
        for place, token in enumerate(candidate):
            seen.append({0, *branch[: place + 1]})
            tokens.append(token)
            depths.append(place + 1)
        branches.append(branch)
    last = [number[len(levels) - 1, column] for column in range(len(levels[0]))]
    return Nodes(tokens, depths, seen, last, branches)


def scored(session: Any, nodes: Nodes) -> "torch.Tensor":
    """(n,) the most probable token after each node."""
    import torch

    from specdec.models.memory import Pass, as_it_is
    from specdec.tree import TokenTree

    memory, count = session.memory, len(nodes.tokens)
    root = memory.roots[0]
    tokens = torch.tensor([nodes.tokens])
    plain = memory.scoring(TokenTree(tokens, [[-1] + [0] * (count - 1)]), 0)

    def options() -> dict[str, Any]:
        given = plain.options()
        mask = given["attention_mask"].clone()
        mask[..., root:] = torch.finfo(mask.dtype).min
        for node, seen in enumerate(nodes.seen):
            mask[0, 0, node, [root + other for other in seen]] = 0.0
        positions = root + torch.tensor([nodes.depths])
        return {**given, "attention_mask": mask, "position_ids": positions}

    runner = as_it_is(session.model.runner)
    logits = memory.run(runner, Pass(options), input_ids=tokens).logits
    found: torch.Tensor = logits[0].argmax(-1)
    return found


class Decoded(NamedTuple):
    tokens: list[int]
    rounds: int
    nodes: int  # of all rounds
    seconds: float  # without the prefill


def decoded(target: "specdec.TransformersLM", prompt: list[int], wanted: Lookahead) -> Decoded:
    import numpy as np
    import torch

    most, levels = wanted.max_new_tokens, wanted.ngram - 1
    random = np.random.default_rng(wanted.seed)
    window = [[int(random.choice(prompt)) for _ in range(wanted.window)] for _ in range(levels)]
    pool: dict[int, dict[tuple[int, ...], None]] = defaultdict(dict)
    text, rounds, total = list(prompt), 0, 0
    with torch.inference_mode(), target.open(1, len(prompt) + most + 64) as session:
        session.read(torch.tensor([prompt[:-1]]), [len(prompt) - 1])
        began = time.perf_counter()
        while len(text) - len(prompt) < most and (rounds == 0 or text[-1] not in target.eos_ids):
            window[0][0] = text[-1]
            newest = list(pool[text[-1]])[-wanted.candidates :]
            nodes = nodes_of(text[-1], window, newest)
            best = scored(session, nodes).tolist()
            path: list[int] = []
            for branch in nodes.branches:
                kept = []
                for above, node in zip([0, *branch], branch, strict=False):
                    if nodes.tokens[node] != best[above]:
                        break
                    kept.append(node)
                path = max(path, kept, key=len)
            session.keep(np.array([[*path, -1]]), [len(path)])
            new = [nodes.tokens[node] for node in path] + [best[path[-1] if path else 0]]
            for place, token in enumerate(new):
                if token in target.eos_ids:
                    new = new[: place + 1]
                    break
            text += new
            following = [best[node] for node in nodes.last]
            for column in range(wanted.window):
                gram = (*(row[column] for row in window[1:]), following[column])
                pool[window[0][column]].pop(gram, None)
                pool[window[0][column]][gram] = None  # the newest last
            window = [*window[1:], following]
            rounds, total = rounds + 1, total + len(nodes.tokens)
        seconds = time.perf_counter() - began
    return Decoded(text[len(prompt) :][:most], rounds, total, seconds)


def main(wanted: Lookahead) -> None:
    import pandas as pd

    import specdec
    from experiments.benchmarks.bench import Bench
    from experiments.measuring.intervals import median_interval
    from experiments.terminal.progress import bar
    from experiments.terminal.tables import markdown

    bench = Bench(wanted)
    target, most = bench.target, wanted.max_new_tokens
    drafters = {
        "none": {"name": "none"},
        "ngram": {"name": "ngram", "length": 15, "tree": True},
        "suffix": {"name": "suffix", "nodes": 15},
    }
    tau: dict[str, list[tuple[int, int]]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    nodes, same = 0, 0
    with bar("lookahead", len(bench.prompts)) as advance:
        for prompt in bench.prompts:
            ids = target.tokenizer(prompt.text)["input_ids"]
            outputs = {}
            for name, drafter in drafters.items():
                out = specdec.generate(target, [ids], drafter=drafter, max_new_tokens=most)
                outputs[name] = out.tokens[0].tolist()
                tau[name].append((len(outputs[name]), len(out.steps)))
                decode = sum(step.decode_seconds for step in out.steps)
                seconds[name].append(decode / len(outputs[name]))
            found = decoded(target, ids, wanted)
            tau["lookahead"].append((len(found.tokens), found.rounds))
            seconds["lookahead"].append(found.seconds / len(found.tokens))
            nodes += found.nodes
            same += found.tokens == outputs["none"]
            advance()
    rows = []
    for name, counts in tau.items():
        kept, rounds = map(sum, zip(*counts, strict=True))
        pairs = zip(seconds["none"], seconds[name], strict=True)
        against = median_interval([plain / ours for plain, ours in pairs])
        row = {"way": name, "tau": f"{kept / rounds:.2f}", "against none": against.text(unit="x")}
        rows.append(row)
    print(markdown(pd.DataFrame(rows)))
    rounds = sum(each[1] for each in tau["lookahead"])
    print(
        f"{len(bench.prompts)} prompts, T = 0, {wanted.dtype}; lookahead scores "
        f"{nodes / rounds:.1f} nodes a pass (window {wanted.window}, n-grams of {wanted.ngram}); "
        f"{same} outputs equal those of plain decoding"
    )


if __name__ == "__main__":
    start(main, Lookahead)
