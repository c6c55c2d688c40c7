"""What every drafter and rule did before the code was rebuilt: tokens, drafted trees and accepted
paths, for fixed seeds.

python -m tests.golden            write the record anew (only where a change of tokens is meant, and
                                  said in the CHANGELOG)
python -m tests.golden new        add cases that are not recorded yet, of new drafters and rules;
                                  nothing that is there changes

Two files of one JSON object per line: `tables.jsonl`, every drafter variant under every rule that
the contract allows, on a table of four tokens; `models.jsonl`, every drafter on three tiny
transformers models in float64.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

import specdec
from experiments.certificates import suite
from specdec import Coupled, Keyed
from specdec.models.table import TableModel
from specdec.plugins import build
from tests import models
from tests.exact import table

FOLDER = Path(__file__).parent
Record = dict[str, Any]

TABLE_PROMPT = [0, 1, 2, 0, 3, 0]
TABLES = (table(4, 3, 7), table(4, 3, 8))
MODELS = ("llama_gqa", "gemma3", "qwen3")
DEEPER = [  # beside the variants, which are small
    {"name": "small_model", "depth": 4},
    {"name": "small_model", "depth": 3, "branching": [3, 2, 1]},
    {"name": "small_model", "depth": 4, "branching": 3, "draw": "ranked", "nodes": 9},
    {"name": "small_model", "depth": 3, "draw": "adaptive", "nodes": 7},
    {"name": "ngram"},
    {"name": "eagle", "depth": 4, "branching": 3, "draw": "ranked", "nodes": 9},
]


def decoded(target: Any, prompts: list[list[int]], **options: Any) -> Record:
    """Tokens of every prompt; of every round the parents and the accepted path of each live row,
    without padding."""
    out = specdec.generate(target, prompts, **options)
    rounds = []
    for step in out.steps:
        rows = step.live.nonzero()[0].tolist()
        rounds.append(
            [
                [row, unpadded(step.parents[row].tolist()), unpadded(step.path[row].tolist())]
                for row in rows
            ]
        )
    return {
        "verifier": out.report.verifier,
        "tokens": [row.tolist() for row in out.tokens],
        "rounds": rounds,
    }


def unpadded(numbers: list[int]) -> list[int]:
    """Without the -1s at the end; a root stays."""
    while len(numbers) > 1 and numbers[-1] == -1:
        numbers = numbers[:-1]
    return numbers if numbers != [-1] else []


def table_cases() -> Iterator[Record]:
    for temperature in (0.0, 1.0):
        for drafter, rule in suite.pairs(temperature):
            yield {
                "drafter": dict(drafter),
                "rule": rule,
                "temperature": temperature,
                "chance": "keyed",
            }
    for drafter in suite.drafters():
        yield {"drafter": dict(drafter), "rule": "naive", "temperature": 1.0, "chance": "coupled"}


def on_tables(case: Record) -> Record:
    p, q = (TableModel(rows, prompt=len(TABLE_PROMPT)) for rows in TABLES)
    return decoded(
        p,
        [TABLE_PROMPT] * 3,
        drafter=suite.make(case["drafter"], p, q),
        verifier=build("verifier", case["rule"]),
        temperature=case["temperature"],
        max_new_tokens=12,
        chance=Keyed(5) if case["chance"] == "keyed" else Coupled(5),
        allow_lossy=True,
    )


def model_cases() -> Iterator[Record]:
    for name in MODELS:
        for temperature in (0.0, 1.0):
            for drafter in [*suite.drafters(), *DEEPER]:
                yield {"model": name, "drafter": dict(drafter), "temperature": temperature}


@cache
def pair_of(name: str) -> tuple[Any, Any]:
    model = models.build(name, torch.float64)
    return specdec.load(model), specdec.load(models.similar(model))


def on_models(case: Record) -> Record:
    target, draft = pair_of(case["model"])
    return decoded(
        target,
        models.prompts(9, 14, 5),
        drafter=suite.make(case["drafter"], target, draft),
        temperature=case["temperature"],
        max_new_tokens=10,
        seed=5,
    )


KINDS = {"tables": (table_cases, on_tables), "models": (model_cases, on_models)}


def recorded(kind: str) -> list[tuple[Record, Record]]:
    """(case, what it gave) of one file."""
    lines = (FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["case"], entry["found"]) for entry in map(json.loads, lines)]


def main(keep: bool) -> None:
    torch.set_num_threads(1)
    for kind, (cases, run) in KINDS.items():
        entries = recorded(kind) if keep else []
        known = {json.dumps(case, sort_keys=True): found for case, found in entries}
        lines = []
        for case in cases():
            found = known.get(json.dumps(case, sort_keys=True)) or run(case)
            lines.append(json.dumps({"case": case, "found": found}, separators=(",", ":")))
        (FOLDER / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(kind, len(lines))
