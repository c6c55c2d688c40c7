"""The target drafts for itself with some attention and MLP sublayers left out. No training, no second model, no second cache.

Draft & Verify 2309.08168, SWIFT 2410.06916. The kept sublayers are the target's own and read the target's own cache; what they
write behind a row's length is scratch that the verifying pass overwrites, so there is nothing to keep in step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from specdec import Drafter, LanguageModel, State, TokenTree
from specdec.chance import Draws
from specdec.part import check_own_layers
from specdec.shape import FEW_VARIANTS, STOPPED, Shape
from specdec.stopping import Stop


class LayerSkip(Drafter):
    """Drafts chains and trees (`specdec.shape.Shape`) with a part of the target.

    skip    {layers: 6, attention: [1, 3], mlp: [2, 3]}: which layers lose their attention, which their MLP, and of how many
            layers the set speaks; or the YAML file that `python -m experiments.search_layers` has written
    """

    weights = frozenset({"skip"})
    variants = (*FEW_VARIANTS, {"depth": 2, "draw": "adaptive", "nodes": 3}, *STOPPED)

    def __init__(
        self,
        skip: Mapping[str, Any] | str | Path,
        depth: int = 4,
        branching: int | Sequence[int] = 1,
        draw: str = "auto",
        nodes: int | None = None,
        stop: Stop | Mapping[str, float] | None = None,
    ) -> None:
        self.shape = Shape(depth, branching, draw, nodes, stop=stop)
        self.max_nodes, self.chain, self.fixed_width = self.shape.slots, self.shape.chain, self.shape.fixed_width
        self.layers, self.attention, self.mlp = _read(skip)
        self.target: Any = None

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "LayerSkip":
        return cls(**{**arguments, "skip": {"layers": getattr(target, "layers", 2), "attention": [1], "mlp": [0]}})

    def begin(self, target: Any, state: State) -> None:
        self.law = self.shape.law(state.sampling.greedy)
        if target is self.target:
            return
        check_own_layers(target, "layer_skip")
        if target.layers != self.layers:
            raise ValueError(
                f"layer_skip's set of sublayers is for a target of {self.layers} layers, {target.name} has {target.layers}; search "
                "one with python -m experiments.search_layers target=... and give its file as skip"
            )
        self.model = target.without(self.attention, self.mlp)
        self.target = target

    def propose(self, state: State, chance: Draws) -> TokenTree:
        root = TokenTree.root(state.roots, self.law)
        if state.deepest < 1:
            return root
        return self.shape.grow(self.model.score(root), self.model.score, state, chance).tree


def _read(skip: Mapping[str, Any] | str | Path) -> tuple[int, list[int], list[int]]:
    """(layers of the target, layers without attention, layers without MLP)."""
    where = "skip"
    if isinstance(skip, (str, Path)):
        where = str(skip)
        try:
            skip = yaml.safe_load(Path(skip).expanduser().read_text())
        except OSError as error:
            raise ValueError(
                f"skip names a file that cannot be read ({error}); python -m experiments.search_layers writes one"
            ) from error
    if not isinstance(skip, Mapping) or not {"layers", "attention", "mlp"} <= set(skip):
        raise ValueError(
            f"{where} must give layers (how many the target has), attention and mlp (lists of layer numbers); got {skip!r}"
        )
    if not all(isinstance(skip[part], Sequence) and not isinstance(skip[part], str) for part in ("attention", "mlp")):
        raise ValueError(
            f"{where}: attention and mlp are lists of layer numbers, got {skip['attention']!r} and {skip['mlp']!r}"
        )
    lists = [list(skip["attention"]), list(skip["mlp"])]
    for number in [skip["layers"], *lists[0], *lists[1]]:
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{where}: layers, attention and mlp are integers, got {number!r}")
    return skip["layers"], lists[0], lists[1]
