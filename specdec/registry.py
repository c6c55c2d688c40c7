"""The names of plug-ins, and what their YAML says. The folder conf/ is the registry.

Other packages can have their own conf/: those that SPECDEC_ALLOW lists, separated by commas, and
installed packages with an entry point in the group `specdec` whose value is the package. They are
found without being imported, so listing names only reads folders.
"""

import difflib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parent.parent / "conf"
OURS = ("drafters", "verifiers")  # where our own plug-ins are
ENTRY_POINTS = "specdec"
Where = tuple[str, ...]  # what Python finds depends on it


def allowed() -> tuple[str, ...]:
    """The packages whose plug-ins may be named: ours, those of SPECDEC_ALLOW, announced ones."""
    listed = (name.strip() for name in os.environ.get("SPECDEC_ALLOW", "").split(","))
    return tuple(dict.fromkeys([*OURS, *filter(None, listed), *announced()]))


def announced() -> tuple[str, ...]:
    """The packages that announce plug-ins by an entry point."""
    return _announced(_where())


def _where() -> Where:
    """An empty entry of sys.path is the working folder, which may change."""
    return tuple(entry or os.getcwd() for entry in sys.path)


@cache
def _announced(where: Where) -> tuple[str, ...]:
    return tuple(
        entry.value.partition(":")[0].strip() for entry in entry_points(group=ENTRY_POINTS)
    )


def folders() -> dict[str, Path]:
    """The conf/ of every allowed package that has one, ours first."""
    theirs = (package for package in allowed() if package not in OURS)
    found = {package: _conf_of(package, _where()) for package in theirs}
    return {"specdec": CONF, **{package: folder for package, folder in found.items() if folder}}


@cache
def _conf_of(package: str, where: Where) -> Path | None:
    """Where the conf/ of a package is. The package is not imported."""
    _, *inner = package.split(".")
    roots = [Path(root).joinpath(*inner) for root in _roots(package, where) or ()]
    return next((root / "conf" for root in roots if (root / "conf").is_dir()), None)


@cache
def _roots(package: str, where: Where) -> tuple[str, ...] | None:
    """The folders of a top-level package; empty for a module. None if Python finds neither."""
    try:
        spec = importlib.util.find_spec(package.partition(".")[0])
    except (ImportError, ValueError):
        return None
    return None if spec is None else tuple(spec.submodule_search_locations or ())


def names(group: str) -> list[str]:
    """The options of a group: the YAML files of every conf/GROUP."""
    every = folders().values()
    return sorted({path.stem for folder in every for path in (folder / group).glob("*.yaml")})


def place(group: str, name: str) -> Path | None:
    """The YAML of that name, if there is one. Raises ValueError if two packages have one."""
    if name not in names(group):  # a path is not a name
        return None
    there = [folder / group / f"{name}.yaml" for folder in folders().values()]
    there = [path for path in there if path.is_file()]
    if len(there) > 1:
        raise ValueError(f"two {group}s are called {name!r}: {there[0]} and {there[1]}; rename one")
    return there[0] if there else None


def is_ours(group: str, name: str) -> bool:
    """Whether a name belongs to this project."""
    return (CONF / group / f"{name}.yaml").is_file()


def described(group: str, name: str) -> Mapping[str, Any]:
    """What the YAML of that name says; not to be changed.

    Raises ValueError for an unknown name (with the nearest one), for a name that two packages have,
    and for a file that holds no settings.
    """
    path = place(group, name)
    if path is None:
        known = names(group)
        hint = f"; did you mean {near!r}? " if (near := nearest(name, known)) else ". "
        raise ValueError(f"unknown {group} {name!r}{hint}There are: {', '.join(known)}{lost()}")
    return _read(path)


def read_file(group: str, path: str) -> Mapping[str, Any]:
    """What a YAML outside of conf/ says. Raises ValueError if it is not there or holds no
    settings."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"{group} {path!r} names a file that is not there (from {Path.cwd()}); python -m "
            "experiments.tune output=FILE writes one"
        )
    return _parsed(file)


def nearest(name: Any, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return near[0] if near else None


def lost() -> str:
    """The end of an error about a name: which packages are allowed but not found, or how to allow
    one."""
    if allowed() == OURS:
        return ". Names of a package of your own need SPECDEC_ALLOW=PACKAGE"
    lost = [package for package in allowed() if _roots(package, _where()) is None]
    if not lost:
        return ""
    packages = ", ".join(lost)
    return f". Python does not find {packages} here: install it, or put its folder on PYTHONPATH"


@cache
def _read(path: Path) -> Mapping[str, Any]:
    return _parsed(path)


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold settings, `key: value`, got {found!r}")
    return found
