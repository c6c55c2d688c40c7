"""A study's results as frames: one row per run in `table`, one per run and something else in the
others.

Every frame carries the columns of `key`, which tell runs apart. Seconds are seconds, bytes are
bytes; pages convert.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pandas as pd

from experiments.measuring.intervals import median_interval
from experiments.study.outcome import Interval, OurResult, Part
from experiments.study.result import Result

DEFINITIONS = (
    "tau",
    "tau_macro",
    "tau_with_prefill",
    "accepted_per_round",
    "accepted_per_round_macro",
)
COSTS = ("nodes_per_round", "nodes_per_accepted", "target_calls_per_token")


def key(result: Result) -> dict[str, Any]:
    """What a run was: names as tables show them, and the settings that figures have axes for."""
    config, drafter = result.config, result.effective.drafter
    target, extra = config.target.name.rstrip("/").rpartition("/")[2], config.target.extra_layers
    lossy = "" if result.method.lossless else " (lossy)"
    return {
        "run": result.run,
        "target": f"{target} +{extra} layers" if extra else target,
        "drafter": f"{config.label}{lossy}",
        "settings": " ".join(
            f"{name}={value}" for name, value in drafter.items() if name != "_target_"
        ),
        "verifier": result.method.verifier,
        "temperature": config.sampling.temperature,
        "batch": config.batch_size,
    }


def table(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run; speed-ups as median, low and high, against every baseline that any run has.
    `noise`: the same ratio of the first baseline to itself. `law`: what is known of
    the output's law, in words (certificates/law.py)."""
    rows = []
    for result in results:
        method = result.method
        row = key(result) | {
            name: getattr(method, name) for name in (*DEFINITIONS, "acceptance_rate", *COSTS)
        }
        row |= _ends("tau", method.tau_interval, median=False)
        row |= _speed(method)
        for name, ratio in method.speedup.items():
            row |= _ends(f"speedup_{name}", ratio)
        for ratio in noise(result):
            row |= _ends("noise", ratio)
        differing = result.divergence.get("none")
        operations = method.flops_per_token
        row |= {
            "draft_flops": operations.draft if operations else None,
            "target_flops": operations.target if operations else None,
            **asdict(method.memory),
            "target_cache": method.cache_bytes["target"],
            "drafter_cache": method.cache_bytes["drafter"],
            "distinct_4grams": method.distinct_4grams,
            "diverging": differing.diverging if differing else None,
            "faults": differing.faults if differing else None,
            "law": str(result.certificate),
            "prompts": result.prompts,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def noise(result: Result) -> Iterable[Any]:
    """The first baseline against itself, where it was decoded twice."""
    return result.ways["again"].speedup.values() if "again" in result.ways else ()


def _speed(way: OurResult) -> dict[str, float | None]:
    named = {name: getattr(way, name) for name in ("tokens_per_second", "first_token_seconds")}
    return named | (
        {f"gap_{name}": value for name, value in vars(way.gaps).items()} if way.gaps else {}
    )


def _ends(name: str, interval: Interval, median: bool = True) -> dict[str, Any]:
    found = {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: interval.median, **found} if median else found


def baselines(results: Iterable[Result]) -> list[str]:
    """The baselines of any run, in the order in which they come up."""
    return list(dict.fromkeys(name for result in results for name in result.method.speedup))


def plain(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and baseline, again and cold included: tokens/s of whole calls and while
    decoding, distinct 4-grams."""
    rows = []
    for result in results:
        for name, way in result.ways.items():
            if name != "method":
                counted = _speed(way) if isinstance(way, OurResult) else {}
                whole = {
                    "wall_tokens_per_second": way.wall_tokens_per_second,
                    "distinct_4grams": way.distinct_4grams,
                }
                rows.append(
                    {**key(result), "way": name, **counted, **whole, "prompts": result.prompts}
                )
    return pd.DataFrame(rows)


def acceptance(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run, depth and sibling rank: offered, reached, accepted."""
    return pd.DataFrame(
        [{**key(result), **vars(cell)} for result in results for cell in result.method.acceptance]
    )


def per_depth(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and depth: groups of siblings reached, groups of which one was accepted."""
    return pd.DataFrame(
        [
            {**key(result), **vars(groups)}
            for result in results
            for groups in result.method.per_depth
        ]
    )


def expected(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run that decides by costs: tokens and seconds of a round, expected and measured,
    and the calibration error."""
    bins = ("count", "chance", "accepted")
    rows = [
        {**key(one), **{k: v for k, v in vars(one.method.expected).items() if k not in bins}}
        for one in results
        if one.method.expected
    ]
    return pd.DataFrame(rows)


def reliability(results: Iterable[Result]) -> pd.DataFrame:
    """One row per such run and bin of chances: nodes, their mean chance, the share accepted."""
    rows = [
        {**key(result), "nodes": count, "chance": chance, "accepted": accepted}
        for result in results
        if (found := result.method.expected)
        for count, chance, accepted in zip(found.count, found.chance, found.accepted, strict=True)
        if count
    ]
    return pd.DataFrame(rows)


def balance(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run under a bank and point in time: rounds so far, seconds gained by then."""
    rows = [
        {**key(result), "rounds": rounds, "seconds": seconds}
        for result in results
        if (found := result.method.balance)
        for rounds, seconds in zip(found.at, found.seconds, strict=True)
    ]
    return pd.DataFrame(rows)


def banks(results: Iterable[Result]) -> pd.DataFrame:
    """One row per such run: rounds, plain ones among them, trials, seconds gained at the end and
    lost at most."""
    rows = [
        {
            **key(result),
            "rounds": found.rounds,
            "plain_rounds": found.plain_rounds,
            "trials": found.trials,
            "gained": found.seconds[-1],
            "lowest": min(found.seconds),
        }
        for result in results
        if (found := result.method.balance)
    ]
    return pd.DataFrame(rows)


def lengths(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and accepted length: rounds."""
    rows = [
        {**key(result), "accepted": accepted, "rounds": rounds}
        for result in results
        for accepted, rounds in result.method.accepted_lengths.items()
    ]
    return pd.DataFrame(rows)


def phases(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and phase: seconds, milliseconds per token, prompts. Plain decoding is the
    drafter "none"."""
    rows = []
    for result in results:
        named = key(result)
        ways = [(named, result.method)]
        if result.plain is not None:
            ways.append((named | {"drafter": "none", "verifier": ""}, result.plain))
        for own, way in ways:
            for phase, seconds in way.seconds.items():
                each = 1000 * seconds / max(1, way.tokens)
                rows.append(
                    {
                        **own,
                        "phase": phase,
                        "seconds": seconds,
                        "ms_per_token": each,
                        "prompts": result.prompts,
                    }
                )
    return pd.DataFrame(rows)


def by_category(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and category: rounds, tau, acceptance rate; speed-ups over each baseline,
    where batches are of one category, with their intervals; prompts."""
    rows = []
    for result in results:
        kinds = {entry.prompt: entry.category for entry in result.method.per_prompt}
        batches = [{kinds[prompt] for prompt in batch} for batch in result.batches]
        for part in result.by_category:
            row = {**key(result), **_rates(part), "category": part.category}
            row["prompts"] = sum(kind == part.category for kind in kinds.values())
            for name, ratio in result.method.speedup.items():
                pairs = zip(ratio.per_batch, batches, strict=True)
                own = [value for value, kinds_of in pairs if kinds_of == {part.category}]
                if own:
                    row |= _ends(f"speedup_{name}", median_interval(own))
            rows.append(row)
    return pd.DataFrame(rows)


def by_position(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and bin of output positions, which begins at `first`: rounds, tau, acceptance
    rate."""
    rows = [
        {**key(result), "first": part.first, **_rates(part)}
        for result in results
        for part in result.by_position
    ]
    return pd.DataFrame(rows)


def _rates(part: Part) -> dict[str, Any]:
    return {"rounds": part.rounds, "tau": part.tau, "acceptance_rate": part.acceptance_rate}


def divergences(results: Iterable[Result]) -> pd.DataFrame:
    """One row per prompt whose greedy output parts from a baseline's."""
    rows = [
        {**key(result), "baseline": name, **vars(one)}
        for result in results
        for name, found in result.divergence.items()
        for one in found.found
    ]
    return pd.DataFrame(rows)


def warmth(results: Iterable[Result]) -> pd.DataFrame:
    """Runs whose drafter learns across prompts: tau and speed-ups warm (as it comes) and cold
    (forgetting before each prompt)."""
    rows = []
    for result in results:
        for state, name in (("warm", "method"), ("cold", "cold")) if result.learns else ():
            way = result.ours(name)
            row = {
                **key(result),
                "state": state,
                "tau": way.tau,
                "tokens_per_second": way.tokens_per_second,
            }
            for baseline, ratio in way.speedup.items():
                row |= _ends(f"speedup_{baseline}", ratio)
            rows.append({**row, "prompts": result.prompts})
    return pd.DataFrame(rows)
