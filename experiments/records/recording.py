"""Prompts -> a record: decode each batch with `wide.py` and write what it saw."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.measuring.play import Play, Played
from experiments.measuring.ways import Ours, Sample
from experiments.records import folder as files
from experiments.records.folder import LAWS, TREES, Batch, Text
from experiments.records.wide import Keeper, Noted, Wide
from specdec import TransformersLM
from specdec.drafting.shape import Shape

METHOD = "record"
BYTES_OF_A_NODE = sum(np.dtype(kind).itemsize for kind in TREES.values())


@dataclass
class Recording:
    """A way to decode (`experiments.measuring.ways.Way`) that notes every round. A batch whose
    files are there already is not decoded again: its texts are read."""

    target: TransformersLM
    drafter: Wide
    options: Mapping[str, Any]  # of specdec.generate: sampling, seed ...
    top: int
    folder: Path
    number: int = -1  # of the batch
    noted: list[Noted] = field(default_factory=list)
    request_ids: Sequence[int] = ()

    @property
    def is_there(self) -> bool:
        return files.files_of(self.folder, self.number).trees.exists()

    def __call__(
        self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int
    ) -> Sample:
        self.number, self.noted, self.request_ids = self.number + 1, [], request_ids
        if self.is_there:
            return Sample([text.tokens for text in files.read(self.folder, self.number).texts], 0.0)
        began = time.perf_counter()
        keeper = Keeper(self.top, self.noted.append)
        ours = Ours(self.target, self.drafter, {**self.options, "verifier": keeper})
        run = ours.run(prompts, request_ids, max_new_tokens)
        drafter = run.groups.all[0].drafter  # the only one: all prompts are sampled alike
        assert isinstance(drafter, Wide)
        keeper.wide = drafter
        run.finish()
        tokens = [row.tolist() for row in run.output().tokens]
        return Sample(tokens, time.perf_counter() - began)

    def batch(self, one: Played) -> Batch:
        """What was noted, in the order of texts, positions and nodes."""
        rows = zip(one.prompts, one.given[METHOD], one.samples[METHOD].tokens, strict=True)
        texts = [
            Text(prompt.index, one.turn, prompt.category, list(given), tokens)
            for prompt, given, tokens in rows
        ]
        return gathered(texts, self.request_ids, self.noted)


def gathered(texts: Sequence[Text], request_ids: Sequence[int], noted: Sequence[Noted]) -> Batch:
    """Rounds as columns: nodes by text, position and number, and laws in the order of nodes."""
    names = ("request", "position", "node", "parent", "depth", "rank", "token", "inner")
    found = {
        name: np.concatenate([one[name] for one in noted]) for name in (*names, "p", "q", "value")
    }
    row_of = {request: row for row, request in enumerate(request_ids)}
    found["text"] = np.array([row_of[int(request)] for request in found["request"]])
    number = np.where(found["inner"], found["inner"].cumsum() - 1, -1)
    order = np.lexsort((found["node"], found["position"], found["text"]))
    found = {name: column[order] for name, column in found.items()}
    found["tree"] = np.cumsum(found["node"] == 0) - 1
    inner, which = found["inner"], number[order]
    laws = {}
    if any("law_p" in one for one in noted):
        whole = {name: np.concatenate([one[name] for one in noted if name in one]) for name in LAWS}
        laws = {name: np.ascontiguousarray(column[which[inner]]) for name, column in whole.items()}
    has_law = inner if laws else np.zeros_like(inner)
    found["law"] = np.where(has_law, has_law.cumsum() - 1, -1)
    return Batch(texts, {name: found[name].astype(kind) for name, kind in TREES.items()}, laws)


def record(
    play: Play, way: Recording, batch_done: Callable[[], None]
) -> tuple[dict[str, Any], list[Text]]:
    """Decode and write every batch that is not there. Returns what record.json says of it, and the
    texts."""
    began, texts = time.perf_counter(), list[Text]()
    counts = dict.fromkeys(("trees", "nodes", "laws", "bytes"), 0)
    for one in play({METHOD: way}, 0):
        if way.is_there:
            batch = files.read(way.folder, way.number)
        else:
            batch = way.batch(one)
            files.write(way.folder, way.number, batch)
        texts += batch.texts
        counts["trees"] += batch.trees
        counts["nodes"] += len(batch.nodes["node"])
        counts["laws"] += len(batch.laws.get("law_p", ()))
        present = files.files_of(way.folder, way.number)
        counts["bytes"] += sum(path.stat().st_size for path in present if path.exists())
        batch_done()
    facts = {"batches": way.number + 1, "texts": len(texts), **counts}
    return {**facts, "seconds": time.perf_counter() - began}, texts


def most_bytes(shape: Shape, texts: int, tokens: int, every: int, top: int, greedy: bool) -> int:
    """What a record may take, before compression."""
    trees = texts * -(-tokens // every)
    laws = 0 if greedy else inner_nodes(shape) * (8 * top + 8)
    return trees * ((1 + shape.max_nodes) * BYTES_OF_A_NODE + laws)


def inner_nodes(shape: Shape) -> int:
    """How many nodes of a tree have children, at most."""
    if shape.tree is not None:
        return len({path[:-1] for path in shape.tree.paths})
    if shape.by_value:
        return min(shape.max_nodes, 1 + (shape.depth - 1) * shape.expand)
    inner, level = 0, 1
    for width in shape.children:
        if isinstance(width, int):
            inner, level = inner + level, level * width
        else:
            inner, level = inner + sum(each > 0 for each in width), sum(width)
    return inner
