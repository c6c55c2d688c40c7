"""The cost table that a run decides by: one that was given, one from the cache folder, or one that
is measured now and kept there."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specdec.interfaces import Drafter, LanguageModel, compile_of
from specdec.pricing import at_once
from specdec.pricing.costs import KIND, Costs
from specdec.pricing.kinds import Bounds
from specdec.pricing.measure import here, label, measured_on_first_use
from specdec.ranks import refuse_own_clocks

AUTO = "auto"
FOLDER = "SPECDEC_CACHE"  # the variable of the environment that names another folder

Choice = str | Path | Costs


def check_choice(choice: Any) -> Choice:
    """Raises ValueError for what names no table; a file is read only when a run begins."""
    if isinstance(choice, (Costs, Path)) or (isinstance(choice, str) and choice):
        return choice
    raise ValueError(
        f"costs must be 'auto', a file that python -m experiments.profile output=costs.json has "
        f"written, or a specdec.Costs; got {choice!r}"
    )


def costs_for(
    choice: Choice,
    target: LanguageModel,
    drafter: Drafter | None,
    rows: int = 1,
    bounds: Bounds = Bounds(),  # noqa: B008  a frozen value
    strict: bool = False,
) -> Costs:
    """The table for decisions about `drafter` on `target` (None: about plain decoding).

    A table of another machine or model is a warning that names both and, if `strict`, refused.
    Raises ValueError for a table that does not have the drafter.
    """
    name = None if drafter is None else label(drafter)
    if choice == AUTO:
        refuse_own_clocks(target, "costs='auto', a table that is measured,")
        return _kept(target, drafter, rows, bounds)
    costs = choice if isinstance(choice, Costs) else Costs.load(choice)
    costs.check(here(target), strict)
    costs.curves(name)  # refuses a drafter that it does not have
    return costs


def cache_folder() -> Path:
    given = os.environ.get(FOLDER)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "specdec"


def _kept(target: LanguageModel, drafter: Drafter | None, rows: int, bounds: Bounds) -> Costs:
    """From the cache folder, else measured. Whatever changes costs is in the file's name."""
    about = {
        "kind": KIND,
        "measuring": asdict(here(target)),
        "sizes": [target.vocabulary, target.hidden_size, target.context],
        "compiled": bool(compile_of(target)),
        "drafter": None if drafter is None else [label(drafter), drafter.settings_in_effect()],
        "rows": rows,
        "bounds": asdict(bounds),
        "at once": [at_once.CHAINS, at_once.RANKED],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=repr).encode()).hexdigest()
    path = cache_folder() / "costs" / f"{digest[:32]}.json"
    if path.is_file():
        return Costs.load(path)
    costs = measured_on_first_use(target, drafter, rows, bounds)
    costs.save(path)
    return costs
