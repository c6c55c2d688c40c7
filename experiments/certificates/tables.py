"""Targets and draft models that are tables. Exact certificates run on them, and users provide them
in case files.

A table maps prefixes of generated tokens to weights; a prefix that is missing uses the row of the
empty one.
"""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from specdec.models.table import TableModel
from specdec.sampling import Sampling

Prefix = tuple[int, ...]
Rows = Mapping[Prefix, Sequence[float]]
Law = dict[Prefix, float]
DRAWS = {"chain": "wor", "iid": "wr", "wor": "wor", "topk": "topk", "hub": "hub"}


@dataclass(frozen=True)
class Tables:
    """A target and a draft model over a few tokens, the prompt that both continue, and how both are
    sampled."""

    name: str
    p: Rows
    q: Rows
    prompt: Prefix = (0,)
    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 1.0})

    @property
    def vocabulary(self) -> int:
        return len(self.p[()])

    def target(self) -> TableModel:
        return TableModel(self.p, prompt=len(self.prompt))

    def draft(self) -> TableModel:
        return TableModel(self.q, prompt=len(self.prompt))

    @cached_property
    def _laws(self) -> dict[Prefix, list[float]]:
        """The target's rows as the run's sampling shapes them; no processor here reads the
        prefix."""
        prefixes = list(self.p)
        logits = torch.tensor(
            [list(map(float, self.p[prefix])) for prefix in prefixes], dtype=torch.float64
        )
        laws = Sampling(**self.sampling).law((logits / logits.sum(1, keepdim=True)).log(), list)
        return dict(zip(prefixes, laws.tolist(), strict=True))

    def law(self, prefix: Prefix) -> list[float]:
        """The law of the token that follows `prefix` in plain decoding."""
        return self._laws.get(prefix, self._laws[()])

    def completions(
        self, prefix: Prefix, probability: float, tokens: int
    ) -> Iterator[tuple[Prefix, float]]:
        """Every way in which plain decoding goes on from `prefix` to `tokens` tokens."""
        if len(prefix) == tokens:
            yield prefix, probability
            return
        for token, chance in enumerate(self.law(prefix)):
            if chance:
                yield from self.completions((*prefix, token), probability * chance, tokens)

    def plain(self, tokens: int) -> Law:
        """The joint law of plain decoding."""
        return dict(self.completions((), 1.0, tokens))


def distance(one: Law, other: Law) -> float:
    """Total variation."""
    return math.fsum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in {*one, *other}) / 2


# -------------------------------------------------------------------------------- the set of tables


def _rows(
    vocabulary: int, depth: int, row: Callable[[random.Random], list[float]], seed: int
) -> Rows:
    """A row for every prefix up to `depth`."""
    source = random.Random(seed)
    prefixes = (
        p
        for length in range(depth + 1)
        for p in itertools.product(range(vocabulary), repeat=length)
    )
    return {prefix: row(source) for prefix in prefixes}


def _dense(vocabulary: int) -> Callable[[random.Random], list[float]]:
    return lambda source: [source.randint(1, 9) for _ in range(vocabulary)]


def _with_zeros(source: random.Random) -> list[float]:
    row = [source.choice([0, 0, 1, 2, 5]) for _ in range(3)]
    row[source.randrange(3)] += 1
    return row


def _one_hot(source: random.Random) -> list[float]:
    row = [0.0, 0.0, 0.0]
    row[source.randrange(3)] = 1.0
    return row


def _half(first: bool) -> Callable[[random.Random], list[float]]:
    def row(source: random.Random) -> list[float]:
        weights = [source.randint(1, 5), source.randint(1, 5)]
        return [*weights, 0, 0] if first else [0, 0, *weights]

    return row


def standard() -> list[Tables]:
    """What every pair has to pass: rows that depend on the context, zeros, ties, p = q, disjoint p
    and q, one-hot rows, filtered rows; two to four tokens. Prompts repeat themselves, which gives
    n-grams something to find."""
    three, four, equal = (0, 1, 0, 2, 0), (0, 1, 2, 0, 3, 0), _rows(3, 3, _with_zeros, 31)
    filtered = {"temperature": 0.7, "top_k": 3, "top_p": 0.8}
    return [
        Tables("two tokens", _rows(2, 4, _dense(2), 1), _rows(2, 4, _dense(2), 2), (0, 1, 0)),
        Tables(
            "two tokens, zeros",
            {(): [1, 2], (0,): [0, 1], (1,): [3, 1]},
            {(): [2, 1], (0,): [1, 1], (1,): [0, 1]},
        ),
        Tables("zeros", _rows(3, 3, _with_zeros, 11), _rows(3, 3, _with_zeros, 12), three),
        Tables(
            "ties",
            _rows(3, 3, lambda source: [1, 1, source.randint(1, 2)], 21),
            {(): [2, 2, 1]},
            three,
        ),
        Tables("p = q", equal, equal, three),
        Tables("one-hot p", _rows(3, 3, _one_hot, 41), _rows(3, 3, _dense(3), 42), three),
        Tables("one-hot q", _rows(3, 3, _dense(3), 51), _rows(3, 3, _one_hot, 52), three),
        Tables("disjoint", _rows(4, 2, _half(True), 61), _rows(4, 2, _half(False), 62), four),
        Tables("four tokens", _rows(4, 3, _dense(4), 71), _rows(4, 3, _dense(4), 72), four),
        Tables("filtered", _rows(4, 3, _dense(4), 81), _rows(4, 3, _dense(4), 82), four, filtered),
    ]


# --------------------------------------------------------------------------------------- case files


@dataclass(frozen=True)
class Case:
    """One user-given case: tables, the shape of the tree, how it is drawn, who verifies."""

    name: str
    tables: Tables
    branching: list[int]
    draft: str
    verifier: str


def read_cases(path: str | Path) -> Iterator[Case | ValueError]:
    """The cases of a file, or for each that is malformed an error that names file and case.

    The file is JSON: {"cases": [...]} or a list. A case has name, V, P, Q (tables: comma-joined
    prefix -> V weights, as numbers or fractions such as "2/3"), branching (children per depth),
    draft (chain, iid, wor, topk, hub) and verifier. Raises ValueError if there are no cases to be
    read at all.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the case file {path}: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    cases = content.get("cases") if isinstance(content, dict) else content
    if not isinstance(cases, list) or not cases:
        raise ValueError(
            f'{path} must hold a list of cases, or {{"cases": [...]}}, with at least one case'
        )
    for number, case in enumerate(cases):
        name = case.get("name") if isinstance(case, dict) else None
        title = repr(name) if isinstance(name, str) else f"number {number}"
        try:
            yield _case(case, number)
        except ValueError as error:
            yield ValueError(f"{path}, case {title}: {error}")


def _case(case: Any, number: int) -> Case:
    if not isinstance(case, dict):
        raise ValueError(f"a case is an object, got {type(case).__name__}")
    missing = [
        key for key in ("name", "V", "P", "Q", "branching", "draft", "verifier") if key not in case
    ]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    if not isinstance(case["name"], str) or not isinstance(case["verifier"], str):
        raise ValueError("name and verifier must be strings")
    vocabulary, branching, draft = case["V"], case["branching"], case["draft"]
    if not _whole(vocabulary):
        raise ValueError(f"V must be an integer >= 1, got {vocabulary!r}")
    if not isinstance(branching, list) or not branching or not all(map(_whole, branching)):
        raise ValueError(
            f"branching must be a list of integers >= 1, one per depth, got {branching!r}"
        )
    if draft not in DRAWS:
        raise ValueError(f"draft must be one of {', '.join(DRAWS)}, got {draft!r}")
    if draft == "chain" and max(branching) > 1:
        raise ValueError(f"a chain has branching 1 everywhere, got {branching}")
    p, q = (_table(case[letter], vocabulary, letter) for letter in "PQ")
    return Case(case["name"], Tables(case["name"], p, q), branching, draft, case["verifier"])


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _table(content: Any, vocabulary: int, letter: str) -> Rows:
    if not isinstance(content, dict) or "" not in content:
        raise ValueError(
            f"{letter} must be an object from prefixes to rows, with a row for the empty prefix ''"
        )
    table: dict[Prefix, list[float]] = {}
    for key, row in content.items():
        try:
            prefix = tuple(int(token) for token in key.split(",")) if key else ()
        except ValueError:
            raise ValueError(
                f"{letter} has the prefix {key!r}; expected comma-joined tokens such as '0,2'"
            ) from None
        if any(not 0 <= token < vocabulary for token in prefix):
            raise ValueError(
                f"{letter} has the prefix {key!r}, with a token outside 0 .. V - 1 = "
                f"{vocabulary - 1}"
            )
        if not isinstance(row, list) or len(row) != vocabulary:
            raise ValueError(
                f"{letter}[{key!r}] must be a list of V = {vocabulary} weights, got {row!r}"
            )
        try:
            weights = [Fraction(str(weight)) for weight in row]
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"{letter}[{key!r}] has a weight that is no finite number or fraction: {row!r}"
            ) from None
        total = sum(weights)
        if min(weights) < 0 or not total:
            raise ValueError(
                f"{letter}[{key!r}] must be weights >= 0 that are not all 0, got {row!r}"
            )
        table[prefix] = [float(weight / total) for weight in weights]
    return table
