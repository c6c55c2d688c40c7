"""Command lines of the form `key=value` for the small programs beside the runs; a misspelt key is refused."""

import difflib
import sys
from typing import TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def parse(options: type[T], arguments: list[str] | None = None) -> T:
    """The dataclass `options`, filled from the command line. Exits with a line of help for what it does not know."""
    arguments = sys.argv[1:] if arguments is None else arguments
    known = OmegaConf.structured(options)
    usage = "options: " + " ".join(
        f"{key}={'...' if OmegaConf.is_missing(known, key) else known[key]}" for key in known
    )
    if {"-h", "--help"} & set(arguments):
        print(options.__doc__, usage, sep="\n")
        sys.exit(0)
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key not in list(known):
            near = difflib.get_close_matches(key, list(known), 1)
            sys.exit(f"unknown option {argument!r}" + (f"; did you mean {near[0]}=...?" if near else "") + f"\n{usage}")
    try:
        found = OmegaConf.to_object(OmegaConf.merge(known, OmegaConf.from_dotlist(arguments)))
    except OmegaConfBaseException as error:
        sys.exit(f"{error}\n{usage}")
    return found  # type: ignore[return-value]
