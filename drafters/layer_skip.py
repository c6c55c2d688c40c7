"""The target drafts for itself with some attention and MLP sublayers left out. No training, no
second model, no second cache.

Draft & Verify 2309.08168, SWIFT 2410.06916. The kept sublayers are the target's own and read the
target's own cache; what they write behind a row's length is scratch that the verifying pass
overwrites, so there is nothing to keep in step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import yaml
from torch import Tensor

from specdec import LanguageModel, Sampling, State, TokenTree
from specdec.chance import Draws
from specdec.drafting.shape import FEW_VARIANTS, STOPPED, Shape, ShapeArguments, TreeDrafter
from specdec.interfaces import lends_layers


class LayerSkip(TreeDrafter):
    """Drafts chains and trees (`specdec.drafting.shape.Shape`) with a part of the target.

    skip    {layers: 6, attention: [1, 3], mlp: [2, 3]}: which layers lose their attention, which
            their MLP, and of how many layers the set speaks; or the YAML file that `python -m
            experiments.search_layers` has written
    """

    weight_arguments = frozenset({"skip"})
    variants = (*FEW_VARIANTS, {"depth": 2, "draw": "adaptive", "nodes": 3}, *STOPPED)

    def __init__(
        self, skip: Mapping[str, Any] | str | Path, **shape: Unpack[ShapeArguments]
    ) -> None:
        super().__init__(Shape.asked(shape, depth=4))
        self.max_nodes = self.shape.slots  # what it scores is in the target's memory
        self.layers, self.attention, self.mlp = _read(skip)

    @classmethod
    def tiny(cls, target: LanguageModel, draft: LanguageModel, **arguments: Any) -> "LayerSkip":
        layers = lends_layers(target, "layer_skip").layers
        return cls(**{**arguments, "skip": {"layers": layers, "attention": [1], "mlp": [0]}})

    def begin(self, target: LanguageModel, rows: int, sampling: Sampling) -> None:
        super().begin(target, rows, sampling)
        lender = lends_layers(target, "layer_skip")
        if lender.layers != self.layers:
            raise ValueError(
                f"layer_skip's set of sublayers is for a target of {self.layers} layers, "
                f"{target.name} has {lender.layers}; search one with python -m "
                "experiments.search_layers target=... and give its file as skip"
            )
        self._part = lender.without(self.attention, self.mlp)

    def propose(self, state: State, chance: Draws) -> TokenTree:
        root = TokenTree.root(state.roots, self.law)
        if state.deepest < 1:
            return root

        def score(tree: TokenTree, start: int) -> Tensor:
            return self._part.score(state.memory, tree, start).logits

        return self.grow(score(root, 0), score, state, chance).tree


def _read(skip: Mapping[str, Any] | str | Path) -> tuple[int, list[int], list[int]]:
    """(layers of the target, layers without attention, layers without MLP)."""
    where = "skip"
    if isinstance(skip, (str, Path)):
        where = str(skip)
        try:
            skip = yaml.safe_load(Path(skip).expanduser().read_text())
        except OSError as error:
            raise ValueError(
                f"skip names a file that cannot be read ({error}); python -m "
                "experiments.search_layers writes one"
            ) from error
    if not isinstance(skip, Mapping) or not {"layers", "attention", "mlp"} <= set(skip):
        raise ValueError(
            f"{where} must give layers (how many the target has), attention and mlp (lists of "
            f"layer numbers); got {skip!r}"
        )
    if not all(
        isinstance(skip[part], Sequence) and not isinstance(skip[part], str)
        for part in ("attention", "mlp")
    ):
        raise ValueError(
            f"{where}: attention and mlp are lists of layer numbers, got {skip['attention']!r} and "
            f"{skip['mlp']!r}"
        )
    lists = [list(skip["attention"]), list(skip["mlp"])]
    for number in [skip["layers"], *lists[0], *lists[1]]:
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{where}: layers, attention and mlp are integers, got {number!r}")
    return skip["layers"], lists[0], lists[1]
