"""The shapes in public signatures are what really comes and goes: decoding with every rule and kind
of tree, in a process in which each call of the loop's contracts is checked against them."""

import inspect
import subprocess
import sys

import specdec
from specdec import requests

CHECKED = """
from jaxtyping import install_import_hook
rooms = ["tree", "state", "probs", "chance", "interfaces", "models.table", "verifying", "sampling"]
install_import_hook([f"specdec.{room}" for room in rooms], "beartype.beartype")

import torch
import specdec
from specdec.models.table import TableModel
from specdec.plugins import names
from specdec.probs import top

def table(seed):
    weights = torch.rand(21, 5, generator=torch.Generator().manual_seed(seed)) + 0.1
    places = [(), *[(a,) for a in range(4)], *[(a, b) for a in range(4) for b in range(4)]]
    return TableModel(dict(zip(places, weights.tolist())), context=64)

SHAPES = [
    {"depth": 3}, {"depth": 2, "branching": 2}, {"depth": 2, "branching": 2, "draw": "wr"},
    {"depth": 2, "branching": 2, "draw": "hub"}, {"depth": 2, "branching": 2, "draw": "topk"},
    {"depth": 3, "draw": "ranked", "nodes": 6}, {"depth": 3, "draw": "adaptive", "nodes": 6},
]
ran = set()
for shape in SHAPES:
    for rule in names("verifier"):
        for temperature in (0.0, 0.8):
            drafter = {"name": "small_model", "model": table(1), **shape}
            try:
                specdec.generate(
                    table(0), [[1, 2], [3], [0, 1, 2]], drafter=drafter, verifier=rule,
                    temperature=temperature, max_new_tokens=6, seats=2, allow_lossy=True,
                )
            except specdec.Refused:  # the pair does not go together
                continue
            ran.add(rule)
assert ran == set(names("verifier")), ran
try:
    top(torch.zeros(3), 2)
except Exception as error:
    print(type(error).__name__)
"""


def test_public_shapes_hold_while_decoding():
    done = subprocess.run([sys.executable, "-c", CHECKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["TypeCheckError"]  # the check is on: a vector is no batch


def test_generate_stream_and_prepare_are_in_step():
    """One list of arguments, with one set of defaults; `progress` is for who waits to the end, and
    `trace` for who keeps the output."""
    generate, stream, prepare = (
        dict(inspect.signature(call).parameters)
        for call in (specdec.generate, specdec.stream, requests.prepare)
    )
    assert generate.pop("progress").default is False
    assert generate.pop("trace").default is prepare.pop("trace").default is False
    for other in (stream, prepare):
        assert list(other) == list(generate)
        assert {name: one.default for name, one in other.items()} == {
            name: one.default for name, one in generate.items()
        }
        assert {name: str(one.annotation) for name, one in other.items()} == {
            name: str(one.annotation) for name, one in generate.items()
        }
