"""A digest of the code that a certificate covers, so that a change of that code is noticed.

There are three parts: specdec/ as a whole (except its command line), the drafter, the rule. The
digest of a plug-in covers the file that defines it, the files of plug-in packages that this file
imports, and the contents of its YAML. It does not depend on the plug-in's package.

What counts is the program, not its text: the syntax tree, without docstrings and without the text
of errors that are raised. Comments, layout, and the release of Python (3.11 or newer) do not count
either. In a YAML only the values count.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

import specdec
from specdec.plugins import find
from specdec.registry import OURS, described, names

LENGTH = 16  # hexadecimal digits of a digest
COMMAND_LINE = "__main__.py"  # of specdec/: it prints what `generate` made

Settings = Mapping[str, Any]


def code_of(drafter: Settings, verifier: Settings) -> dict[str, str]:
    """A digest per part. Raises ValueError for a plug-in that is not here."""
    return {
        "specdec": _library(),
        "drafter": _plugin("drafter", drafter),
        "verifier": _plugin("verifier", verifier),
    }


def changed(certificate: Mapping[str, Any]) -> list[str]:
    """The parts whose code has changed since the certificate was made; all of them, if it records
    no digests. Raises ValueError for a plug-in that is not here."""
    then = certificate.get("code") or {}
    now = code_of(certificate["drafter"], certificate["verifier"])
    return [part for part, digest in now.items() if then.get(part) != digest]


@cache
def _library() -> str:
    root = Path(specdec.__file__).parent
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    return _digest({name: _of_file(files[name]) for name in sorted(files) if name != COMMAND_LINE})


def _plugin(group: str, settings: Settings) -> str:
    plugin = find(group, settings)
    parts: dict[str, Any] = dict(_modules(plugin.make.__module__))
    if plugin.name in names(group):
        yaml = dict(described(group, plugin.name))
        target = settings.get("_target_")
        if target in (None, yaml.get("_target_")):  # else a namesake, which it has nothing from
            parts["yaml"] = yaml
    return _digest(parts)


@cache
def _modules(first: str) -> dict[str, str]:
    """The digest of a module, and of all modules of plug-in packages that it imports from."""
    packages = {first.partition(".")[0], *OURS}
    waiting, found = [first], dict[str, str]()
    while waiting:
        name = waiting.pop()
        path = None if name in found else _file(name)
        if path is None:
            continue
        found[name] = _of_file(path)
        if path.suffix == ".py":
            inside = name if path.name == "__init__.py" else name.rpartition(".")[0]
            for other in _imports(ast.parse(path.read_bytes()), inside):
                waiting += [other] if other.partition(".")[0] in packages else []
    return dict(sorted(found.items()))


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Every module that `tree` may import, and names in modules that may be modules too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    """Where a module's code is; None for what is no module."""
    try:
        spec = getattr(sys.modules.get(module), "__spec__", None) or find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _of_file(path: Path) -> str:
    content = path.read_bytes()
    return program(content) if path.suffix == ".py" else hashlib.sha256(content).hexdigest()


def program(text: bytes | str) -> str:
    """The digest of what a Python file does."""
    return _digest(_plain(ast.parse(text)))


def _plain(node: Any) -> Any:
    """A syntax tree as lists and strings, without what does not count and without empty fields,
    which releases of Python have in different numbers."""
    if isinstance(node, list):
        return [_plain(each) for each in node if not _is_text(each)]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        node = ast.Raise(node.exc.func, node.cause)
    if isinstance(node, ast.JoinedStr):
        return ["JoinedStr", *_joined(node.values)]
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return [type(node).__name__, *([name, _plain(value)] for name, value in fields)]


def _joined(parts: list[ast.expr]) -> list[Any]:
    """The parts of an f-string; Python 3.12 may leave pieces of its text apart."""
    found: list[Any] = []
    for part in parts:
        piece = _plain(part) if isinstance(part, ast.FormattedValue) else ast.literal_eval(part)
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        elif piece != "":
            found.append(piece)
    return found


def _is_text(node: Any) -> bool:
    """A docstring, of whatever is above it."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]
