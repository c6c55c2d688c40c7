"""Errors for users: the kinds of errors, and checks that say what was given and what was
expected."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable
from functools import wraps
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Refused(ValueError):
    """The contract does not allow this pair. This is not a failure: a study records it as not
    applicable."""


class OutOfPages(RuntimeError):
    """A bounded memory has too few free pages for a pass. Nothing was written: release a row, or
    read less, and ask again."""


class Unsupported(ValueError):
    """A model that cannot score a token tree; the message says why."""


def integer(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """`value` as an int (numpy's integers are fine, booleans are not).

    Raises ValueError unless least <= value <= most.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and most is not None and value > most:
        raise ValueError(f"{name} must be an integer <= {most}, got {value!r}")
    if whole and (least is None or value >= least):
        return int(value)
    bound = "" if least is None else f" >= {least}"
    raise ValueError(f"{name} must be an integer{bound}, got {value!r}")


def number(name: str, value: Any, least: float | None = None, most: float | None = None) -> float:
    """`value` as a float. Raises ValueError unless it is finite and least <= value <= most."""
    real = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if real and (least is None or value >= least) and (most is None or value <= most):
        return float(value)
    bound = "" if least is None else f" >= {least:g}"
    bound += "" if most is None else f" and <= {most:g}"
    raise ValueError(f"{name} must be a number{bound}, got {value!r}")


def switch(name: str, value: Any) -> bool:
    """Raises ValueError unless `value` is True or False: the string "no" would count as yes."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'ngram'?" if a known name resembles this one, else an empty string."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def some(names: Iterable[str], most: int = 5) -> str:
    """A list of names, shortened if it is long."""
    listed = list(names)
    left_out = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + left_out


def misspelt_arguments_are_named(function: Callable[P, R]) -> Callable[P, R]:
    """Refuses unknown keyword arguments and suggests the closest match."""
    known = inspect.signature(function).parameters

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name not in known:
                hint = did_you_mean(name, known)
                raise TypeError(f"{function.__name__}() has no argument {name!r}{hint}")
        return function(*arguments, **options)

    return call
