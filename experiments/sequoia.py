"""The best static trees for given rates of acceptance and costs (Sequoia, Chen et al. 2402.12374).

python -m experiments.sequoia acceptance=FILE.json target_cost=[1,1.02,1.1,1.2] draft_cost=0.3
    nodes=[1,2,4,8] depth=10
python -m experiments.sequoia acceptance=FILE.json costs=costs.json nodes=[1,2,4,8]

prints a line of JSON for each size: the tree, of those with so many nodes and at most `depth`
levels, that has the most expected tokens per cost. Its `drafter.nodes` is one less, because
drafters do not count the root:

python -m experiments.run drafter=small_model drafter.draw=sequoia drafter.nodes=7
    drafter.depth=LEVELS drafter.acceptance=[0.7,0.1]

acceptance   a JSON list: the probability that the first, second ... child of an accepted node is
             the accepted one. Or a list of such lists, one for each depth, the last for all below.
             Or the result.json of a run, whose trees say what was measured
nodes        that a pass of the target scores, the root included; 1 is plain decoding
target_cost  of a pass over so many nodes, one number for each of `nodes`, in any unit
draft_cost   of one level of drafting, in the same unit. With 0 each size has its most expected
             tokens
costs        instead of both: the cost table of `python -m experiments.profile drafter=NAME
             output=costs.json`. Costs are then seconds: of a round without its levels, and of a
             level of the drafter
drafter      whose levels are counted, if the table has several
context      committed tokens that rounds of the table follow
rows         of a round of the table
depth        levels below the root that a tree may have

nodes            as asked
levels           below the root: the drafter's passes
expected_tokens  of a round, the token that the target adds included
children         how many each node has, level by level; the first list is the root's
cost             of a round: the target's pass and the drafter's
tokens_per_cost  expected_tokens / cost
best             whether no other size has more tokens per cost
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from experiments.terminal.options import start


@dataclass
class Sequoia:
    """python -m experiments.sequoia acceptance=FILE.json target_cost=[...] nodes=[...]: the best
    static tree of each size, as JSON. nodes count the root; one cost for each of them, or a cost
    table."""

    acceptance: str = MISSING
    target_cost: list[float] | None = None
    draft_cost: float = 0.0
    costs: str | None = None
    drafter: str | None = None
    context: int = 128
    rows: int = 1
    nodes: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    depth: int = 10


def read(file: str) -> Any:
    """An acceptance vector, or one for each depth. Raises ValueError for what is no JSON, and for a
    run that drafted nothing."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(
            f"acceptance names no file: {path}; it holds a JSON list such as [0.7, 0.1, 0.05]"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    places = found.get("report", {}).get("acceptance") if isinstance(found, dict) else None
    if places is None:
        return found
    if not places:
        raise ValueError(f"the run of {path} drafted nothing, so it measured no acceptance")
    vectors: list[list[float]] = [[] for _ in range(max(place["depth"] for place in places))]
    for place in sorted(places, key=lambda one: one["rank"]):
        vectors[place["depth"] - 1].append(place["accepted"] / max(place["reached"], 1))
    return vectors


def from_options(wanted: Sequoia) -> tuple[list[float], float]:
    """Costs of the passes and of a level."""
    if wanted.target_cost is None:
        raise ValueError(
            "target_cost must be given, one number for each of nodes, or costs, the cost table "
            "that python -m experiments.profile drafter=NAME output=costs.json writes"
        )
    return list(wanted.target_cost), wanted.draft_cost


def from_table(wanted: Sequoia) -> tuple[list[float], float]:
    """The same by a cost table, in seconds. Raises ValueError for costs that are given twice, and
    for a drafter that the table does not have."""
    from specdec import Costs
    from specdec.pricing.costs import MOST

    if wanted.target_cost is not None or wanted.draft_cost:
        raise ValueError("costs is given, and target_cost or draft_cost too; leave out one of them")
    costs = Costs.load(str(wanted.costs))
    drafter = wanted.drafter
    if drafter is None and len(costs.drafters) == 1:
        (drafter,) = costs.drafters
    if drafter is None:
        raise ValueError(
            f"the cost table {wanted.costs} has {', '.join(costs.drafters) or 'no drafter'}; name "
            "one of its drafters as drafter, whose levels are counted"
        )
    largest = max(wanted.nodes, default=1)
    if largest > MOST:
        raise ValueError(f"nodes has {largest}, and cost tables go up to {MOST}")
    curves = costs.curves(drafter, wanted.context, wanted.rows)
    passes = [curves.round(nodes, nodes > 1) for nodes in wanted.nodes]  # with one level each
    level = curves.level
    return [
        seconds - (level if nodes > 1 else curves.idle)
        for seconds, nodes in zip(passes, wanted.nodes, strict=True)
    ], level


def lines(wanted: Sequoia) -> list[dict[str, Any]]:
    """What is printed. Raises ValueError for options that do not go together."""
    from specdec.drafting.sequoia import best_by_cost

    nodes = wanted.nodes
    costs, level = from_table(wanted) if wanted.costs else from_options(wanted)
    if len(costs) != len(nodes):
        raise ValueError(
            f"target_cost has one number for each of nodes: {len(nodes)} for {nodes}, got "
            f"{len(costs)}: {costs}"
        )
    if len(set(nodes)) != len(nodes):
        raise ValueError(f"nodes must name each size once, got {nodes}")
    priced = best_by_cost(
        read(wanted.acceptance), nodes, wanted.depth, dict(zip(nodes, costs, strict=True)), level
    )
    best = max(priced, key=lambda one: one.tokens_per_cost)
    return [
        {
            "nodes": one.tree.nodes,
            "levels": one.tree.levels,
            "expected_tokens": one.tree.expected_tokens,
            "children": one.tree.children,
            "cost": one.cost,
            "tokens_per_cost": one.tokens_per_cost,
            "best": one is best,
        }
        for one in priced
    ]


def main(wanted: Sequoia) -> None:
    for line in lines(wanted):
        print(json.dumps(line))


if __name__ == "__main__":
    start(main, Sequoia)
