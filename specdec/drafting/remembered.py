"""What is learned from run to run of this process: of one drafter, on one target, under the same
sampling and with as many rows.
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from specdec.interfaces import LanguageModel
from specdec.sampling import Sampling


class Owner:
    """Of what is remembered of drafters that are made anew for each run, from the same choice."""


_OWNERS: dict[str, Owner] = {}
_KEPT: WeakKeyDictionary[Any, WeakKeyDictionary[Any, dict[Any, dict[str, Any]]]]
_KEPT = WeakKeyDictionary()


def owner_of(choice: Any) -> Owner | None:
    """The one of all drafters that are made from such a name or settings. None for objects."""
    if not isinstance(choice, (str, Mapping)):
        return None
    return _OWNERS.setdefault(repr(choice), Owner())


def remembered(owner: Any, target: LanguageModel, rows: int, sampling: Sampling) -> dict[str, Any]:
    """Where runs under the same conditions leave what they have learned, and find it."""
    conditions = rows, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p
    try:
        targets = _KEPT.setdefault(owner, WeakKeyDictionary())
        return targets.setdefault(target, {}).setdefault(conditions, {})
    except TypeError:  # something that cannot be a key
        return {}


def forget(owner: Any) -> None:
    """Nothing is remembered of it any more."""
    _KEPT.pop(owner, None)
