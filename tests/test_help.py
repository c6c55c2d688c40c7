"""`--help` says what every key means."""

import importlib
import re
import subprocess
import sys

import pytest

from experiments.study.schema import Command
from experiments.terminal.help import annotated, listed, meanings_of, of_plugins, options_of
from experiments.terminal.meanings import programs
from experiments.terminal.options import parse
from tests.test_readme import ROOT


def options_class(program):
    """The dataclass whose docstring names the program."""
    module = importlib.import_module(program.name)
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and (each.__doc__ or "").startswith(f"python -m {program.name}")
    ]
    return found[0] if found else None


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
def test_small_programs_explain_every_key(program, capsys):
    options = options_class(program)
    if options is None:  # of a file below experiments/, which its program calls
        return
    with pytest.raises(SystemExit):
        parse(options, ["--help"])
    said = capsys.readouterr().out
    meanings = {option.key: option.meaning for option in options_of(options)}
    for option in program.options:
        if option.key != "names":
            assert meanings[option.key]
            assert re.search(rf"^  {option.key}=.* {{2,}}\S", said, re.M), option.key


def test_a_run_explains_every_key():
    command = [sys.executable, "-m", "experiments.run", "--help", "drafter=small_model"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "\nbatch_size: 1  # prompts of one call\n" in said
    assert "\n  branching: 1  # children per node" in said  # of the drafter that was chosen
    assert "max_ngram: 3  # longest suffix" not in said  # and of no other
    keys = said.partition("== Config ==")[2].splitlines()
    lines = [at for at, line in enumerate(keys) if re.match(r"^(  )?(?!_target_)\w+: \S", line)]
    silent = [
        keys[at]
        for at in lines
        if "#" not in keys[at] and not keys[at - 1].lstrip().startswith("#")
    ]
    assert silent == ["logger: null"]  # a group, listed above


def test_meanings_are_comments_of_yaml():
    text = "== Config ==\nstudy: default\nsampling:\n  top_p: null\n"
    said = annotated(text, {"study": "its folder", "sampling.top_p": "long " * 30})
    above = said.splitlines()[3:-1]
    assert "study: default  # its folder" in said
    assert all(line.startswith("  # long") and len(line) <= 100 for line in above)
    assert annotated("no keys", {"study": "its folder"}) == "no keys"


def test_groups_have_no_meaning_of_their_own():
    found = meanings_of(Command)
    assert "prompts" not in found
    assert found["prompts.limit"].startswith("that many")


def test_plugins_are_known_by_their_class():
    found = of_plugins("drafter:\n  _target_: drafters.ngram.NGram\n")
    assert found["drafter.max_ngram"]
    assert "drafter.model" not in found


def test_keys_of_small_programs_are_wrapped():
    said = listed(options_of(Command), {"batch_size": 1, "seats": "..."})
    assert "  batch_size=1                      prompts of one call" in said
    assert "seats=..." in said
    assert max(map(len, said.splitlines())) <= 100
