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
    "load": "models.load",
    "generate": "generate",
    "stream": "generate",
    "Engine": "engine",
    "Output": "output",
    "Event": "output",
    "TokenTree": "tree",
    "SiblingLaw": "tree",
    "Drafter": "interfaces",
    "Verifier": "interfaces",
    "Verdict": "state",
    "State": "state",
    "KV": "interfaces",
    "LanguageModel": "interfaces",
    "Session": "interfaces",
    "TransformersLM": "models.language_model",
    "Sampling": "sampling",
    "Grammar": "grammar",
    "Laws": "probs",
    "Keyed": "chance",
    "Coupled": "chance",
    "Enumerate": "chance",
    "Sites": "chance",
    "Report": "measuring.report",
    "Step": "measuring.report",
    "Costs": "pricing.costs",
    "Refused": "errors",
}
__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from specdec.chance import Coupled as Coupled
    from specdec.chance import Enumerate as Enumerate
    from specdec.chance import Keyed as Keyed
    from specdec.chance import Sites as Sites
    from specdec.engine import Engine as Engine
    from specdec.errors import Refused as Refused
    from specdec.generate import generate as generate
    from specdec.generate import stream as stream
    from specdec.grammar import Grammar as Grammar
    from specdec.interfaces import KV as KV
    from specdec.interfaces import Drafter as Drafter
    from specdec.interfaces import LanguageModel as LanguageModel
    from specdec.interfaces import Session as Session
    from specdec.interfaces import Verifier as Verifier
    from specdec.measuring.report import Report as Report
    from specdec.measuring.report import Step as Step
    from specdec.models.language_model import TransformersLM as TransformersLM
    from specdec.models.load import load as load
    from specdec.output import Event as Event
    from specdec.output import Output as Output
    from specdec.pricing.costs import Costs as Costs
    from specdec.probs import Laws as Laws
    from specdec.sampling import Sampling as Sampling
    from specdec.state import State as State
    from specdec.state import Verdict as Verdict
    from specdec.tree import SiblingLaw as SiblingLaw
    from specdec.tree import TokenTree as TokenTree


class _Page(ModuleType):
    """The public names, resolved when used. Importing the submodule `specdec.generate` must not put
    a module where the page promises the function `specdec.generate`."""

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
