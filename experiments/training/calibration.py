"""How well a part of a target agrees with the whole, what it costs, and the greedy search for the
best part (layer_skip).

Letters: B places in the text, D depth, V vocabulary.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.system.libraries import synchronize
from experiments.terminal import progress
from experiments.training.documents import documents
from experiments.training.text import Stream, encode
from specdec.interfaces import Part
from specdec.models.language_model import TransformersLM
from specdec.tree import TokenTree


@dataclass(frozen=True)
class Skip:
    """A set of sublayers, and what it is worth."""

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
    agreement: tuple[float, ...] = ()  # per depth, 1 - TV(p, q)
    cost: float = 1.0  # of a pass, that of the whole model over one token being 1
    node: float = 0.0  # what each further node adds to the whole model's pass

    def best(self) -> tuple[float, int]:
        """The predicted speed-up and the depth of the chain that gives it: tau / (1 + depth x (cost
        + node)), where the expected accepted tokens are the sum of the products of the agreements
        down to each depth."""
        tau, reached, found = 1.0, 1.0, (1.0, 0)
        for depth, agreement in enumerate(self.agreement, 1):
            reached *= agreement
            tau += reached
            found = max(found, (tau / (1 + depth * (self.cost + self.node)), depth))
        return found


class Calibration:
    """Places in a text, what the whole model says there, and what its passes cost."""

    def __init__(
        self, target: TransformersLM, texts: list[Tensor], context: int, temperature: float
    ) -> None:
        self.target, self.texts, self.context, self.temperature = (
            target,
            texts,
            context,
            temperature,
        )
        self.depth = texts[0].shape[1] - context
        self.p = [self._law(ids, None) for ids in texts]
        self.costs = self._costs()

    def agreement(
        self, no_attention: Collection[int], no_mlp: Collection[int]
    ) -> tuple[float, ...]:
        part = self.target.without(no_attention, no_mlp)
        laws = [self._law(ids, part) for ids in self.texts]
        shared = [torch.minimum(p, q).sum(-1) for p, q in zip(self.p, laws, strict=True)]
        return tuple(torch.cat(shared).mean(0).tolist())

    def cost(self, no_attention: Collection[int], no_mlp: Collection[int]) -> float:
        """Of a pass without these sublayers. Sublayers of one kind cost the same; a layer that
        loses both saves its norms too."""
        both = len(set(no_attention) & set(no_mlp))
        saved = (len(no_attention) - both) * self.costs["attention"] + (
            len(no_mlp) - both
        ) * self.costs["mlp"]
        return 1 - saved - both * self.costs["layer"]

    @torch.inference_mode()
    def _law(self, ids: Tensor, part: Part | None) -> Tensor:
        """(B, D, V) laws at the nodes of chains that go on after the context, which the whole model
        has read; part: some of its layers, None: all."""
        chain = TokenTree.chain(ids[:, self.context - 1 : -1], None)
        with self.target.open(len(ids), ids.shape[1]) as session:
            session.read(ids[:, : self.context - 1], [self.context - 1] * len(ids))
            scores = session.score(chain) if part is None else part.score(session, chain)
        return (scores.logits.float() / self.temperature).softmax(-1)

    @torch.inference_mode()
    def _costs(self, repeats: int = 40) -> dict[str, float]:
        """Shares of a pass over one token that leaving out one attention, MLP or layer saves,
        measured where all of them, or all layers but one, are left out; and what a further node
        adds. The shortest times, since noise only adds."""
        target, layers = self.target, self.target.layers
        ids = self.texts[0][:1]
        session = target.open(1, ids.shape[1] + 1)
        session.read(ids[:, : self.context], [self.context])
        root, chain, every = (
            TokenTree.root(ids[:, -1]),
            TokenTree.chain(ids[:, self.context :], None),
            range(layers),
        )
        models = {
            "whole": target.without((), ()),
            "attention": target.without(every, ()),
            "mlp": target.without((), every),
        }
        models |= {"layer": target.without(every[1:], every[1:]), "node": models["whole"]}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(repeats):
            for name, model in models.items():
                began = time.perf_counter()
                model.score(session, chain if name == "node" else root)
                synchronize(target.device)
                seconds[name].append(time.perf_counter() - began)
        share = {name: min(times) / min(seconds["whole"]) for name, times in seconds.items()}
        return {
            "attention": max(0.0, 1 - share["attention"]) / layers,
            "mlp": max(0.0, 1 - share["mlp"]) / layers,
            "layer": max(0.0, 1 - share["layer"]) / max(1, layers - 1),
            "node": max(0.0, share["node"] - 1) / max(1, chain.num_nodes - 1),
        }


def search(calibration: Calibration, layers: int) -> list[Skip]:
    """The greedy path: sets of sublayers, each with more than the one before. The first leaves out
    nothing."""
    node = calibration.costs["node"]
    path = [Skip(agreement=calibration.agreement((), ()), node=node)]
    with progress.bar("sets of sublayers", layers * (3 * layers + 1)) as advance:
        while True:
            tried = []
            for attention, mlp in _next(path[-1], layers):
                agreement = calibration.agreement(attention, mlp)
                tried.append(
                    Skip(attention, mlp, agreement, calibration.cost(attention, mlp), node)
                )
                advance()
            if not tried:
                return path
            path.append(max(tried, key=lambda skip: skip.best()[0]))


def _next(skip: Skip, layers: int) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
    """What leaves out one more attention, MLP or layer; some layer stays."""
    for layer in range(layers):
        attention, mlp = skip.attention | {layer}, skip.mlp | {layer}
        for pair in {(attention, skip.mlp), (skip.attention, mlp), (attention, mlp)} - {
            (skip.attention, skip.mlp)
        }:
            if len(pair[0] & pair[1]) < layers:
                yield pair


def read_places(
    target: TransformersLM,
    text: str,
    patterns: list[str],
    length: int,
    places: int,
    batch: int,
    seed: int,
    field: str = "text",
) -> list[Tensor]:
    """Groups of rows (batch, length) from documents that are not held out."""
    if target.tokenizer is None:
        raise ValueError(f"{target.name} has no tokenizer, so no text can be read for it")
    seen = [one for one in documents(text, patterns, field=field) if not one.held_out(0.03)]
    stream: Stream = encode(seen[:: max(1, len(seen) // 200)], target.tokenizer)
    return [
        torch.from_numpy(stream.windows(length, batch, seed, group)).to(target.device)
        for group in range(-(-places // batch))
    ]
