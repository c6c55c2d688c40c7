"""Programs that take a Hydra configuration: what they refuse is told in a line or two, with what may have been meant."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from specdec.registry import CONF, lost

FULL = "HYDRA_FULL_ERROR"  # set to 1, it shows where an error comes from
EXTRAS = {
    "joblib": "joblib",
    "ray": "ray",
    "submitit_slurm": "slurm",
}  # Hydra's launchers -> our extras that bring them


def start(main: Callable[[], Any]) -> Any:
    """Run a function made by `hydra.main`. Exits with what Hydra, a configuration or a value was refused for."""
    if os.environ.get(FULL) == "1":
        return main()
    os.environ[FULL] = "1"  # Hydra then raises what it would print
    try:
        return main()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        sys.exit(f"{told(error)}\n({FULL}=1 shows where it comes from)")
    finally:
        del os.environ[FULL]


def told(error: BaseException) -> str:
    """The error, and a suggestion where a name is unknown."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        path = PurePosixPath(error.missing_cfg_file)
        group, name = str(path.parent), path.name
        if group == "hydra/launcher" and name in EXTRAS:
            return f"this launcher is a plug-in that is not installed: pip install 'specdec[{EXTRAS[name]}]'"
        options = [str(option) for option in error.options or ()]
        there = f"There are: {', '.join(options)}{lost()}"
        return f"{group} has no option {name!r}{meant(name, options)}. {there}"
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        key, whole = str(cause.key), str(cause.full_key)
        known = [str(each) for each in cause.parent_node if each != "hydra"]
        if key == whole:  # at the top, where groups are named too
            known += [path.name for path in sorted(CONF.iterdir()) if path.is_dir() and path.name not in known]
        if key not in known:
            return f"unknown key {whole!r}{meant(key, known)}. There are: {', '.join(known)}"
    said = str(error) if cause is None or cause is error else f"{error}\n{cause}"
    return "\n".join(
        line for line in said.splitlines() if not line.strip().startswith(("full_key", "reference_type", "object_type"))
    )


def meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
