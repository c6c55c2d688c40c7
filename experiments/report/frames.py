"""A study's results as frames: one row per run in `table`, one per run and something else in the others.

Every frame carries the columns of `key`, which tell runs apart. Seconds are seconds, bytes are bytes; pages convert.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from experiments.measuring.intervals import median_interval

Result = dict[str, Any]
DEFINITIONS = ("tau", "tau_macro", "tau_with_prefill", "accepted_per_round", "accepted_per_round_macro")
COSTS = ("nodes_per_round", "nodes_per_accepted", "target_calls_per_token")


def key(result: Result) -> dict[str, Any]:
    """What a run was: names as tables show them, and the settings that figures have axes for."""
    config = result["config"]
    target, extra = config["target"]["name"].rstrip("/").rpartition("/")[2], config["target"]["extra_layers"]
    lossy = "" if result["ways"]["method"]["lossless"] else " (lossy)"
    return {
        "run": result["run"],
        "target": f"{target} +{extra} layers" if extra else target,
        "drafter": config["label"] + lossy,
        "settings": " ".join(f"{key}={value}" for key, value in config["drafter"].items() if key != "_target_"),
        "verifier": result["ways"]["method"]["verifier"],
        "temperature": config["sampling"]["temperature"],
        "batch": config["batch_size"],
    }


def table(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run; speed-ups as median, low and high, against every baseline that any run has. `noise`: the same ratio of
    the first baseline to itself. `mark`: lossy | certified | lossless (by contract, without a certificate)."""
    rows = []
    for result in results:
        method = result["ways"]["method"]
        row = key(result) | {name: method[name] for name in (*DEFINITIONS, "acceptance_rate", *COSTS)}
        row |= _ends("tau", method["tau_interval"], median=False)
        row |= {name: method[name] for name in ("tokens_per_second", "first_token_seconds")}
        row |= {f"gap_{name}": value for name, value in (method["gaps"] or {}).items()}
        for name, ratio in method["speedup"].items():
            row |= _ends(f"speedup_{name}", ratio)
        for ratio in result["ways"].get("again", {}).get("speedup", {}).values():
            row |= _ends("noise", ratio)
        flops = method.get("flops_per_token") or {"draft": None, "target": None}
        differing = result["divergence"].get("none", {})
        row |= {
            "draft_flops": flops["draft"],
            "target_flops": flops["target"],
            **method["memory"],
            "target_cache": method["cache_bytes"]["target"],
            "drafter_cache": method["cache_bytes"]["drafter"],
            "distinct_4grams": method["distinct_4grams"],
            "diverging": differing.get("diverging"),
            "faults": differing.get("faults"),
            "law": result["certificate"]["verdict"],
            "prompts": result["prompts"],
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _ends(name: str, interval: dict[str, Any], median: bool = True) -> dict[str, Any]:
    found = {f"{name}_low": interval["low"], f"{name}_high": interval["high"]}
    return {name: interval["median"], **found} if median else found


def baselines(results: Iterable[Result]) -> list[str]:
    """The baselines of any run, in the order in which they come up."""
    return list(dict.fromkeys(name for result in results for name in result["ways"]["method"]["speedup"]))


def plain(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and baseline, again and cold included: tokens/s of whole calls and while decoding, distinct 4-grams."""
    rows = []
    for result in results:
        for name, way in result["ways"].items():
            if name != "method":
                rates = {rate: way.get(rate) for rate in ("tokens_per_second", "wall_tokens_per_second")}
                latency = {"first_token_seconds": way.get("first_token_seconds")}
                gaps = {f"gap_{name}": value for name, value in (way.get("gaps") or {}).items()}
                more = {"distinct_4grams": way["distinct_4grams"], "prompts": result["prompts"]}
                rows.append({**key(result), "way": name, **rates, **latency, **gaps, **more})
    return pd.DataFrame(rows)


def acceptance(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run, depth and sibling rank: offered, reached, accepted."""
    return _long(results, "acceptance")


def per_depth(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and depth: groups of siblings reached, groups of which one was accepted."""
    return _long(results, "per_depth")


def _long(results: Iterable[Result], name: str) -> pd.DataFrame:
    return pd.DataFrame([{**key(result), **cell} for result in results for cell in result["ways"]["method"][name]])


def lengths(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and accepted length: rounds."""
    rows = [
        {**key(result), "accepted": int(accepted), "rounds": rounds}
        for result in results
        for accepted, rounds in result["ways"]["method"]["accepted_lengths"].items()
    ]
    return pd.DataFrame(rows)


def phases(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and phase: seconds, milliseconds per token, prompts. Plain decoding is the drafter "none"."""
    rows = []
    for result in results:
        for name in ("method", "none"):
            way = result["ways"].get(name)
            if way is None:
                continue
            named = key(result) | ({"drafter": "none", "verifier": ""} if name == "none" else {})
            for phase, seconds in way["seconds"].items():
                each = 1000 * seconds / max(1, way["tokens"])
                rows.append(
                    {**named, "phase": phase, "seconds": seconds, "ms_per_token": each, "prompts": result["prompts"]}
                )
    return pd.DataFrame(rows)


def by_category(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and category: rounds, tau, acceptance rate; speed-ups over each baseline, where batches are of one
    category, with their intervals; prompts."""
    rows = []
    for result in results:
        kinds = {entry["prompt"]: entry["category"] for entry in result["ways"]["method"]["per_prompt"]}
        batches = [{kinds[prompt] for prompt in batch} for batch in result["batches"]]
        for part in result["by_category"]:
            row = {**key(result), **_rates(part), "category": part["category"]}
            row["prompts"] = sum(kind == part["category"] for kind in kinds.values())
            for name, ratio in result["ways"]["method"]["speedup"].items():
                pairs = zip(ratio["per_batch"], batches, strict=True)
                own = [value for value, kinds_of in pairs if kinds_of == {part["category"]}]
                if own:
                    row |= _ends(f"speedup_{name}", median_interval(own)._asdict())
            rows.append(row)
    return pd.DataFrame(rows)


def by_position(results: Iterable[Result]) -> pd.DataFrame:
    """One row per run and bin of output positions, which begins at `first`: rounds, tau, acceptance rate."""
    rows = [{**key(r), "first": part["first"], **_rates(part)} for r in results for part in r["by_position"]]
    return pd.DataFrame(rows)


def _rates(part: dict[str, Any]) -> dict[str, Any]:
    rate = part["accepted"] / part["reached"] if part["reached"] else None
    return {"rounds": part["rounds"], "tau": part["kept"] / part["rounds"], "acceptance_rate": rate}


def divergences(results: Iterable[Result]) -> pd.DataFrame:
    """One row per prompt whose greedy output parts from a baseline's."""
    rows = [
        {**key(result), "baseline": name, **one}
        for result in results
        for name, found in result["divergence"].items()
        for one in found["found"]
    ]
    return pd.DataFrame(rows)


def warmth(results: Iterable[Result]) -> pd.DataFrame:
    """Runs whose drafter learns across prompts: tau and speed-ups warm (as it comes) and cold (forgetting before each prompt)."""
    rows = []
    for result in results:
        for state, name in (("warm", "method"), ("cold", "cold")) if result["learns"] else ():
            way = result["ways"][name]
            row = {**key(result), "state": state, "tau": way["tau"], "tokens_per_second": way["tokens_per_second"]}
            for baseline, ratio in way["speedup"].items():
                row |= _ends(f"speedup_{baseline}", ratio)
            rows.append({**row, "prompts": result["prompts"]})
    return pd.DataFrame(rows)
