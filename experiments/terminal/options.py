"""Command lines of the form `key=value` for the small programs beside the runs; a misspelt key is
refused. `--key` stands for `key=true`, where the key is a switch."""

import sys
from collections.abc import Callable
from inspect import cleandoc
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.terminal.refusals import meant, refusing
from specdec.registry import described, place
from specdec.threads import settle

T = TypeVar("T")


def start(main: Callable[[T], Any], options: type[T], arguments: list[str] | None = None) -> None:
    """Run `main` on the dataclass `options`, filled from the command line."""
    settle()
    with refusing():
        main(parse(options, sys.argv[1:] if arguments is None else arguments))


def parse(options: type[T], arguments: list[str]) -> T:
    """Arguments without a key go into the field `names`, where the dataclass has one. Exits after
    `--help`; raises ValueError, with a line of help, for what it does not know."""
    known = OmegaConf.structured(options)
    usage = "options: " + " ".join(
        f"{key}={'...' if OmegaConf.is_missing(known, key) else known[key]}"
        for key in known
        if key != "names"
    )
    if {"-h", "--help"} & set(arguments):
        from experiments.terminal.help import listed, options_of

        values = OmegaConf.to_container(known)
        assert isinstance(values, dict)
        shown = {
            str(key): "..." if value == "???" else value
            for key, value in values.items()
            if key != "names"
        }
        print(cleandoc(str(options.__doc__)), listed(options_of(options), shown), sep="\n\n")
        sys.exit(0)
    usual = [key for key in known if not OmegaConf.is_missing(known, key)]
    switches = {f"--{key}": f"{key}=true" for key in usual if isinstance(known[key], bool)}
    arguments = [switches.get(argument, argument) for argument in arguments]
    names = [argument for argument in arguments if "names" in known and "=" not in argument]
    keyed = [argument for argument in arguments if argument not in names]
    for argument in keyed:
        key, equals, _ = argument.partition("=")
        if not equals or key not in list(known):
            raise ValueError(
                f"unknown option {argument!r}{meant(key, list(known), '{}=...')}\n{usage}"
            )
    try:
        given = OmegaConf.from_dotlist(keyed)
        of_study = _of_study(given.get("experiment"), options) if "experiment" in known else {}
        found = OmegaConf.merge(known, of_study, given, {"names": names} if names else {})
        if missing := OmegaConf.missing_keys(found):
            raise ValueError(f"{', '.join(sorted(missing))} must be given\n{usage}")
        return OmegaConf.to_object(found)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ValueError(f"{where}{str(error).splitlines()[0]}\n{usage}") from None


def _of_study(name: str | None, options: type[Any]) -> dict[str, Any]:
    """What conf/experiment/NAME.yaml says."""
    if name is None:
        return {}
    check_experiment(name, str(options.__doc__).split()[2].rstrip(":"))
    return dict(described("experiment", name))


def check_experiment(name: str, program: str) -> None:
    """Raises ValueError for a study of another program than `experiments.run` or such. A study
    opens with its command; unknown names are left to others."""
    path = place("experiment", name)
    if path is None:
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    command = next((line.lstrip("# ") for line in lines if "python -m " in line), "")
    if command and command.split()[2] != program:
        raise ValueError(f"experiment={name} is a study of another program: {command}")
