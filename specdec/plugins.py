"""A choice -> the drafter or verifier that it describes. `_target_` is the key.

A `_target_` comes from a YAML, a command line or a caller, so it is checked before it is called: it
must be in an allowed package, and its type must show that it makes a drafter or a verifier.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, Unpack, get_args, get_origin, get_type_hints

from specdec.registry import CONF as CONF
from specdec.registry import OURS, allowed, described, names, nearest, place, read_file


@dataclass(frozen=True)
class Plugin:
    """The class or function that a choice names, found but not called yet."""

    group: str
    name: str  # that of its YAML, else of the module that defines it
    make: Callable[..., Any]  # a class or a function
    arguments: Mapping[str, Any]

    def made(self) -> Any:
        """Make the drafter or verifier. Raises ValueError for unknown arguments."""
        return self._made_by(self.make)

    def made_tiny(self, target: Any, draft: Any) -> Any:
        """For a small target, by the drafter's `tiny`. What is made by a function stays as it
        is."""
        tiny = getattr(self.make, "tiny", None)
        return self.made() if tiny is None else self._made_by(tiny, target, draft)

    def _made_by(self, make: Callable[..., Any], *first: Any) -> Any:
        title = f"{self.group} {self.name}"
        check_names(title, self.make, self.arguments)  # `tiny` itself accepts any name
        found = construct(title, make, self.arguments, *first)
        if not isinstance(found, kind_of(self.group)):
            kind = f"specdec.{self.group.title()}"
            raise ValueError(f"{title} is made as a {type(found).__name__}, which is no {kind}")
        object.__setattr__(found, "yaml_name", self.name)  # also where its class is frozen
        return found


def build(group: str, choice: str | Mapping[str, Any]) -> Any:
    """The drafter or verifier that a choice describes. Raises ValueError for what `find` refuses,
    and for arguments that it does not take."""
    return find(group, choice).made()


def construct(
    title: str, make: Callable[..., Any], arguments: Mapping[str, Any], *first: Any
) -> Any:
    """`make(*first, **arguments)`. Raises ValueError for arguments that it does not take; `title`
    says whose they are."""
    check_names(title, make, arguments, len(first))
    try:
        return make(*first, **arguments)
    except TypeError as error:
        raise ValueError(f"{title}: {error}") from error


def check_names(
    title: str, make: Callable[..., Any], arguments: Mapping[str, Any], first: int = 0
) -> None:
    """Raise ValueError, with the closest match, for an argument name that `make` does not have. Its
    `first` arguments do not count."""
    known = arguments_of(make, first)
    if known is None:
        return
    for name in arguments:
        if name not in known:
            hint = f"; did you mean {near!r}?" if (near := nearest(name, known)) else "."
            takes = ", ".join(known) or "none"
            raise ValueError(f"{title} has no argument {name!r}{hint} Its arguments: {takes}")


def arguments_of(make: Callable[..., Any], first: int = 0) -> dict[str, Any] | None:
    """The arguments that `make` takes by name, without the `first` ones, and their defaults
    (`inspect.Parameter.empty` if there is none). None if it takes any name.

    `**shape: Unpack[ShapeArguments]` stands for the keys of that TypedDict.
    """
    found: dict[str, Any] = {}
    for each in list(inspect.signature(make).parameters.values())[first:]:
        if each.kind is each.VAR_KEYWORD:
            keys = get_args(each.annotation)
            if get_origin(each.annotation) is not Unpack:
                return None
            found |= dict.fromkeys(keys[0].__annotations__, each.empty)
        elif each.kind is not each.VAR_POSITIONAL:
            found[each.name] = each.default
    return found


def find(group: str, choice: str | Mapping[str, Any]) -> Plugin:
    """The plug-in that a choice names.

    `choice`: a name, or a YAML file such as "tuned.yaml" that says what those of conf/ say, or
    {"name": ..., argument: value, ...} overriding the YAML's arguments, or {"_target_": ...,
    argument: value, ...}. Raises ValueError for what `described` refuses and for
    what `callable_named` refuses.
    """
    if not isinstance(choice, (str, Mapping)):
        raise ValueError(f"a {group} is a name or {{'name': ..., ...}}, got {choice!r}")
    if isinstance(choice, str) and choice.endswith((".yaml", ".yml")):
        choice = read_file(group, choice)
    settings = {"name": choice} if isinstance(choice, str) else dict(choice)
    name = settings.pop("name", None)
    if name is not None:
        settings = {**described(group, name), **settings}
    if "_target_" not in settings:
        said = f"got {choice!r}" if name is None else f"and {place(group, name)} has no _target_"
        raise ValueError(
            f"a {group} is given by name or by _target_ (package.module.Class), {said}"
        )
    target = settings.pop("_target_")
    make = callable_named(target, kind_of(group))
    if name is None:
        name = _name_of_target(group, target) or name_without_yaml(make)
    return Plugin(group, str(name), make, settings)


def name_without_yaml(make: Callable[..., Any]) -> str:
    """The name of a class or function that no YAML names: here the file's, since a file holds one
    plug-in; elsewhere its own."""
    package, _, module = make.__module__.rpartition(".")
    return module if package in OURS else make.__name__


def _name_of_target(group: str, target: str) -> str | None:
    """The one name whose YAML has this `_target_`; None if there is none, or several."""
    found = []
    for name in names(group):
        try:
            if described(group, name).get("_target_") == target:
                found.append(name)
        except ValueError:  # a broken YAML is reported when it is chosen
            continue
    return found[0] if len(found) == 1 else None


def kind_of(group: str) -> type:
    """What the plug-ins of a group are."""
    from specdec import interfaces  # imported here: it needs torch, and names alone do not

    kind: type = {"drafter": interfaces.Drafter, "verifier": interfaces.Verifier}[group]
    return kind


def callable_named(target: Any, kind: type) -> Callable[..., Any]:
    """The object that `target`, "package.module.Name", names. It is imported, not called.

    It must be a subclass of `kind`, or a function or class method whose return annotation is one.
    Raises ValueError for anything else, for a package that is not allowed, and if the import fails.
    """
    if not any(str(target).startswith(package + ".") for package in allowed()):
        where = f"_target_ {target} lies outside of {', '.join(allowed())}"
        raise ValueError(f"{where}; name its package in SPECDEC_ALLOW to allow it")
    try:
        found: Callable[..., Any] = _imported(str(target))
        made = found if inspect.isclass(found) else _returned(found)
    except (Exception, SystemExit) as error:  # whatever a foreign module raises
        raise ValueError(
            f"_target_ {target} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    wanted = f"{kind.__module__.removesuffix('.interfaces')}.{kind.__name__}"
    if made is None or not issubclass(made, kind):
        unfit = f"a {made.__name__}, which is no {wanted}" if made else "what it does not say"
        raise ValueError(
            f"_target_ {target} makes {unfit}. Nothing was called: a {kind.__name__.lower()} comes "
            f"from a class that is a {wanted}, or a function whose return annotation is one"
        )
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
