"""A name -> the object that its YAML describes. The folder conf/ is the registry; `_target_` is the key."""

import difflib
import importlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parent.parent / "conf"
TRUSTED = ("drafters", "verifiers", "specdec")


def names(group: str) -> list[str]:
    """The options of a group: the YAML files of conf/GROUP."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def described(group: str, name: str) -> dict[str, Any]:
    """What conf/GROUP/NAME.yaml says. Read once; not to be changed."""
    return dict(yaml.safe_load((CONF / group / f"{name}.yaml").read_text()))


def build(group: str, choice: str | Mapping[str, Any]) -> Any:
    """The object that a choice describes (see `find`). Raises ValueError for an unknown argument too."""
    make, arguments = find(group, choice)
    return construct(make, arguments)


def construct(make: Callable[..., Any], arguments: Mapping[str, Any], *first: Any) -> Any:
    """`make(*first, **arguments)`. Raises ValueError for an argument that it does not take."""
    try:
        return make(*first, **arguments)
    except TypeError as error:
        group, _, name = make.__module__.rpartition(".")
        raise ValueError(f"{group.removesuffix('s')} {name}: {error}") from None


def find(group: str, choice: str | Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class (or function) that a choice names, and its arguments.

    `choice`: a name, or {"name": ..., argument: value, ...} overriding the YAML's arguments. `_target_` may name this
    project's packages or those listed in SPECDEC_ALLOW (comma-separated). Raises ValueError for an unknown name (with the
    nearest one) or a package that is not allowed.
    """
    if not isinstance(choice, (str, Mapping)):
        raise ValueError(f"a {group} is a name or {{'name': ..., ...}}, got {choice!r}")
    settings = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = settings.pop("name", None)
    if name is not None:
        if name not in names(group):
            near = difflib.get_close_matches(str(name), names(group), 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"unknown {group} {name!r}{hint} There are: {', '.join(names(group))}")
        settings = {**described(group, name), **settings}
    if "_target_" not in settings:
        raise ValueError(f"a {group} is given by name or by _target_, got {choice!r}")
    package, _, attribute = str(settings.pop("_target_")).rpartition(".")
    allowed = (*TRUSTED, *filter(None, os.environ.get("SPECDEC_ALLOW", "").split(",")))
    if not any(package == root or package.startswith(root + ".") for root in allowed):
        raise ValueError(
            f"_target_ {package}.{attribute} lies outside {allowed}; name its package in SPECDEC_ALLOW to allow it"
        )
    try:
        return getattr(importlib.import_module(package), attribute), settings
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"_target_ {package}.{attribute} of {group} {choice!r} cannot be imported: {error}"
        ) from error
