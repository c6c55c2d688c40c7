"""A cost table for decisions: rounds of a target, alone and with drafters, eager and compiled."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.measuring.ways import load
from experiments.terminal.progress import bar
from specdec import Costs

Drafter = str | Mapping[str, Any]


def cost_table(
    target: str,
    drafters: Sequence[Drafter],
    rows: Sequence[int],
    contexts: Sequence[int] | None,
    repeats: int,
    compiled: bool,
    **settings: Any,
) -> Costs:
    """settings: of `specdec.load`."""
    models = [load(target, **settings)]
    if compiled:
        models.append(load(target, compile=True, **settings))
    tables = []
    with bar("rounds", len(models) * (1 + len(drafters))) as advance:
        for model in models:
            for drafter in (None, *drafters):
                tables.append(
                    Costs.measure(model, drafter, rows=rows, contexts=contexts, repeats=repeats)
                )
                advance()
    return tables[0].joined(tables[1:])


def shown(costs: Costs) -> pd.DataFrame:
    """Milliseconds of rounds, for people."""
    return pd.DataFrame(
        {
            "drafter": one.drafter or "none",
            "kernels": "compiled" if one.compiled else "eager",
            "T": "> 0" if one.sampled else "0",
            "rows": one.rows,
            "context": one.context,
            "levels": one.levels,
            "nodes": one.nodes,
            "drafting ms": f"{1000 * one.draft:.2f}",
            "pass ms": f"{1000 * one.score:.2f}",
            "host ms": f"{1000 * one.host:.2f}",
            "host share": f"{one.host / one.seconds:.0%}",
            "spread ms": f"{1000 * one.spread:.2f}",
        }
        for one in costs.rounds
    )
