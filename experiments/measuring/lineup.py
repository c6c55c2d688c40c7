"""The ways of a run, made from its settings; and what those settings were in effect."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

import specdec
from experiments.certificates.kept import with_defaults
from experiments.measuring.theirs import Theirs
from experiments.measuring.ways import AGAIN, COLD, METHOD, Ours, Way, load
from experiments.study.schema import Prompts, Settings, Target
from specdec.measuring.report import Report
from specdec.pairing import name_of
from specdec.plugins import build
from specdec.registry import described


def draft_model(model: str | Mapping[str, Any], target: Target) -> specdec.TransformersLM:
    """A draft model, a name or arguments of `specdec.load`, on the device and in the dtype that the
    target was given."""
    own = {"name": model} if isinstance(model, str) else model
    return load(**{"device": target.device, "dtype": target.dtype, **own})


def make_drafter(settings: Mapping[str, Any], target: Target) -> specdec.Drafter:
    """The drafter that `settings` (`_target_` or `name`, and arguments) describe."""
    return build("drafter", _with_models(settings, target))


def _with_models(settings: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The same with draft models loaded, also those of drafters inside it."""

    def inside(name: str, value: Any) -> Any:
        if name == "model" and isinstance(value, (str, Mapping)):
            return draft_model(value, target)
        if isinstance(value, (list, tuple)):
            return [inside("", each) for each in value]
        return _with_models(value, target) if isinstance(value, Mapping) else value

    found = {name: inside(name, value) for name, value in settings.items()}
    return found


def make(settings: Settings) -> dict[str, Way]:
    """The ways of a run, by name: method, the baselines, again, cold. Raises ValueError for what
    cannot be."""
    target, sampling = load(**asdict(settings.target)), asdict(settings.sampling)
    options = {
        **sampling,
        "seed": settings.seed,
        "ignore_eos": settings.ignore_eos,
        "allow_lossy": settings.allow_lossy,
        "seats": settings.seats,
    }
    verifier = build("verifier", settings.verifier)
    method = Ours(
        target,
        make_drafter(settings.drafter, settings.target),
        {**options, "verifier": verifier, "no_harm": settings.no_harm},
    )
    theirs = Theirs(target, sampling, settings.seed, settings.ignore_eos)
    ways: dict[str, Way] = {METHOD: method}
    for name in settings.baselines:
        if name == "none":
            ways[name] = Ours(target, build("drafter", "none"), options)
        elif name == "transformers":
            ways[name] = theirs
        elif name == "prompt_lookup":
            ways[name] = replace(
                theirs, lookup=(settings.prompt_lookup.max_ngram, settings.prompt_lookup.length)
            )
        else:
            ways[name] = replace(
                theirs,
                draft=draft_model(assistant(settings), settings.target),
                num_assistant_tokens=settings.assisted.num_assistant_tokens,
                confidence=settings.assisted.confidence,
            )
    if settings.noise and settings.baselines:
        ways[AGAIN] = ways[settings.baselines[0]]
    if method.drafter.learns:
        ways[COLD] = replace(
            method, drafter=make_drafter(settings.drafter, settings.target), cold=True
        )
    return ways


def assistant(settings: Settings) -> str:
    """The draft model of the baseline `assisted`."""
    name = settings.assisted.model or settings.drafter.get("model")
    if name is None:
        raise ValueError(
            "the baseline 'assisted' needs a draft model: set assisted.model, or use a drafter "
            "that has one"
        )
    return str(name["name"] if isinstance(name, Mapping) else name)


# --------------------------------------------------------------------------------- values in effect


def in_effect(settings: Settings, method: Ours, report: Report, chat: bool) -> Settings:
    """The settings with the values that the run had where they left them open: null, auto, a
    default of the code."""
    target = method.target
    as_given = report.verifier == name_of(method.options["verifier"])
    chosen = settings.verifier if as_given else described("verifier", report.verifier)
    assisted = settings.assisted
    if "assisted" in settings.baselines:
        # transformers' default
        confidence = 0.4 if assisted.confidence is None else assisted.confidence
        assisted = replace(assisted, model=assistant(settings), confidence=confidence)
    return replace(
        settings,
        threads=torch.get_num_threads(),
        seats=settings.seats or settings.batch_size,
        target=replace(
            settings.target,
            device=str(target.device),
            dtype=str(target.dtype).removeprefix("torch."),
            attn_implementation=target.config._attn_implementation,
        ),
        drafter=drafter_in_effect(settings.drafter, method.drafter),
        verifier={"_target_": chosen["_target_"], **with_defaults("verifier", chosen)},
        prompts=replace(settings.prompts, chat=chat, split=_split(settings.prompts)),
        assisted=assisted,
    )


def _split(prompts: Prompts) -> str | None:
    return prompts.split or ("test" if prompts.format == "datasets" else None)


def drafter_in_effect(given: Mapping[str, Any], drafter: specdec.Drafter) -> dict[str, Any]:
    """The drafter's arguments with their defaults, and what it says that they came to."""
    found = {**with_defaults("drafter", given), **drafter.settings_in_effect()}
    return {"_target_": given["_target_"], **found}
