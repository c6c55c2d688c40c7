"""A trained head (eagle3, dflash, dspark) -> the `speculators` layout, so that it can be served
elsewhere.

python -m experiments.export_head heads=trained/eagle3/head output=exported verifier=HUB_ID

The target's embedding is not written: a server uses it, as we do. `heads` may be any folder that
a drafter takes, so published checkpoints can be converted too.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from experiments.terminal.options import start

if TYPE_CHECKING:  # this module imports torch, which --help does not need
    from specdec.heads.head import Head


@dataclass
class Export:
    """python -m experiments.export_head heads=FOLDER output=FOLDER verifier=NAME_OR_PATH: a head in
    the speculators layout."""

    heads: str = MISSING  # a folder that eagle3, dflash or dspark takes, or a bundled head
    output: str = MISSING
    # the target that the head was trained for: a hub id or a folder, as the server will know it
    verifier: str = MISSING


def export(heads: str, output: str | Path, verifier: str) -> "Head":
    """Raises ValueError for a head, or a part of one, that the layout cannot represent."""
    from specdec.heads.files import write_folder
    from specdec.heads.recognised import recognise

    head = recognise(heads).head_class.load(heads)
    write_folder(output, *head.to_speculators(verifier, architectures(verifier, head)))
    return head


def architectures(verifier: str, head: "Head") -> list[str]:
    """The architectures that the target's config names, if `verifier` is a local folder; its sizes
    are then compared too."""
    from specdec.heads.files import CONFIG

    place = Path(verifier).expanduser() / CONFIG
    if not place.is_file():
        return []
    described = json.loads(place.read_text())
    described = {**described, **described.get("text_config", {})}
    for key, size in {"hidden_size": head.hidden_size, "vocab_size": head.vocabulary}.items():
        if described.get(key) != size:
            raise ValueError(
                f"the head was trained for a {key} of {size}, the verifier {verifier} has "
                f"{described.get(key)}"
            )
    return list(described.get("architectures") or [])


def main(wanted: Export) -> None:
    head = export(wanted.heads, wanted.output, wanted.verifier)
    left = [key for key in head.notes if key != "trained_for"]
    print(f"{wanted.output}: {head.kind} in the speculators layout, for {wanted.verifier}")
    if left:
        print(
            "the layout has no place for what training measured, which stays behind: "
            f"{', '.join(left)}"
        )


if __name__ == "__main__":
    start(main, Export)
