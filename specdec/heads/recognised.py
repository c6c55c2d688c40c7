"""What a folder of a trained head holds, told from its files alone: which layout, and which drafter
uses it.

A drafter's file defines the head that it uses, under the drafter's own name. So a head of another
package is recognised too.
"""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from specdec.heads import speculators
from specdec.heads.files import folder_of, read_folder
from specdec.heads.head import Head
from specdec.plugins import find
from specdec.registry import names


class Recognised(NamedTuple):
    """A folder of a head."""

    folder: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    head_class: type[Head]
    layout: str  # in words

    @property
    def kind(self) -> str:
        """Of the head: the name of the drafter that uses it."""
        return self.head_class.kind

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that its head is made with."""
        return self.head_class.described(self.config, self.weights).settings


def recognise(name: str | Path) -> Recognised:
    """Raises ValueError, naming what was found and what is known, for a folder that holds no head
    that a drafter here uses."""
    folder = folder_of(name)
    config, weights = read_folder(folder)
    classes = head_classes()
    ours, named = config.get("specdec_head"), speculators.type_of(config)
    if ours is not None:
        if ours not in classes:
            raise ValueError(
                f"{folder} holds a head of the kind {ours!r}, which no drafter here uses; there "
                f"are {', '.join(classes)}"
            )
        return Recognised(folder, config, weights, classes[ours], "the layout of this project")
    for kind, head in classes.items():
        try:
            published = head.from_published(config, weights)
        except ValueError as error:
            raise ValueError(f"{folder} holds a head of kind {kind!r}: {error}") from None
        if published is not None:
            layout = f"the layout in which {kind} heads are published"
            if named is not None:
                layout = f"the speculators layout of vLLM, type {named}"
            return Recognised(folder, config, weights, head, layout)
    if named is not None:
        raise ValueError(
            f"{folder} holds a speculators head of type {named!r}{speculators.advice(named, '')}"
        )
    raise ValueError(
        f"{folder} holds no head that is known here ({_said(config)}); known are those written by "
        f"save(), the published layouts of {', '.join(classes)}, and `speculators`"
    )


def head_classes() -> dict[str, type[Head]]:
    """Every kind of head, by the name of its drafter. A plug-in that cannot be imported has
    none."""
    found: dict[str, type[Head]] = {}
    for name in names("drafter"):
        try:
            module = sys.modules[find("drafter", name).make.__module__]
        except ValueError:
            continue
        for each in vars(module).values():
            is_head = inspect.isclass(each) and issubclass(each, Head)
            if is_head and each.__dict__.get("kind") == name:
                found[name] = each
    return found


def _said(config: Mapping[str, Any]) -> str:
    """What a config says of itself."""
    keys = ("architectures", "model_type")
    said = [f"{key} {config[key]}" for key in keys if config.get(key)]
    return ", ".join(said) or "its config names neither architectures nor model_type"
