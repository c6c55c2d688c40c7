"""Which sublayers layer_skip leaves out of a target: a greedy search for agreement per cost on calibration text.

python -m experiments.search_layers
python -m experiments.search_layers target=FOLDER text=my_notes.txt temperature=1.0 output=skip.yaml

From the whole model on, each step leaves out one more attention, MLP or layer, whichever leaves the best predicted speed-up, until one
layer is left; the best set on the way wins. Agreement is measured as in use: the whole model has read the text before, the part goes on for
`depth` tokens of it, and 1 - TV(p, q) of each is accepted. Costs are measured forward passes. (SWIFT 2410.06916 searches by matched
tokens and random steps; a greedy path needs no luck for the few layers that there are.)

Letters: B places in the text, D depth, V vocabulary.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from experiments import options, progress
from experiments.training.text import Stream, documents, encode
from specdec.language_model import TransformersLM
from specdec.load import load
from specdec.tree import TokenTree


@dataclass
class Search:
    """python -m experiments.search_layers: the set of sublayers that layer_skip leaves out."""

    target: str = "demo"
    text: str = "stdlib"  # or a folder, a text file, a JSONL file with a "text" field; held-out documents are not read
    patterns: list[str] = field(default_factory=lambda: ["*.py", "*.md", "*.txt"])
    temperature: float = 0.6
    depth: int = 6  # tokens that a chain drafts at most
    places: int = 64  # in the text, in groups of `batch`
    batch: int = 32
    context: int = 64  # tokens before each
    seed: int = 0
    output: str = "outputs/layer_skip.yaml"


@dataclass(frozen=True)
class Skip:
    """A set of sublayers, and what it is worth."""

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()
    agreement: tuple[float, ...] = ()  # per depth, 1 - TV(p, q)
    cost: float = 1.0  # of a pass, that of the whole model over one token being 1
    node: float = 0.0  # what each further node adds to the whole model's pass

    def best(self) -> tuple[float, int]:
        """The predicted speed-up and the depth of the chain that gives it: tau / (1 + depth x (cost + node)), where the expected
        accepted tokens are the sum of the products of the agreements down to each depth."""
        tau, reached, found = 1.0, 1.0, (1.0, 0)
        for depth, agreement in enumerate(self.agreement, 1):
            reached *= agreement
            tau += reached
            found = max(found, (tau / (1 + depth * (self.cost + self.node)), depth))
        return found


class Calibration:
    """Places in a text, what the whole model says there, and what its passes cost."""

    def __init__(self, target: TransformersLM, texts: list[Tensor], context: int, temperature: float) -> None:
        self.target, self.texts, self.context, self.temperature = target, texts, context, temperature
        self.depth = texts[0].shape[1] - context
        self.p = [self._law(ids, target) for ids in texts]
        self.costs = self._costs()

    def agreement(self, no_attention: Collection[int], no_mlp: Collection[int]) -> tuple[float, ...]:
        part = self.target.without(no_attention, no_mlp)
        laws = [self._law(ids, part) for ids in self.texts]
        shared = [torch.minimum(p, q).sum(-1) for p, q in zip(self.p, laws, strict=True)]
        return tuple(torch.cat(shared).mean(0).tolist())

    def cost(self, no_attention: Collection[int], no_mlp: Collection[int]) -> float:
        """Of a pass without these sublayers. Sublayers of one kind cost the same; a layer that loses both saves its norms too."""
        both = len(set(no_attention) & set(no_mlp))
        saved = (len(no_attention) - both) * self.costs["attention"] + (len(no_mlp) - both) * self.costs["mlp"]
        return 1 - saved - both * self.costs["layer"]

    @torch.inference_mode()
    def _law(self, ids: Tensor, model: Any) -> Tensor:
        """(B, D, V) laws at the nodes of chains that go on after the context, which the whole model has read."""
        target, rows = self.target, len(ids)
        target.open(rows, ids.shape[1])
        target.read(ids[:, : self.context - 1], torch.full((rows,), self.context - 1))
        logits = _logits(model.score(TokenTree.chain(ids[:, self.context - 1 : -1], None)))
        return (logits.float() / self.temperature).softmax(-1)

    @torch.inference_mode()
    def _costs(self, repeats: int = 40) -> dict[str, float]:
        """Shares of a pass over one token that leaving out one attention, MLP or layer saves, measured where all of them, or all
        layers but one, are left out; and what a further node adds. The shortest times, since noise only adds."""
        target, layers = self.target, self.target.layers
        ids = self.texts[0][:1]
        target.open(1, ids.shape[1] + 1)
        target.read(ids[:, : self.context], torch.tensor([self.context]))
        root, chain, every = TokenTree.root(ids[:, -1]), TokenTree.chain(ids[:, self.context :], None), range(layers)
        models = {
            "whole": target.without((), ()),
            "attention": target.without(every, ()),
            "mlp": target.without((), every),
        }
        models |= {"layer": target.without(every[1:], every[1:]), "node": models["whole"]}
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(repeats):
            for name, model in models.items():
                target.place.opened().roots = None
                began = time.perf_counter()
                model.score(chain if name == "node" else root)
                if target.device.type == "cuda":
                    torch.cuda.synchronize(target.device)
                seconds[name].append(time.perf_counter() - began)
        share = {name: min(times) / min(seconds["whole"]) for name, times in seconds.items()}
        return {
            "attention": max(0.0, 1 - share["attention"]) / layers,
            "mlp": max(0.0, 1 - share["mlp"]) / layers,
            "layer": max(0.0, 1 - share["layer"]) / max(1, layers - 1),
            "node": max(0.0, share["node"] - 1) / max(1, chain.num_nodes - 1),
        }


def _logits(scored: Any) -> Tensor:
    """The whole model answers with scores, a part with logits."""
    return scored if isinstance(scored, Tensor) else scored.logits


def search(calibration: Calibration, layers: int) -> list[Skip]:
    """The greedy path: sets of sublayers, each with more than the one before. The first leaves out nothing."""
    node = calibration.costs["node"]
    path = [Skip(agreement=calibration.agreement((), ()), node=node)]
    with progress.bar("sets of sublayers", layers * (3 * layers + 1)) as advance:
        while True:
            tried = []
            for attention, mlp in _next(path[-1], layers):
                agreement = calibration.agreement(attention, mlp)
                tried.append(Skip(attention, mlp, agreement, calibration.cost(attention, mlp), node))
                advance()
            if not tried:
                return path
            path.append(max(tried, key=lambda skip: skip.best()[0]))


def _next(skip: Skip, layers: int) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
    """What leaves out one more attention, MLP or layer; some layer stays."""
    for layer in range(layers):
        attention, mlp = skip.attention | {layer}, skip.mlp | {layer}
        for pair in {(attention, skip.mlp), (skip.attention, mlp), (attention, mlp)} - {(skip.attention, skip.mlp)}:
            if len(pair[0] & pair[1]) < layers:
                yield pair


def read_places(target: TransformersLM, wanted: Search) -> list[Tensor]:
    """Groups of rows (batch, context + depth) from documents that are not held out."""
    if target.tokenizer is None:
        raise ValueError(f"{wanted.target} has no tokenizer, so no text can be read for it")
    seen = [one for one in documents(wanted.text, wanted.patterns) if not one.held_out(0.03)]
    stream: Stream = encode(seen[:: max(1, len(seen) // 200)], target.tokenizer)
    length, groups = wanted.context + wanted.depth, -(-wanted.places // wanted.batch)
    return [
        torch.from_numpy(stream.windows(length, wanted.batch, wanted.seed, group)).to(target.device)
        for group in range(groups)
    ]


def main() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    wanted = options.parse(Search)
    target = load(wanted.target)
    calibration = Calibration(target, read_places(target, wanted), wanted.context, wanted.temperature)
    path = search(calibration, target.layers)
    print(f"{'without attention':20} {'without MLP':20} agreement  cost  depth  predicted speed-up")
    for skip in path:
        speed_up, depth = skip.best()
        agreement = sum(skip.agreement) / len(skip.agreement)
        names = [",".join(map(str, sorted(part))) or "-" for part in (skip.attention, skip.mlp)]
        print(f"{names[0]:20} {names[1]:20} {agreement:9.3f} {skip.cost:5.2f} {depth:6} {speed_up:19.3f}")
    chosen = max(path[1:], key=lambda skip: skip.best()[0])
    speed_up, depth = chosen.best()
    found = {
        "layers": target.layers,
        "attention": sorted(chosen.attention),
        "mlp": sorted(chosen.mlp),
        "agreement": [round(share, 4) for share in chosen.agreement],
        "cost": round(chosen.cost, 4),
        "depth": depth,
        "predicted_speed_up": round(speed_up, 4),
        "searched": {
            "target": wanted.target,
            "text": wanted.text,
            "temperature": wanted.temperature,
            "seed": wanted.seed,
        },
    }
    place = Path(wanted.output)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(yaml.safe_dump(found, sort_keys=False, default_flow_style=None))
    print(f"{place}: drafter=layer_skip drafter.skip={place} drafter.depth={max(depth, 1)}")


if __name__ == "__main__":
    main()
