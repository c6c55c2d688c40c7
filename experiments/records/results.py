"""A replay as the result of a run: what tables, reports and comparisons read.

Nothing was decoded, so a result has no times, unless a cost table predicts them: seconds then are
in its unit, plain decoding is predicted too, and the speed-up is the prediction. The label says
"replayed". Memory is 0. Where rounds are weighed, the rounds of a result are as many of equal
weight, taken at equal steps along the weights; tau and its interval are the weighted ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.certificates.kept import attached
from experiments.measuring import measures
from experiments.measuring.play import Played
from experiments.measuring.rounds import rounds, write_rounds
from experiments.measuring.ways import METHOD, Sample
from experiments.prompts import Prompt
from experiments.records.costs import Costs
from experiments.records.estimate import Rounds
from experiments.records.replaying import Replayed
from experiments.records.shapes import SETTINGS, described
from experiments.study import folder as names
from experiments.study import result
from experiments.study.label import label
from experiments.study.outcome import Memory, OurResult, Outcome
from experiments.study.schema import Prompts, Sampling, Settings, Target
from experiments.system.surroundings import surroundings
from specdec.measuring.clock import Times
from specdec.measuring.report import Report, Served, Step
from specdec.pairing import name_of
from specdec.registry import described as yaml_of
from specdec.tree import host_depths

PLAIN = "none"


def write(
    found: Replayed,
    folder: Path,
    study: str,
    run: str,
    overrides: Sequence[str],
    choices: Mapping[str, str | None],
) -> None:
    """result.json and rounds.parquet of one setting."""
    settings = settings_of(found, study)
    played = [
        _played(found, number, text, taken.resampled())
        for number, (text, taken) in enumerate(zip(found.texts, found.taken.texts, strict=True))
        if len(taken)
    ]
    frame = rounds(study, run, str(settings.label), played)
    report = played[0].samples[METHOD].report
    assert report is not None
    outcome = _outcome(played, frame, found.costs is not None)
    tau = {"tau": found.tau.median, "tau_interval": found.tau}
    outcome.ways[METHOD] = replace(outcome.method, **tau)
    groups = {"drafter": found.facts["drafter"], "verifier": choices.get("verifier")}
    measured = result.Result(
        study=study,
        run=run,
        overrides=list(overrides),
        choices=groups,
        **vars(surroundings()),
        config=settings,
        **vars(outcome),
        effective=settings,
        certificate=attached(settings.drafter, settings.verifier, report),
        skipped=[],
    )
    with names.claimed(folder):
        write_rounds(folder / names.ROUNDS, frame)
        result.write(folder / names.RESULT, measured)


def settings_of(found: Replayed, study: str) -> Settings:
    """Those of the run that this setting would be."""
    recorded = found.facts["settings"]
    name = found.facts["drafter"]
    shape = described(found.shape)
    arguments = {key: value for key, value in recorded["drafter"].items() if key not in SETTINGS}
    takes = yaml_of("drafter", name)
    given = {key: shape[key] for key in SETTINGS if key in takes or shape[key] is not None}
    rule = yaml_of("verifier", name_of(found.rule))
    made = Settings(
        study=study,
        seed=recorded["seed"],
        max_new_tokens=recorded["max_new_tokens"],
        ignore_eos=recorded["ignore_eos"],
        baselines=[PLAIN] if found.costs else [],
        noise=False,
        warmup=0,
        target=Target(**recorded["target"]),
        drafter={**arguments, **given},
        verifier=rule,
        sampling=Sampling(**recorded["sampling"]),
        prompts=Prompts(**recorded["prompts"]),
    )
    return replace(made, label=f"{label(made, name, [])} (replayed)")


def _played(found: Replayed, number: int, text: Any, taken: Rounds) -> Played:
    samples = {METHOD: _sample(found, text, taken)}
    if found.costs is not None:
        samples[PLAIN] = _plain(found.costs, text)
    prompt = Prompt(text.prompt, "", text.category)
    return Played([prompt], {name: [text.given] for name in samples}, samples, number, text.turn)


def _sample(found: Replayed, text: Any, taken: Rounds) -> Sample:
    costs = found.costs
    steps = []
    for number, (kept, parents, path) in enumerate(
        zip(taken.kept.tolist(), taken.parents, taken.path, strict=True)
    ):
        seconds: dict[str, float] = {}
        if costs is not None:
            drafted, depth = int((parents >= 0).sum()), int(host_depths(parents[None]).max())
            seconds = {"draft": depth * costs.draft, "score": costs.target_at(1 + drafted)}
        steps.append(_step(number, parents, path, kept, seconds))
    rule = found.rule
    return _sampled(text, steps, found.facts["drafter"], name_of(rule), rule.lossless)


def _plain(costs: Costs, text: Any) -> Sample:
    nothing, no_path = np.array([-1]), np.zeros(0, dtype=np.int64)
    steps = [
        _step(number, nothing, no_path, 1, {"score": costs.target_at(1)})
        for number in range(len(text.tokens))
    ]
    return _sampled(text, steps, PLAIN, "naive", True)


def _step(
    number: int, parents: np.ndarray, path: np.ndarray, kept: int, seconds: dict[str, float]
) -> Step:
    return Step(
        number,
        np.array([True]),
        parents[None].astype(np.int16),
        path[None].astype(np.int16),
        np.array([(path >= 0).sum()]),
        np.array([kept]),
        Times.of(seconds),  # as a cost table has them
        {},
        np.array([0]),
    )


def _sampled(text: Any, steps: list[Step], drafter: str, verifier: str, lossless: bool) -> Sample:
    draft, score = (
        sum(step.seconds.get(name, 0.0) for step in steps) for name in ("draft", "score")
    )
    report = Report(
        steps,
        [Served(0.0, 0.0, draft + score)],
        draft + score,
        {"target": 0, "drafter": 0},
        {"target": score, "drafter": draft},
        drafter,
        verifier,
        lossless,
        0,
        [],
    )
    return Sample([text.tokens], draft + score, score, draft, report)


def _outcome(played: Sequence[Played], frame: Any, priced: bool) -> Outcome:
    ways = {name: _way(played, name) for name in played[0].samples}
    if priced:
        speedup = {PLAIN: measures.speedup(ways[METHOD], ways[PLAIN])}
        ways[METHOD] = replace(ways[METHOD], speedup=speedup)
    return Outcome(
        prompts=len({prompt.index for one in played for prompt in one.prompts}),
        batches=[[prompt.index for prompt in one.prompts] for one in played if one.turn == 0],
        learns=False,
        ways=ways,
        divergence={},
        **measures.parts(frame),
    )


def _way(played: Sequence[Played], name: str) -> OurResult:
    samples = [one.samples[name] for one in played]
    tokens = [row for sample in samples for row in sample.tokens]
    count, wall = sum(map(len, tokens)), sum(sample.wall_seconds for sample in samples)
    return OurResult(
        tokens=count,
        wall_seconds=wall,
        wall_tokens_per_second=count / wall if wall else 0.0,
        distinct_4grams=measures.distinct_ngrams(tokens),
        per_prompt=measures.per_prompt(played, name),
        memory=Memory(target_weights=0, drafter_weights=0, peak=None, before=None),
        **measures.pooled([sample.report for sample in samples if sample.report]),
        tau_interval=measures.tau_interval(played, name),
    )
