"""How a program ends that cannot go on: with a line or two that say what came, what was expected
and what to do."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

FULL = "HYDRA_FULL_ERROR"  # set to 1, it shows where an error comes from
INTERRUPTED, PIPE_CLOSED = 130, 141  # what shells report for these signals


@contextmanager
def refusing(
    explain: Callable[[Exception], str | None] = lambda error: None,
    interrupted: Callable[[], str] = lambda: "interrupted",
) -> Iterator[None]:
    """Exits with the reason why a value, a file or a configuration was refused. `explain` says more
    about errors that it knows; `interrupted` gives the line for Ctrl-C. A reader that has closed
    the pipe (`... | head`) is not an error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # so that flushing at exit does not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    except KeyboardInterrupt:
        print(f"\n{interrupted()}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        known = explain(error) or (said(error) if isinstance(error, ValueError | OSError) else None)
        if known is None or os.environ.get(FULL) == "1":
            raise
        sys.exit(f"{known}\n({FULL}=1 shows where it comes from)")


def said(error: Exception) -> str:
    """In a line: of a file that cannot be read or written, why and which."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def meant(name: str, known: Iterable[str], form: str = "{!r}") -> str:
    """ " (did you mean 'target'?)", or nothing."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {form.format(near[0])}?)" if near else ""
