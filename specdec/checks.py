"""Checks of what users give, which say what came and what was expected."""

from numbers import Integral
from typing import Any


def integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int (numpy's integers are fine, booleans are not). Raises ValueError unless least <= value <= most."""
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if fits and (least is None or value >= least) and (most is None or value <= most):
        return int(value)
    bounds = "" if least is None else f" >= {least}" if most is None else f" in {least} .. {most}"
    raise ValueError(f"{name} must be an integer{bounds}, got {value!r}")


def switch(name: str, value: Any) -> bool:
    """Raises ValueError unless `value` is True or False: the string "no" would count as yes."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value
