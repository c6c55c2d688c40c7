"""Where Hydra looks for options: in our conf/, then in those of packages that bring plug-ins.

It is set from code, so that it holds for our programs only. Nothing is imported but file names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from specdec.registry import CONF, folders, place


class PackagesOfPlugins(SearchPathPlugin):
    """Adds THEIRS/conf where a program's path is our conf/, and THEIRS/conf/train for training."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        main = [each.path for each in search_path.get_path() if each.provider == "main"]
        if not main or (inside := _below_conf(main[0])) is None:
            return
        for package, folder in folders().items():
            if folder != CONF and (folder / inside).is_dir():
                search_path.append(package, f"file://{folder / inside}")


def _below_conf(path: str) -> Path | None:
    """Which part of our conf/ a program's own search path is. None: it is not ours."""
    if path.startswith("pkg://"):
        top, *inner = path.removeprefix("pkg://").replace("/", ".").split(".")
        return Path(*inner) if top == CONF.name else None
    folder = Path(path.removeprefix("file://")).resolve()
    return folder.relative_to(CONF) if folder.is_relative_to(CONF) else None


def register() -> None:
    Plugins.instance().register(PackagesOfPlugins)


def check(choices: Mapping[str, Any], below: str = "") -> None:
    """Raise ValueError where a chosen option is in two packages, of which Hydra takes the first."""
    for group, name in choices.items():
        if isinstance(name, str):
            place(f"{below}{group}", name)
