"""Which sublayers layer_skip leaves out of a target: a greedy search for agreement per cost on
calibration text.

python -m experiments.search_layers
python -m experiments.search_layers target=FOLDER text=notes.txt temperature=1.0 output=skip.yaml

The search starts from the whole model. Each step leaves out one more attention, MLP or layer:
the one with the best predicted speed-up, until one layer is left. The best set on the way wins.
Agreement is measured as in use: the whole model has read the text so far, the part continues for
`depth` tokens of it, and 1 - TV(p, q) of each is accepted. Costs are measured forward passes.
(SWIFT 2410.06916 searches by matched tokens and random steps; with so few layers a greedy path
works without randomness.)
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from experiments.system.files import write_text
from experiments.terminal.options import start


@dataclass
class Search:
    """python -m experiments.search_layers: the set of sublayers that layer_skip leaves out."""

    target: str = "demo"
    text: str = "stdlib"  # or a folder, a text file, JSON lines; held-out documents are not read
    text_field: str = "text"  # of JSON lines
    # files of a folder
    patterns: list[str] = field(default_factory=lambda: ["*.py", "*.md", "*.txt"])
    temperature: float = 0.6
    depth: int = 6  # tokens that a chain drafts at most
    places: int = 64  # places in the text, in groups of `batch`
    batch: int = 32  # rows of a pass
    context: int = 64  # tokens before each
    seed: int = 0
    output: str = "outputs/layer_skip.yaml"


def main(wanted: Search) -> None:
    from experiments.system.libraries import quiet_transformers
    from experiments.training.calibration import Calibration, read_places, search
    from specdec.models.load import load

    quiet_transformers()
    target = load(wanted.target)
    length = wanted.context + wanted.depth
    what = (wanted.places, wanted.batch, wanted.seed, wanted.text_field)
    texts = read_places(target, wanted.text, wanted.patterns, length, *what)
    calibration = Calibration(target, texts, wanted.context, wanted.temperature)
    path = search(calibration, target.layers)
    print(f"{'without attention':20} {'without MLP':20} agreement  cost  depth  predicted speed-up")
    for skip in path:
        speed_up, depth = skip.best()
        agreement = sum(skip.agreement) / len(skip.agreement)
        names = [",".join(map(str, sorted(part))) or "-" for part in (skip.attention, skip.mlp)]
        print(
            f"{names[0]:20} {names[1]:20} {agreement:9.3f} {skip.cost:5.2f} {depth:6} "
            f"{speed_up:19.3f}"
        )
    chosen = max(path[1:], key=lambda skip: skip.best()[0])
    speed_up, depth = chosen.best()
    if depth == 0:
        raise ValueError(
            f"nothing found: no part of {wanted.target} is predicted to be faster than the whole "
            "model; nothing is written. More text (places) or a deeper target may help"
        )
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
    write_text(place, yaml.safe_dump(found, sort_keys=False, default_flow_style=None))
    print(f"{place}: drafter=layer_skip drafter.skip={place} drafter.depth={max(depth, 1)}")


if __name__ == "__main__":
    start(main, Search)
