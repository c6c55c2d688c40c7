"""."""

from tests.production_mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
