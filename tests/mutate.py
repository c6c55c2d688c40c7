"""Would the tests notice? Applies mutants of the production code, one at a time, to a copy of the
checkout and runs the tests that should fail.

python -m tests.mutate                                  all of them (about half an hour)
python -m tests.mutate --only chance walk               those whose name or file has such a part
python -m tests.mutate --sample 10 --seed 3             some of them
python -m tests.mutate --write docs/mutants_of_production.md
                                                        and write the table; rows of mutants that
                                                        did not run now are kept

A mutant is killed where its tests fail, and only if they pass on the code as it is, which is tried
first unless --sound says so. The exit status is 1 where a mutant survived or has no valid verdict.
"""

import argparse
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.table import Table

from tests.production_mutants import MUTANTS
from tests.production_mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 180.0  # seconds that the tests of a mutant may take
LEFT_OUT = (
    ".git",
    ".venv",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "multirun",
    "outputs",
    "trained",
    "wandb",
    "build",
    "dist",
)
KILLED, SURVIVED, TIMED_OUT, EQUIVALENT = "killed", "survived", "timed out", "equivalent"
NO_TESTS, FAILS_ANYWAY = "no tests", "fails anyway"
STYLES = {KILLED: "green", EQUIVALENT: "cyan"}
PRELOADED = (  # imported once, in the process that is forked for each mutant
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "safetensors.torch",
    "scipy.stats",
    "scipy.optimize",
    "pandas",
    "pyarrow.parquet",
    "hydra",
    "pydantic",
)

USUAL = (
    "-x",
    "-q",
    "--tb=line",
    "--assert=plain",
    "--hypothesis-profile=first",
    "-p",
    "no:cacheprovider",
    "-m",
    "not slow",
)


# ------------------------------------------------------------------------------ one run of tests


def _tests(folder: Path, selection: str, log: Path) -> None:
    """In a process of its own: run pytest on the copy and end with its exit code."""
    os.setsid()  # so that what the tests start can be ended with them
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]  # those of the checkout
    import pytest

    code = int(pytest.main([*USUAL, *shlex.split(selection)]))
    sys.stdout.flush()
    os._exit(code)


def run_tests(folder: Path, selection: str, limit: float, log: Path) -> str:
    """Killed where a test fails; the copy's own verdict, whoever changed it."""
    process = multiprocessing.get_context("fork").Process(
        target=_tests, args=(folder, selection, log)
    )
    process.start()
    process.join(limit)
    late = process.is_alive()
    assert process.pid is not None
    with suppress(ProcessLookupError, PermissionError):  # it is over, with all that it started
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    if late:
        return TIMED_OUT
    return {0: SURVIVED, 4: NO_TESTS, 5: NO_TESTS}.get(process.exitcode or 0, KILLED)


class Copy:
    """A copy of the checkout, for one worker."""

    def __init__(self, folder: Path, limit: float, sound: bool) -> None:
        self.folder, self.limit, self.sound = folder, limit, sound
        self._sound: dict[str, str] = {}  # verdict of the code as it is, by selection
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))

    def judge(self, mutant: Mutant) -> str:
        with self._changed(mutant):
            verdict = self._run(mutant.tests, mutant.name)
        if verdict in (KILLED, TIMED_OUT) and not self.sound:
            if mutant.tests not in self._sound:
                self._sound[mutant.tests] = self._run(mutant.tests, "as it is")
            if self._sound[mutant.tests] != SURVIVED:
                return FAILS_ANYWAY
        return EQUIVALENT if mutant.equivalent and verdict == SURVIVED else verdict

    def _run(self, selection: str, name: str) -> str:
        log = self.folder.with_name(f"{self.folder.name} {name.replace('/', ' ')}.log")
        return run_tests(self.folder, selection, self.limit, log)

    @contextmanager
    def _changed(self, mutant: Mutant) -> Iterator[None]:
        path = self.folder / mutant.file
        source = path.read_text(encoding="utf-8")
        try:
            self._write(path, mutant.applied(source))
            yield
        finally:
            self._write(path, source)

    @staticmethod
    def _write(path: Path, source: str) -> None:
        path.write_text(source, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()  # of the same second and size, it would pass for the new text's


# ------------------------------------------------------------------------------------ all of them


def judged(
    mutants: Sequence[Mutant], workers: int, limit: float, logs: Path, sound: bool
) -> Iterator[tuple[Mutant, str, float]]:
    """Each mutant with its verdict and seconds, in their order."""
    copies: SimpleQueue[Copy] = SimpleQueue()
    for number in range(workers):
        copies.put(Copy(logs / f"copy {number}", limit, sound))

    def judge(mutant: Mutant) -> tuple[Mutant, str, float]:
        copy, began = copies.get(), time.perf_counter()
        try:
            return mutant, copy.judge(mutant), time.perf_counter() - began
        finally:
            copies.put(copy)

    if workers == 1:
        yield from map(judge, mutants)
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield from pool.map(judge, mutants)
        finally:
            pool.shutdown(cancel_futures=True)


def chosen(only: Sequence[str], sample: int | None, seed: int) -> list[Mutant]:
    found = [
        mutant
        for mutant in MUTANTS
        if not only or any(part in f"{mutant.file} {mutant.name}" for part in only)
    ]
    if not found:
        raise SystemExit(f"no mutant's name or file contains {' or '.join(only)}")
    if sample is None or sample >= len(found):
        return found
    picked = set(random.Random(seed).sample(range(len(found)), sample))
    return [mutant for number, mutant in enumerate(found) if number in picked]


def summary(verdicts: Sequence[str]) -> str:
    """ "150 mutants: 140 killed, 10 survived; 93.3% of those that are not equivalent"."""
    counts = Counter(verdicts)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    others = len(verdicts) - counts[EQUIVALENT]
    share = (
        f"; killed are {counts[KILLED] / others:.1%} of those that are not equivalent"
        if others
        else ""
    )
    return f"{len(verdicts)} mutants: {told}{share}"


# -------------------------------------------------------------------------------------- the table


def row(mutant: Mutant) -> str:
    """The row of a mutant, without its verdict. Another change is another row."""
    change = f"{_code(mutant.old)} becomes {_code(mutant.new)}"
    cells = (mutant.name, change, mutant.breaks, _code(mutant.tests))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " | "


def _code(text: str) -> str:
    line = " ".join(text.split())
    if not line:
        return "nothing"
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def page(verdicts: dict[str, str], before: str) -> str:
    """The table as Markdown. `before`: the page so far, whose rows are kept for the mutants that
    have no verdict now and are what they were."""
    old_rows = set(before.splitlines())
    lines: list[str] = []
    files: dict[str, list[str]] = {}
    told: list[str] = []
    for mutant in MUTANTS:
        options = [verdicts[mutant.name]] if mutant.name in verdicts else list(ALL_VERDICTS)
        for verdict in options:
            reason = f": {mutant.equivalent}" if verdict == EQUIVALENT else ""
            line = f"{row(mutant)}{verdict}{reason.replace('|', chr(92) + '|')} |"
            if mutant.name in verdicts or line in old_rows:
                files.setdefault(mutant.file, []).append(line)
                told.append(verdict)
                break
    for file, rows in sorted(files.items()):
        lines += ["", f"## {file}", "", "| mutant | change | breaks | tests | verdict |"]
        lines += ["|---|---|---|---|---|", *rows]
    missing = len(MUTANTS) - len(told)
    left_out = f" {missing} of the list have not been run as they are now." if missing else ""
    said = textwrap.fill(f"{summary(told) if told else 'none'}.{left_out}", 100)
    return PAGE.format(summary=said) + "\n".join([*lines, ""])


def write(path: Path, verdicts: dict[str, str]) -> None:
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(page(verdicts, before), encoding="utf-8")


ALL_VERDICTS = (KILLED, SURVIVED, TIMED_OUT, EQUIVALENT, NO_TESTS, FAILS_ANYWAY)
PAGE = """\
# Mutants of the production code

Small wrong changes, chosen by hand, one at a time. The tests named beside each run on the changed
code and should fail; they are part of `make test`. The list is kept in `tests/production_mutants/`;
`python -m tests.mutate --write docs/mutants_of_production.md` runs it and writes this page.
An equivalent mutant changes nothing that a run could show, for the reason given.

Faults of published decoders, planted as rules and drafters of their own, are in docs/mutants.md.

{summary}
"""


# ---------------------------------------------------------------------------------------- program


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", default=[], help="those whose name or file has this")
    parser.add_argument("--sample", type=int, help="so many of them, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a mutant's tests")
    parser.add_argument(
        "--sound", action="store_true", help="the tests are known to pass on the code as it is"
    )
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--logs", type=Path, help="keep copies and pytest's output in this folder")
    wanted = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console(width=None if sys.stdout.isatty() else 120)
    mutants, verdicts = chosen(wanted.only, wanted.sample, wanted.seed), {}
    for module in PRELOADED:
        __import__(module)
    logs = wanted.logs or Path(tempfile.mkdtemp(prefix="mutants-"))
    table = Table("mutant", "file", "breaks", "verdict", title="not killed")
    try:
        for number, (mutant, verdict, seconds) in enumerate(
            judged(mutants, wanted.workers, wanted.limit, logs, wanted.sound), 1
        ):
            verdicts[mutant.name] = verdict
            console.print(
                f"{number}/{len(mutants)} [{STYLES.get(verdict, 'red')}]{verdict}[/] "
                f"{mutant.file}: {mutant.name} ({seconds:.0f} s)",
                highlight=False,
            )
            if verdict != KILLED:
                table.add_row(mutant.name, mutant.file, mutant.breaks, verdict)
            if wanted.write:
                write(wanted.write, verdicts)
    except KeyboardInterrupt:
        console.print("interrupted")
    finally:
        if wanted.logs is None:
            shutil.rmtree(logs, ignore_errors=True)
    if table.row_count:
        console.print(table)
    console.print(summary(list(verdicts.values())))
    return int(any(verdict not in (KILLED, EQUIVALENT) for verdict in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
