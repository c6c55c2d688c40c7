"""Tokens, trees and accepted paths are what they were when they were recorded (tests/golden)."""

import json
from collections import defaultdict

import pytest

from tests.golden import KINDS, MODELS, recorded


def grouped(kind: str, key: str) -> dict[str, list]:
    """The record in parts that are tests of their own."""
    found = defaultdict(list)
    for case, expected in recorded(kind):
        found[str(case[key])].append((case, expected))
    return found


TABLES, ON_MODELS = grouped("tables", "rule"), grouped("models", "model")


def check(kind: str, entries: list) -> None:
    _, run = KINDS[kind]
    changed = [json.dumps(case) for case, expected in entries if run(case) != expected]
    assert not changed, f"{len(changed)} of {len(entries)} changed: {changed[:5]}"


@pytest.mark.parametrize("rule", TABLES)
def test_on_tables(rule):
    check("tables", TABLES[rule])


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("model", ON_MODELS)
def test_on_transformers_models(model, temperature):
    check("models", [entry for entry in ON_MODELS[model] if entry[0]["temperature"] == temperature])


def test_the_record_covers_every_drafter_and_rule():
    """A new plug-in is recorded once it is there."""
    assert set(ON_MODELS) == set(MODELS)
    for kind, (cases, _) in KINDS.items():
        known = [json.dumps(case, sort_keys=True) for case, _ in recorded(kind)]
        assert sorted(known) == sorted(json.dumps(case, sort_keys=True) for case in cases())
