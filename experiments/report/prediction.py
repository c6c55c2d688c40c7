"""What two models predict of a run's speed while decoding, beside what was measured.

Leviathan et al. 2211.17192: with acceptance rate a, draft length g and a draft pass that costs c
target passes, a round keeps (1 - a^(g+1)) / (1 - a) tokens in expectation (equation 1) and decoding
gets faster by that / (g c + 1) (theorem 3.8). a is taken from the run: accepted / reached groups of
siblings, so that trees have a rate too. c is drafting seconds per depth / seconds of a pass in
plain decoding, both from the run. This model ignores the cost of more nodes and the time outside
the passes.

The cost model takes the passes from the machine's own profile (experiments/profile.py) instead: a
round costs t_target(nodes + 1) + depth x t_draft, plain decoding t_target(1) a token; tau is the
measured one.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.report import frames
from experiments.study.result import Result
from experiments.system.files import read_json
from experiments.system.surroundings import Machine

AXES = ["model", "nodes", "batch", "context"]


def expected_tokens(rate: float, length: int) -> float:
    """Leviathan et al., equation 1: tokens per round, bonus included."""
    return length + 1.0 if rate >= 1 else (1 - rate ** (length + 1)) / (1 - rate)


def closed_form(result: Result) -> dict[str, float] | None:
    """alpha, tau and speed-up by the closed form; None for plain decoding and where nothing was
    drafted. Where trees differ in depth from round to round, tau is the mean over the depths that
    were offered."""
    reached = sum(group.reached for group in result.method.per_depth)
    if not reached:
        return None
    alpha = sum(group.accepted for group in result.method.per_depth) / reached
    offered = result.offered_depths
    rounds = sum(part.rounds for part in offered)
    tau = sum(part.rounds * expected_tokens(alpha, part.depth) for part in offered) / rounds
    found = {"alpha": alpha, "tau": tau}
    cost = result.draft_cost
    if cost is not None:
        found |= {"cost": cost, "speedup": tau / (cost + 1)}  # drafting a round: g passes of c each
    return found


def cost_model(result: Result, profile: pd.DataFrame | None) -> float | None:
    """Speed-up by the machine's profile (frame: model, nodes, batch, context, seconds), or None
    where the profile does not cover the run or the drafter is no language model of its own."""
    method, plain = result.method, result.plain
    if profile is None or plain is None or method.drafter == "none":
        return None
    models = set(profile["model"])
    target = target_name(result.config.target.name, result.config.target.extra_layers)
    draft = result.effective.drafter.get("model")
    if target not in models or (draft is not None and draft not in models):
        return None
    if draft is None and method.drafter != "ngram":
        return None  # heads, parts of the target: what they cost is not in the profile
    context = float(
        np.mean([entry.prompt_tokens + entry.tokens / 2 for entry in method.per_prompt])
    )
    batch, plain_batch = (way.row_rounds / way.rounds for way in (method, plain))
    depth = sum(part.depth * part.rounds for part in result.offered_depths) / method.row_rounds
    one = interpolated(profile, target, 1, plain_batch, context)
    per_round = interpolated(profile, target, 1 + method.nodes_per_round, batch, context)
    if draft is not None and depth:
        per_round += depth * interpolated(
            profile, draft, max(1.0, method.nodes_per_round / depth), batch, context
        )
    return (method.tau * batch / per_round) / (plain_batch / one)


def target_name(name: str, extra_layers: int) -> str:
    return f"{name} +{extra_layers}" if extra_layers else name


def interpolated(
    profile: pd.DataFrame, model: str, nodes: float, batch: float, context: float
) -> float:
    """Seconds of a pass, linear in nodes, batch and context between measured points, the nearest
    edge beyond them."""
    from scipy.interpolate import RegularGridInterpolator

    own = profile[profile["model"] == model]
    grid = own.pivot_table(index=["nodes", "batch", "context"], values="seconds")[
        "seconds"
    ].sort_index()
    axes = [
        np.array(sorted(own[name].unique()), dtype=float) for name in ("nodes", "batch", "context")
    ]
    values = grid.to_numpy().reshape([len(axis) for axis in axes])
    point = [
        float(np.clip(x, axis[0], axis[-1]))
        for x, axis in zip((nodes, batch, context), axes, strict=True)
    ]
    # an axis of one point is no axis
    kept = [number for number, axis in enumerate(axes) if len(axis) > 1]
    if not kept:
        return float(values.item())
    squeezed = values.reshape([len(axes[number]) for number in kept])
    return float(
        RegularGridInterpolator([axes[n] for n in kept], squeezed)([point[n] for n in kept])[0]
    )


def read_profile(folder: Path | None, results: Sequence[Result]) -> pd.DataFrame | None:
    """The forward times in `folder` that were measured where the results were: same processor,
    threads and dtype. None where there are none."""
    if folder is None or not results:
        return None
    first, found = results[0], []
    here = (first.machine.processor, first.threads, first.effective.target.dtype)
    for path in sorted(folder.glob("*.json")):
        profile = read_json(path)
        if (
            Machine(**profile["machine"]).processor,
            profile["threads"],
            profile.get("dtype"),
        ) == here:
            found.append(pd.DataFrame(profile["times"]))
    return pd.concat(found, ignore_index=True).drop_duplicates(AXES, keep="last") if found else None


def predictions(results: Iterable[Result], profile: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per run that drafts: measured and predicted tau and speed-up while decoding, and the
    relative errors, predicted / measured - 1."""
    rows = []
    for result in results:
        method, plain = result.method, result.plain
        formula = closed_form(result)
        if formula is None:
            continue
        row = {
            **frames.key(result),
            "prompts": result.prompts,
            "alpha": formula["alpha"],
            "tau": method.tau,
        }
        row |= {"tau_formula": formula["tau"], "tau_formula_error": formula["tau"] / method.tau - 1}
        if plain is not None and method.tokens_per_second and plain.tokens_per_second:
            measured = method.tokens_per_second / plain.tokens_per_second
            row |= {
                "speedup": measured,
                "cost": formula["cost"],
                "speedup_formula": formula["speedup"],
            }
            row["speedup_formula_error"] = formula["speedup"] / measured - 1
            by_profile = cost_model(result, profile)
            if by_profile is not None:
                row |= {
                    "speedup_profile": by_profile,
                    "speedup_profile_error": by_profile / measured - 1,
                }
        rows.append(row)
    return pd.DataFrame(rows)
