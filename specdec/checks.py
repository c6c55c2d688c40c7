"""Checks of what users give, which say what came and what was expected."""

from numbers import Integral
from typing import Any

MOST_NODES = 4096  # of a drafted tree: masks are nodes x nodes, and papers stay below 1,100


def integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int (numpy's integers are fine, booleans are not). Raises ValueError unless least <= value <= most."""
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if fits and (least is None or value >= least) and (most is None or value <= most):
        return int(value)
    bounds = "" if least is None else f" >= {least}" if most is None else f" in {least} .. {most}"
    raise ValueError(f"{name} must be an integer{bounds}, got {value!r}")


def drafted(name: str, value: Any) -> int:
    """`value` as a number of drafted nodes, or of levels of them. Raises ValueError below 1, and
    for more than a pass could score: before anything of that size is made."""
    count = integer(name, value, 1)
    if count > MOST_NODES:
        raise ValueError(f"{name} must be at most {MOST_NODES:,}, as large as a drafted tree may be, got {count:,}")
    return count


def switch(name: str, value: Any) -> bool:
    """Raises ValueError unless `value` is True or False: the string "no" would count as yes."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value
