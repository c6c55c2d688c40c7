"""The programs."""

from specdec.quiet import quiet_imports

quiet_imports()
