"""Mutants of the production code: small wrong changes, one at a time, each of which the named
tests should notice. `python -m tests.mutate` applies them to a copy and runs those tests.

(`tests/mutants/` is something else: whole rules, drafters and engines with the faults of published
decoders.)
"""

from tests.production_mutants import (
    bank,
    certificates,
    chance,
    drafters,
    drafting,
    grammar,
    heads,
    loop,
    measuring,
    models,
    pages,
    parallel,
    pricing,
    studies,
    tokenizers,
    trees,
    verifiers,
)
from tests.production_mutants.mutant import Mutant

ROOMS = (
    trees,
    chance,
    verifiers,
    drafting,
    pricing,
    bank,
    drafters,
    grammar,
    heads,
    parallel,
    models,
    pages,
    tokenizers,
    loop,
    measuring,
    certificates,
    studies,
)
MUTANTS: tuple[Mutant, ...] = tuple(mutant for room in ROOMS for mutant in room.MUTANTS)
