"""The list of mutants of the production code is in line with the code, and a sample of them is
noticed."""

import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutate import ALL_VERDICTS, KILLED, SURVIVED, page, row, summary
from tests.production_mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_every_change_can_be_made(file):
    """Its old text occurs once, and what comes of it is another program."""
    source = (ROOT / file).read_text(encoding="utf-8")
    for mutant in MUTANTS:
        if mutant.file == file:
            changed = mutant.applied(source)
            assert changed != source, mutant.name
            compile(changed, mutant.name, "exec")


def test_every_mutant_has_a_name_and_tests_that_are_there():
    assert len(MUTANTS) >= 150
    twice = [name for name, count in Counter(one.name for one in MUTANTS).items() if count > 1]
    assert not twice
    for mutant in MUTANTS:
        files = [word for word in shlex.split(mutant.tests) if word.startswith("tests/")]
        assert files, mutant.name
        assert all((ROOT / file.partition("::")[0]).exists() for file in files), mutant.name


def test_the_page_keeps_rows_of_mutants_that_are_what_they_were():
    first, second = MUTANTS[:2]
    whole = page({first.name: KILLED, second.name: SURVIVED}, "")
    assert f"{row(first)}{KILLED} |" in whole
    again = page({second.name: KILLED}, whole)
    assert f"{row(first)}{KILLED} |" in again
    assert f"{row(second)}{KILLED} |" in again
    assert SURVIVED not in again.partition("|")[2]
    assert page({}, again.replace(first.breaks, "something else")).count(KILLED) < again.count(
        KILLED
    )


def test_a_summary_counts_what_is_not_equivalent():
    assert summary([KILLED, KILLED, SURVIVED, ALL_VERDICTS[3]]) == (
        "4 mutants: 2 killed, 1 survived, 1 equivalent; killed are 66.7% of those that are "
        "not equivalent"
    )


@pytest.mark.slow
def test_a_sample_is_noticed():
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutate", "--sample", "10", "--seed", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
