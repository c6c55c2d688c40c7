"""Programs that take a Hydra configuration: what they refuse is said in a line or two, with what
may have been meant."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from pathlib import PurePosixPath
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.terminal.refusals import FULL, meant, refusing
from specdec.registry import CONF, described, lost, names
from specdec.threads import settle

FOOTER = "Powered by Hydra (https://hydra.cc)\nUse --hydra-help to view Hydra specific help"
# Hydra's launchers -> our extras that bring them
EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm"}


class JobError(BaseException):
    """Carries an error (its cause) past Hydra, which would write a line of its own before it."""


def start(
    main: Callable[[], Any],
    schema: type | None,
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> Any:
    """Run a function made by `hydra.main`. schema: the dataclass of its keys, None for training,
    which has YAMLs only; interrupted: the line that it ends with after Ctrl-C."""
    settle()
    asked = os.environ.get(FULL)
    with refusing(explained, interrupted):
        os.environ[FULL] = "1"  # Hydra then raises what it would print
        try:
            return _helping(main, schema) if {"-h", "--help"} & set(sys.argv) else main()
        except JobError as carrier:
            raise carrier.__cause__ or carrier from None
        finally:
            if asked is None:
                del os.environ[FULL]
            else:
                os.environ[FULL] = asked


def _helping(main: Callable[[], Any], schema: type | None) -> None:
    """Print Hydra's help with the meaning of every key."""
    from experiments.terminal.help import explained as with_meanings

    said = io.StringIO()
    try:
        with redirect_stdout(said):
            main()
    finally:
        print(with_meanings(said.getvalue(), schema), end="")


HELP = """\
${{hydra.help.header}}

== Configuration groups ==
Compose your configuration from those groups (group=option)

{groups}

== Config ==
Override anything in the config (foo.bar=value)

$CONFIG

${{hydra.help.footer}}
"""


def register_help(program: str, groups: Sequence[str], uses: str | None = None) -> None:
    """The `--help` of a program, as the option `program` of the group hydra/help: Hydra's own, with
    the groups that the program has and no others that lie in conf/. uses: what it begins with."""
    store = ConfigStore.instance()
    lines = []
    for group in groups:
        options = set(names(group))
        with suppress(OSError):  # none of this group is in the store
            options |= {name.removesuffix(".yaml") for name in store.list(group)}
        lines.append(f"{group}: {', '.join(sorted(options))}")
    node = {
        "app_name": "${hydra.job.name}",
        "header": uses or "${hydra.help.app_name} is powered by Hydra.",
        "footer": FOOTER,
    }
    store.store(
        group="hydra/help",
        name=program,
        node={**node, "template": HELP.format(groups="\n".join(lines))},
    )


def explained(error: Exception) -> str | None:
    """What Hydra or OmegaConf refuses, with a suggestion where a name is unknown. None for what is
    neither's."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _no_option(error)
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
        key, whole = str(cause.key), str(cause.full_key)
        known = [str(each) for each in cause.parent_node if each != "hydra"]
        if key == whole:  # at the top, where groups are named too
            known += [
                path.name
                for path in sorted(CONF.iterdir())
                if path.is_dir() and path.name not in known
            ]
        if key not in known:
            return (
                f"unknown key {whole!r}{meant(key, known)}. There are: {', '.join(known)}"
                + _of_another(key, whole)
            )
    said = str(error) if cause is None or cause is error else f"{error}\n{cause}"
    return "\n".join(
        line
        for line in said.splitlines()
        if not line.strip().startswith(("full_key", "reference_type", "object_type"))
    )


def _no_option(error: MissingConfigException) -> str:
    path = PurePosixPath(str(error.missing_cfg_file))
    group, name = str(path.parent), path.name
    if group == "hydra/launcher" and name in EXTRAS:
        extra = EXTRAS[name]
        return f"this launcher is a plug-in that is not installed: pip install 'specdec[{extra}]'"
    options = [str(option) for option in error.options or ()]
    there = f"There are: {', '.join(options)}{lost()}"
    return f"{group} has no option {name!r}{meant(name, options)}. {there}"


def _of_another(key: str, whole: str) -> str:
    """A setting of a plug-in that the command has not named: which ones have it, and how to say
    so."""
    group = whole.partition(".")[0]
    if group not in ("drafter", "verifier") or key == whole:
        return ""
    owners = [name for name in names(group) if key in described(group, name)]
    if not owners:
        return ""
    return (
        f"\n{key} is a setting of {', '.join(owners)}: name the {group} first, e.g. "
        f"{group}={_usual(owners)} {whole}=..."
    )


def _usual(owners: list[str]) -> str:
    return "small_model" if "small_model" in owners else owners[0]
