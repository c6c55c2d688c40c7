"""The ways of a run, made from its settings; and what those settings were in effect."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

import specdec
from experiments.measuring.theirs import Theirs
from experiments.measuring.ways import AGAIN, COLD, METHOD, Ours, Way, load
from experiments.study.schema import Prompts, Settings, Target
from specdec.measuring.report import Report
from specdec.plugins import build, described, find


def draft_model(name: str, target: Target) -> specdec.TransformersLM:
    """A draft model, on the device and in the dtype that the target was given."""
    return load(name, device=target.device, dtype=target.dtype)


def make_drafter(settings: Mapping[str, Any], target: Target) -> specdec.Drafter:
    """The drafter that `settings` (`_target_` or `name`, and arguments) describe."""
    if isinstance(settings.get("model"), str):
        settings = {**settings, "model": draft_model(settings["model"], target)}
    return build("drafter", settings)


def make(settings: Settings) -> dict[str, Way]:
    """The ways of a run, by name: method, the baselines, again, cold. Raises ValueError for what
    cannot be."""
    target, sampling = load(**asdict(settings.target)), asdict(settings.sampling)
    options = {
        **sampling,
        "seed": settings.seed,
        "ignore_eos": settings.ignore_eos,
        "allow_lossy": settings.allow_lossy,
    }
    verifier = build("verifier", settings.verifier) if "_target_" in settings.verifier else "auto"
    method = Ours(target, make_drafter(settings.drafter, settings.target), {**options, "verifier": verifier})
    theirs = Theirs(target, sampling, settings.seed, settings.ignore_eos)
    ways: dict[str, Way] = {METHOD: method}
    for name in settings.baselines:
        if name == "none":
            ways[name] = Ours(target, build("drafter", "none"), options)
        elif name == "transformers":
            ways[name] = theirs
        elif name == "prompt_lookup":
            ways[name] = replace(theirs, lookup=(settings.prompt_lookup.max_ngram, settings.prompt_lookup.length))
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
        ways[COLD] = replace(method, drafter=make_drafter(settings.drafter, settings.target), cold=True)
    return ways


def assistant(settings: Settings) -> str:
    """The draft model of the baseline `assisted`."""
    name = settings.assisted.model or settings.drafter.get("model")
    if name is None:
        raise ValueError(
            "the baseline 'assisted' needs a draft model: set assisted.model, or use a drafter that has one"
        )
    return str(name)


# --------------------------------------------------------------------------------- values in effect


def in_effect(settings: Settings, method: Ours, report: Report, chat: bool) -> Settings:
    """The settings with the values that the run had where they left them open: null, auto, a
    default of the code."""
    target = method.target
    chosen = settings.verifier if "_target_" in settings.verifier else described("verifier", report.verifier)
    assisted = settings.assisted
    if "assisted" in settings.baselines:
        confidence = 0.4 if assisted.confidence is None else assisted.confidence  # transformers' default
        assisted = replace(assisted, model=assistant(settings), confidence=confidence)
    return replace(
        settings,
        threads=torch.get_num_threads(),
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
    """What the drafter says of itself (`settings_in_effect`), else its arguments, defaults filled
    in, with those of a shape as the shape resolved them."""
    ask = getattr(drafter, "settings_in_effect", None)
    found = dict(ask()) if ask is not None else with_defaults("drafter", given) | _of_shape(drafter)
    return {"_target_": given["_target_"], **found}


def with_defaults(group: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a plug-in, with its signature's defaults where none was given."""
    make, arguments = find(group, given)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(make).parameters.items()
        if parameter.default is not parameter.empty
    }
    return {**defaults, **arguments}


def _of_shape(drafter: specdec.Drafter) -> dict[str, Any]:
    """What `drafter.shape` made of depth, branching, draw and nodes; of a static tree without a
    shape, its nodes."""
    shape, tree = getattr(drafter, "shape", None), getattr(drafter, "tree", None)
    if shape is None:
        return {"nodes": tree.nodes} if tree is not None and hasattr(tree, "nodes") else {}
    widths = {"ranked": shape.width, "adaptive": None, "static": None}
    return {
        "depth": shape.depth,
        "branching": widths.get(shape.draw, shape.widths),
        "draw": "wor" if shape.draw == "auto" else shape.draw,
        "nodes": shape.max_nodes - 1,
    }
