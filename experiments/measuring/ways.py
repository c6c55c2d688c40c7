"""Ways to decode a batch of prompts, all on the same weights: ours, and transformers' own as baselines."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import torch
from transformers import GenerationConfig

import specdec
from experiments.measuring.memory import Peak, peak
from experiments.prompts import Prompt
from specdec.metrics import Report
from specdec.plugins import build

AGAIN, COLD = "again", "cold"  # the first baseline, decoded twice; the method, its drafter forgetting between prompts
Batch = tuple[Sequence[Sequence[int]], Sequence[int]]  # prompts and their request ids
BASELINES = ("none", "transformers", "assisted", "prompt_lookup")


@dataclass(frozen=True)
class Sample:
    """A batch of prompts, decoded in one way."""

    tokens: list[list[int]]  # what was added, per prompt
    wall_seconds: float  # the whole call, prefill and all
    target_seconds: float | None = None  # inside the target's forward passes; ours only, as are the next two
    draft_seconds: float | None = None  # inside the draft model's
    report: Report | None = None
    peak: Peak | None = None  # of memory, during the call

    @property
    def seconds_per_token(self) -> float:
        return self.wall_seconds / max(1, sum(map(len, self.tokens)))


class Way(Protocol):
    @property
    def target(self) -> specdec.TransformersLM: ...

    def __call__(self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int) -> Sample: ...


@cache
def load(name: str, **settings: Any) -> specdec.TransformersLM:
    """`specdec.load`, once per process and settings: the jobs of a sweep share their models."""
    return specdec.load(name, **settings)


@dataclass(frozen=True)
class Ours:
    """specdec.generate with one drafter."""

    target: specdec.TransformersLM
    drafter: specdec.Drafter
    verifier: str | specdec.Verifier = "auto"
    sampling: dict[str, Any] | None = None
    seed: int = 0
    ignore_eos: bool = False
    allow_lossy: bool = False
    cold: bool = False  # the drafter forgets earlier prompts before each call

    def __call__(self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int) -> Sample:
        if self.cold:
            self.drafter.forget()
        began = time.perf_counter()
        out = specdec.generate(
            self.target,
            prompts,
            drafter=self.drafter,
            verifier=self.verifier,
            max_new_tokens=max_new_tokens,
            seed=self.seed,
            request_ids=request_ids,
            ignore_eos=self.ignore_eos,
            allow_lossy=self.allow_lossy,
            **(self.sampling or {}),
        )
        wall = time.perf_counter() - began
        draft_seconds = getattr(getattr(self.drafter, "model", None), "forward_seconds", 0.0)
        tokens = [row.tolist() for row in out.tokens]
        return Sample(tokens, wall, self.target.forward_seconds, draft_seconds, out.report)


@dataclass(frozen=True)
class Theirs:
    """transformers' generate: plain, with a draft model (assisted generation), or with prompt lookup."""

    target: specdec.TransformersLM
    sampling: dict[str, Any]
    seed: int = 0
    ignore_eos: bool = False
    draft: specdec.TransformersLM | None = None
    num_assistant_tokens: int = 5
    confidence: float | None = None
    lookup: tuple[int, int] | None = None  # (longest n-gram, drafted tokens)

    def __call__(self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int) -> Sample:
        device, width = self.target.device, max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # padded on the left, as transformers wants it
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        torch.manual_seed(hash((self.seed, *request_ids)) % (1 << 63))
        with self._settings():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            out = self.target.model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._config(max_new_tokens),
                **({"assistant_model": self.draft.model} if self.draft else {}),
            )
            added = out[:, width:].tolist()
            wall = time.perf_counter() - began
        stops = frozenset() if self.ignore_eos else self.target.eos_ids
        return Sample([_until(row, stops) for row in added], wall)

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        sampling = {key: value for key, value in self.sampling.items() if value is not None}
        if sampling.get("temperature", 0.0) > 0:
            sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, **sampling}
        else:
            sampling = {"do_sample": False, "repetition_penalty": sampling.get("repetition_penalty", 1.0)}
        if self.lookup:
            sampling |= {"max_matching_ngram_size": self.lookup[0], "prompt_lookup_num_tokens": self.lookup[1]}
        eos = None if self.ignore_eos else sorted(self.target.eos_ids) or None
        return GenerationConfig(max_new_tokens=max_new_tokens, pad_token_id=0, eos_token_id=eos, **sampling)

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """What transformers reads from the models' own generation configs, for the time of the call."""
        changes = [(self.target.model, {"eos_token_id": None} if self.ignore_eos else {})]
        if self.draft:
            assisted = {
                "num_assistant_tokens": self.num_assistant_tokens,
                "num_assistant_tokens_schedule": "constant",
                "assistant_confidence_threshold": self.confidence,
            }
            changes.append((self.draft.model, assisted))
        before = [(model, model.generation_config) for model, _ in changes]
        try:
            for model, values in changes:
                if values:
                    model.generation_config = GenerationConfig.from_dict(
                        {**model.generation_config.to_dict(), **values}
                    )
            yield
        finally:
            for model, config in before:
                model.generation_config = config


def _until(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """Up to the first stop, which is kept; in a batch, transformers fills the rest with padding."""
    for index, token in enumerate(tokens):
        if token in stops:
            return tokens[: index + 1]
    return tokens


def make_drafter(settings: dict[str, Any], target: dict[str, Any]) -> specdec.Drafter:
    """The drafter that `settings` (`_target_` and arguments) describe. A draft model is loaded once per process, with the
    target's device and dtype."""
    if isinstance(settings.get("model"), str):
        settings = {**settings, "model": draft_model(settings["model"], target)}
    return build("drafter", settings)


def draft_model(name: str, target: dict[str, Any]) -> specdec.TransformersLM:
    return load(name, device=target.get("device"), dtype=target.get("dtype"))


def make(config: dict[str, Any]) -> dict[str, Way]:
    """The ways of a run's resolved configuration, by name. Raises ValueError for what cannot be."""
    wanted, batch = config["baselines"], config["batch_size"]
    unknown = [name for name in wanted if name not in BASELINES]
    if unknown:
        raise ValueError(f"unknown baseline {unknown[0]!r}; there are: {', '.join(BASELINES)}")
    alone = [name for name in wanted if name in ("assisted", "prompt_lookup") and batch > 1]
    if alone:
        raise ValueError(
            f"transformers' {alone[0]} takes one prompt at a time; set batch_size=1 or leave the baseline out"
        )
    target = load(**config["target"])
    verifier = config["verifier"]
    ours = Ours(
        target,
        make_drafter(config["drafter"], config["target"]),
        build("verifier", verifier) if "_target_" in verifier else "auto",
        config["sampling"],
        config["seed"],
        config["ignore_eos"],
        config["allow_lossy"],
    )
    theirs = Theirs(target, config["sampling"], config["seed"], config["ignore_eos"])
    ways: dict[str, Way] = {"method": ours}
    for name in wanted:
        if name == "none":
            ways[name] = replace(ours, drafter=build("drafter", "none"), verifier="auto")
        elif name == "transformers":
            ways[name] = theirs
        elif name == "prompt_lookup":
            lookup = config["prompt_lookup"]
            ways[name] = replace(theirs, lookup=(lookup["max_ngram"], lookup["length"]))
        else:
            ways[name] = replace(theirs, **_assisted(config))
    if config["noise"] and wanted:
        ways[AGAIN] = ways[wanted[0]]
    if ours.drafter.learns:
        ways[COLD] = replace(ours, drafter=make_drafter(config["drafter"], config["target"]), cold=True)
    return ways


def _assisted(config: dict[str, Any]) -> dict[str, Any]:
    settings = config["assisted"]
    name = settings["model"] or config["drafter"].get("model")
    if name is None:
        raise ValueError(
            "the baseline 'assisted' needs a draft model: set assisted.model, or use a drafter that has one"
        )
    draft = draft_model(name, config["target"])
    return {
        "draft": draft,
        "num_assistant_tokens": settings["num_assistant_tokens"],
        "confidence": settings["confidence"],
    }


def encode(target: specdec.TransformersLM, prompts: Sequence[Prompt]) -> list[list[int]]:
    if target.tokenizer is None:
        raise ValueError(f"the target {target.name} has no tokenizer, and prompts are texts")
    return [list(target.tokenizer(prompt.text)["input_ids"]) for prompt in prompts]


def interleaved(
    ways: dict[str, Way],
    batches: Sequence[Batch],
    max_new_tokens: int,
    warmup: int = 0,
) -> Iterator[dict[str, Sample]]:
    """Decode batch after batch (prompts, request ids) in every way, in turn forwards and backwards, so that no way is
    always the first. `warmup` batches are decoded first and thrown away, and what a drafter learnt from them is forgotten."""
    warm_up(ways, batches[:warmup], max_new_tokens)
    for number, (prompts, ids) in enumerate(batches):
        yield in_every_way(ways, dict.fromkeys(ways, prompts), ids, max_new_tokens, backwards=number % 2 == 1)


def warm_up(ways: dict[str, Way], batches: Sequence[Batch], max_new_tokens: int) -> None:
    for prompts, ids in batches:
        for way in ways.values():
            way(prompts, ids, min(max_new_tokens, 16))
    for way in ways.values():
        if isinstance(way, Ours):
            way.drafter.forget()


def in_every_way(
    ways: dict[str, Way],
    given: Mapping[str, Sequence[Sequence[int]]],
    request_ids: Sequence[int],
    max_new_tokens: int,
    backwards: bool,
) -> dict[str, Sample]:
    """One batch, given to each way as token ids."""
    done = {}
    for name in reversed(ways) if backwards else ways:
        with peak(ways[name].target.device) as highest:
            sample = ways[name](given[name], request_ids, max_new_tokens)
        done[name] = replace(sample, peak=highest)
    return {name: done[name] for name in ways}
