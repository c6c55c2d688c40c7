"""What tables and figures call a run's method."""

from collections.abc import Sequence
from typing import Any

from experiments.study.schema import Settings
from specdec.registry import described, names


def label(settings: Settings, name: str, overrides: Sequence[str]) -> str:
    """Its label (conf/method/) and what the command line changed of the drafter; without a label,
    the drafter's name and what differs from its YAML, e.g. "ngram length=16 tree=true"."""
    paths = [override.partition("=")[0].lstrip("+") for override in overrides]
    changed = {path.split(".")[1] for path in paths if path.startswith("drafter.")}
    if settings.label is None and name in names("drafter"):  # tuned.yaml is no drafter by name
        usual = described("drafter", name)
        changed = {key for key, value in settings.drafter.items() if usual.get(key) != value}
    own = [f"{key}={_short(value)}" for key, value in settings.drafter.items() if key in changed]
    return " ".join([settings.label or name, *own])


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_short, value))
    return (
        str(value).lower() if isinstance(value, bool) else str(value).rstrip("/").rpartition("/")[2]
    )
