"""What rounds cost on this machine: measured once, kept in a file, and read back as curves.

    costs = specdec.Costs.measure(target, drafter="small_model")
    costs.save("costs.json")
    specdec.Costs.load("costs.json").curves("small_model", context=200).round(nodes=9, levels=3)

A table holds whole rounds of the real loop: seconds of drafting, of the target's pass, and of
everything else, which is the host's. Nodes count the root, as a pass does: a round of 1 node
without levels is plain decoding.

Letters: N nodes.
"""

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from specdec.errors import some
from specdec.measuring.machine import Machine

KIND = "specdec costs 1"  # of the file
MOST = 256  # nodes of a curve; past what was measured it goes on as a straight line
LEVELS = 32  # of drafts in one compiled call


class Measured(NamedTuple):
    """Medians of rounds of one size, in seconds."""

    drafter: str | None  # None: nothing drafts, the nodes are arbitrary tokens
    compiled: bool
    sampled: bool  # at a temperature above 0
    levels: int  # passes of the drafter; 1 for a drafter that makes its tree at once
    nodes: int  # the root included
    context: int  # committed tokens before the round
    rows: int
    draft: float
    score: float  # the target's pass
    host: float  # the rule, the commit, and the rest
    spread: float  # of the whole round: the quartiles' distance
    at_once: str | None = None  # drafted in one compiled call: one of `at_once.KINDS`

    @property
    def seconds(self) -> float:
        return self.draft + self.score + self.host


@dataclass(frozen=True)
class Measuring:
    """What a table was measured with. Another machine or target has other costs."""

    target: str
    dtype: str
    layers: int  # extra ones, which change nothing
    device: str
    machine: Machine
    threads: int  # of torch
    versions: Mapping[str, str | None]

    def differences(self, other: "Measuring") -> list[str]:
        """In words, of what changes costs most: "machine A, here B"."""
        ours = {"machine": self.machine.processor, **self._named}
        theirs = {"machine": other.machine.processor, **other._named}
        return [
            f"{name} {value}, here {theirs[name]}"
            for name, value in ours.items()
            if value != theirs[name]
        ]

    @property
    def _named(self) -> dict[str, Any]:
        return {
            "cores": self.machine.cores,
            "threads": self.threads,
            "target": self.target,
            "extra layers": self.layers,
            "dtype": self.dtype,
            "device": self.device,
        }


@dataclass(frozen=True)
class Curves:
    """Costs of rounds at one context and number of rows, in seconds. Drafting costs first + level x
    levels + node x nodes if it goes level by level, and `idle` where a round drafts nothing."""

    score: np.ndarray  # (MOST + 1,) of the target's pass over 0, 1, 2 ... nodes; [0] means nothing
    host: np.ndarray  # (MOST + 1,)
    first: float = 0.0
    level: float = 0.0
    node: float = 0.0
    idle: float = 0.0
    # (LEVELS + 1,) of drafts of 0, 1 ... levels in one compiled call; NaN: not measured
    chain: np.ndarray = field(default_factory=lambda: _unknown())
    ranked: np.ndarray = field(default_factory=lambda: _unknown())

    def at_once(self, kind: str, levels: int) -> float:
        """Of a draft in one compiled call; NaN for one that was not measured."""
        return float((self.chain if kind == "chain" else self.ranked)[levels])

    def draft(self, levels: float, nodes: float = 0) -> float:
        """Of drafting nodes (without the root) in so many levels."""
        if levels <= 0:
            return self.idle
        return self.first + self.level * levels + self.node * nodes

    @property
    def plain(self) -> float:
        """A round of plain decoding: one node, nothing drafted."""
        return self.rest(1)

    def rest(self, nodes: int) -> float:
        """A round without its drafting. nodes: the root included."""
        at = min(nodes, MOST)
        return float(self.score[at] + self.host[at])

    def round(self, nodes: int, levels: float = 0) -> float:
        """nodes: the root included."""
        return self.rest(nodes) + self.draft(levels, nodes - 1)

    @cached_property
    def steps(self) -> np.ndarray:
        """(MOST,) what the node after n = 0 .. MOST - 1 nodes costs: the slope of the largest
        convex curve below score + host, so that a jag does not stop a tree before a cheap step."""
        whole = (self.score + self.host)[1:]
        hull: list[int] = []
        for at in range(len(whole)):
            while len(hull) > 1 and _above(whole, hull[-2], hull[-1], at):
                hull.pop()
            hull.append(at)
        below = np.interp(np.arange(len(whole)), hull, whole[hull])
        return np.concatenate([[0.0], np.diff(below)])


def _unknown() -> np.ndarray:
    return np.full(LEVELS + 1, np.nan)


def _above(values: np.ndarray, first: int, middle: int, last: int) -> bool:
    """Whether the middle point is on or above the line between the others."""
    slope = (values[last] - values[first]) / (last - first)
    return bool(values[middle] >= values[first] + slope * (middle - first))


@dataclass(frozen=True, eq=False)
class Costs:
    """A table, which never changes."""

    measuring: Measuring
    rounds: tuple[Measured, ...]
    source: str = field(default="measured", compare=False)

    @property
    def drafters(self) -> list[str]:
        return sorted({one.drafter for one in self.rounds if one.drafter is not None})

    def has(self, drafter: str | None, rows: int = 1) -> bool:
        known = {one.drafter for one in self.rounds}
        return drafter in known and any(one.rows >= rows for one in self.rounds)

    # --------------------------------------------------------------------------------- questions

    def curves(
        self,
        drafter: str | None = None,
        context: int = 0,
        rows: int = 1,
        sampled: bool = False,
        compiled: bool = False,
    ) -> Curves:
        """Between the contexts and rows that were measured, on straight lines; outside of them,
        the nearest. Raises ValueError for a drafter that the table does not have."""
        return self._curves(drafter, context // 64 * 64 + 32, rows, sampled, compiled)

    def plain(
        self, context: int = 0, rows: int = 1, sampled: bool = False, compiled: bool = False
    ) -> float:
        """Seconds of a round of plain decoding: a token for each row."""
        return self.curves(None, context, rows, sampled, compiled).plain

    @lru_cache(512)  # noqa: B019  a table lives as long as the drafter that decides by it
    def _curves(
        self, drafter: str | None, context: int, rows: int, sampled: bool, compiled: bool
    ) -> Curves:
        part = [one for one in self.rounds if one.drafter == drafter]
        if not part:
            raise ValueError(
                f"the cost table {self.source} has no rounds of {drafter or 'plain passes'}; it "
                f"has {some(self.drafters) or 'no drafter'}. Measure it: python -m "
                f"experiments.profile drafter={drafter} output=costs.json"
            )
        for name, value in (("compiled", compiled), ("sampled", sampled)):
            same = [one for one in part if getattr(one, name) == value]
            part = same or part
        sizes = sorted({one.rows for one in part})
        return _between(
            sizes, rows, [_at_context([o for o in part if o.rows == r], context) for r in sizes]
        )

    # ------------------------------------------------------------------------------------- files

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rounds = [one._asdict() for one in self.rounds]
        return {"kind": KIND, "measuring": asdict(self.measuring), "rounds": rounds}

    def save(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(self.as_dict(), indent=1), encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Costs":
        """A table that `save` wrote, or the one that a run's result.json has recorded. Raises
        ValueError for other files."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise ValueError(
                f"costs names no file: {path}; measure a table with python -m experiments.profile "
                "output=costs.json, or give costs='auto'"
            )
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        return cls.of_dict(_recorded(found), str(path))

    @classmethod
    def of_dict(cls, found: Any, source: str = "given") -> "Costs":
        """Raises ValueError for what is no table."""
        if not isinstance(found, Mapping) or found.get("kind") != KIND:
            raise ValueError(
                f"{source} is no cost table of this version ({KIND}); write one with python -m "
                "experiments.profile output=costs.json"
            )
        try:
            measuring = dict(found["measuring"])
            machine = Machine(**measuring.pop("machine"))
            rounds = tuple(Measured(**each) for each in found["rounds"])
            about = Measuring(machine=machine, **measuring)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the cost table {source} is broken: {error}") from error
        for one in rounds:
            if not (one.nodes >= 1 and one.rows >= 1 and one.score > 0 and one.host >= 0):
                raise ValueError(f"the cost table {source} has a round that cannot be: {one}")
        if not rounds:
            raise ValueError(f"the cost table {source} has no rounds")
        return cls(about, rounds, source)

    @classmethod
    def written(
        cls,
        measuring: Measuring,
        drafter: str,
        plain: float = 1.0,
        node: float = 0.1,
        level: float = 0.2,
    ) -> "Costs":
        """A table that is written down, of straight lines: a round of n drafted nodes on l levels
        takes plain + n x node + l x level seconds."""
        rounds = [
            Measured(
                name, False, False, levels, 1 + n, 0, 1, levels * level, plain + n * node, 0, 0
            )
            for name, levels, n in (
                (None, 0, 0),
                (None, 0, 9),
                *((drafter, levels, n) for levels in (0, 1, 4) for n in (levels, 4 * levels)),
            )
        ]
        return cls(measuring, tuple(rounds), "written")

    @classmethod
    def measure(cls, target: Any, drafter: Any = None, **options: Any) -> "Costs":
        """See `specdec.pricing.measure.measure`."""
        from specdec.pricing.measure import measure

        return measure(target, drafter, **options)

    def joined(self, others: Iterable["Costs"]) -> "Costs":
        """With the rounds of other tables, of the same machine and target."""
        return Costs(
            self.measuring, (*self.rounds, *(one for o in others for one in o.rounds)), self.source
        )

    def check(self, here: Measuring, strict: bool = False) -> None:
        """Warn, or raise ValueError if `strict`, where the table is of another machine or model."""
        differences = self.measuring.differences(here)
        if not differences:
            return
        message = (
            f"the cost table {self.source} was measured elsewhere: {'; '.join(differences)}. What "
            "is decided by it need not be the best here; measure again: python -m "
            "experiments.profile output=costs.json"
        )
        if strict:
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)


def _recorded(found: Any) -> Any:
    """The table itself, or the one among the settings in effect of a run's result.json."""
    if isinstance(found, Mapping) and "effective" in found:
        return found["effective"].get("drafter", {}).get("costs")
    return found


def _at_context(part: Sequence[Measured], context: int) -> Curves:
    """Curves of rounds with one number of rows."""
    contexts = sorted({one.context for one in part})
    curves = [_curves_of([one for one in part if one.context == each]) for each in contexts]
    return _between(contexts, context, curves)


def _between(known: Sequence[int], at: float, curves: Sequence[Curves]) -> Curves:
    """On the straight line between the two neighbours; outside, the nearest."""
    right = min(int(np.searchsorted(known, at)), len(known) - 1)
    left = max(right - 1, 0)
    if known[right] <= at or left == right:
        return curves[right]
    share = float(np.clip((at - known[left]) / (known[right] - known[left]), 0, 1))
    names = [one.name for one in fields(Curves)]
    return Curves(
        *(
            (1 - share) * getattr(curves[left], name) + share * getattr(curves[right], name)
            for name in names
        )
    )


def _curves_of(part: Sequence[Measured]) -> Curves:
    sizes = np.arange(MOST + 1)
    if part[0].compiled:  # the nodes of a pass are padded to the next size that is compiled
        from specdec.models.compiled import NODES

        at = np.searchsorted(NODES, sizes).clip(max=len(NODES) - 1)
        sizes = np.maximum(np.array(NODES)[at], sizes)
    by_nodes: dict[int, list[Measured]] = {}
    for one in part:
        by_nodes.setdefault(int(sizes[one.nodes]), []).append(one)
    nodes = sorted(by_nodes)
    score, host = (
        _line(nodes, [float(np.mean([getattr(one, what) for one in by_nodes[n]])) for n in nodes])
        for what in ("score", "host")
    )
    still = [one.draft for one in part if one.levels == 0]
    idle = float(np.mean(still)) if still else 0.0
    whole = (_at_once(part, kind) for kind in ("chain", "ranked"))
    return Curves(score[sizes], host[sizes], *_drafting(part), idle, *whole)


def _at_once(part: Sequence[Measured], kind: str) -> np.ndarray:
    """`chain` or `ranked` of `Curves`."""
    found, seconds = _unknown(), dict[int, list[float]]()
    for one in part:
        if one.at_once == kind and one.levels <= LEVELS:
            seconds.setdefault(one.levels, []).append(one.draft)
    for levels, each in seconds.items():
        found[levels] = np.mean(each)
    return found


def _line(nodes: Sequence[int], seconds: Sequence[float]) -> np.ndarray:
    """Between measured sizes on straight lines; past the last one with the mean slope."""
    sizes = np.arange(MOST + 1)
    line: np.ndarray = np.interp(sizes, nodes, seconds)
    if len(nodes) > 1:
        slope = max(0.0, (seconds[-1] - seconds[0]) / (nodes[-1] - nodes[0]))
        line[nodes[-1] :] = seconds[-1] + slope * (sizes[nodes[-1] :] - nodes[-1])
    return line


def _drafting(part: Sequence[Measured]) -> tuple[float, float, float]:
    """first, level and node of `Curves`, by least squares; none is below 0."""
    from scipy.optimize import nnls

    drafted = [one for one in part if one.levels > 0 and one.at_once is None]
    if not drafted:
        return 0.0, 0.0, 0.0
    seconds = np.array([one.draft for one in drafted])
    if len({(one.levels, one.nodes) for one in drafted}) < 3:
        return float(seconds.mean()), 0.0, 0.0
    sizes = np.array([[1.0, one.levels, one.nodes - 1] for one in drafted])
    weights = 1 / seconds.clip(min=1e-9)[:, None]  # relative errors count
    first, level, node = nnls(sizes * weights, seconds * weights[:, 0])[0]
    return float(first), float(level), float(node)
