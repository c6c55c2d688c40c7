"""specdec: lossless speculative decoding with token trees, for research.

    target = specdec.load("demo")
    out = specdec.generate(target, "def read_csv(", drafter="ngram", max_new_tokens=64)
    print(out.texts[0], out.report)

Heavy libraries are imported when a name is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "load": "load",
    "generate": "generate",
    "stream": "generate",
    "Output": "generate",
    "Event": "generate",
    "TokenTree": "tree",
    "SiblingLaw": "tree",
    "Drafter": "interfaces",
    "Verifier": "interfaces",
    "Verdict": "interfaces",
    "State": "interfaces",
    "LanguageModel": "interfaces",
    "TransformersLM": "language_model",
    "Sampling": "sampling",
    "Laws": "sampling",
    "Keyed": "chance",
    "Coupled": "chance",
    "Enumerate": "chance",
    "Sites": "chance",
    "Report": "metrics",
    "Step": "metrics",
    "Refused": "pairing",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from specdec.chance import Coupled, Enumerate, Keyed, Sites
    from specdec.generate import Event, Output, generate, stream
    from specdec.interfaces import Drafter, LanguageModel, State, Verdict, Verifier
    from specdec.language_model import TransformersLM
    from specdec.load import load
    from specdec.metrics import Report, Step
    from specdec.pairing import Refused
    from specdec.sampling import Laws, Sampling
    from specdec.tree import SiblingLaw, TokenTree


class _Page(ModuleType):
    """The public names, resolved when used. Importing the submodule `specdec.load` must not put a module where the page
    promises the function `specdec.load`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'specdec' has no attribute {name!r}")
        value = getattr(import_module(f"specdec.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Page
