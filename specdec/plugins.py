"""A name -> the object that its YAML describes. conf/ is the registry; `_target_` is the key.

A `_target_` comes from a YAML, a command line or a caller, so it is checked before it is called: it
has to lie in a package that is allowed, and to say that it makes what is asked for.
"""

import difflib
import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self, get_type_hints

import yaml

CONF = Path(__file__).resolve().parent.parent / "conf"
OURS = ("drafters", "verifiers")


def names(group: str) -> list[str]:
    """The options of a group: the YAML files of conf/GROUP."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def described(group: str, name: str) -> dict[str, Any]:
    """What conf/GROUP/NAME.yaml says. Read once; not to be changed."""
    return dict(yaml.safe_load((CONF / group / f"{name}.yaml").read_text()))


def build(group: str, choice: str | Mapping[str, Any]) -> Any:
    """The drafter or verifier that a choice describes (see `find`). Raises ValueError for an
    unknown argument too."""
    make, arguments = find(group, choice)
    made = construct(make, arguments)
    if not isinstance(made, kind_of(group)):
        raise ValueError(f"{group} {choice!r} made a {type(made).__name__}, which is no specdec.{group.title()}")
    return made


def construct(make: Callable[..., Any], arguments: Mapping[str, Any], *first: Any) -> Any:
    """`make(*first, **arguments)`. Raises ValueError for an argument that it does not take."""
    try:
        return make(*first, **arguments)
    except TypeError as error:
        group, _, name = make.__module__.rpartition(".")
        raise ValueError(f"{group.removesuffix('s')} {name}: {error}") from None


def find(group: str, choice: str | Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class (or function) that a choice names, and its arguments. Nothing is called.

    `choice`: a name, or {"name": ..., argument: value, ...} overriding the YAML's arguments. Raises
    ValueError for an unknown name (with the nearest one) and for what `callable_named` refuses.
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
    return callable_named(settings.pop("_target_"), kind_of(group)), settings


def kind_of(group: str) -> type:
    """What the plug-ins of a group are."""
    from specdec import interfaces  # here, because it knows torch and names need none

    kind: type = {"drafter": interfaces.Drafter, "verifier": interfaces.Verifier}[group]
    return kind


def allowed() -> tuple[str, ...]:
    """The packages that a `_target_` may lie in: ours, and those of SPECDEC_ALLOW (with commas)."""
    theirs = (name.strip() for name in os.environ.get("SPECDEC_ALLOW", "").split(","))
    return (*OURS, *filter(None, theirs))


def callable_named(target: Any, kind: type) -> Callable[..., Any]:
    """What `target`, "package.module.Name", names. It is imported and not called.

    It has to be a class that is a `kind`, or a function or class method whose return annotation is
    one. Raises ValueError for anything else, for a package that is not allowed, and for what cannot
    be imported.
    """
    if not any(str(target).startswith(package + ".") for package in allowed()):
        where = f"_target_ {target} lies outside of {', '.join(allowed())}"
        raise ValueError(f"{where}; name its package in SPECDEC_ALLOW to allow it")
    try:
        found = _imported(str(target))
        made = found if inspect.isclass(found) else _returned(found)
    except Exception as error:  # whatever a foreign module raises
        raise ValueError(f"_target_ {target} cannot be imported: {type(error).__name__}: {error}") from error
    wanted = f"{kind.__module__.removesuffix('.interfaces')}.{kind.__name__}"
    if made is None or not issubclass(made, kind):
        unfit = f"a {made.__name__}, which is no {wanted}" if made else "what it does not say"
        raise ValueError(
            f"_target_ {target} makes {unfit}. Nothing was called: a {kind.__name__.lower()} comes "
            f"from a class that is a {wanted}, or a function whose return annotation is one"
        )
    assert callable(found)
    return found


def _imported(target: str) -> Any:
    """MODULE.NAME, or MODULE.CLASS.METHOD."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        outer, _, owner = module.rpartition(".")
        if error.name != module or not outer:
            raise
        found = getattr(importlib.import_module(outer), owner, None)
        if not inspect.isclass(found):
            raise
    return getattr(found, name)


def _returned(function: Any) -> type | None:
    """The class that the return annotation of a function or class method names."""
    if not callable(function):
        return None
    returned = get_type_hints(function).get("return")
    if returned is Self:
        returned = getattr(function, "__self__", None)
    return returned if inspect.isclass(returned) else None
