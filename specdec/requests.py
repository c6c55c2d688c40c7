"""What the caller asked for, checked before anything is computed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from specdec.chance import INT64, Chance, Keyed
from specdec.drafting.bank import NoHarm
from specdec.drafting.banked import under_bank
from specdec.errors import integer, switch
from specdec.grammar import Grammar, GrammarChoice
from specdec.interfaces import Drafter, LanguageModel, Verifier
from specdec.models.grammars import grammars_of
from specdec.models.load import Loadable, load
from specdec.plugins import build
from specdec.sampling import Processor, Sampling

Prompt = str | Sequence[int] | Tensor
Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor
DrafterChoice = str | dict[str, Any] | Drafter | Callable[[], Drafter]
VerifierChoice = str | dict[str, Any] | Verifier
NoHarmChoice = bool | dict[str, Any] | NoHarm | None


class RequestOptions(TypedDict, total=False):
    """What may be asked for a request of an engine."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    logits_processors: Sequence[Processor]
    grammar: GrammarChoice
    stop: str | Sequence[str]
    ignore_eos: bool
    seed: int | None
    request_id: int | None
    chance: Chance | None
    priority: int


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt, the number that keys its chance, how its text is sampled and where it ends."""

    prompt: list[int]
    request_id: int
    grammar: Grammar | None  # what the text has to be
    sampling: Sampling
    chance: Chance | None  # None: keyed by the seed
    seed: int
    max_new_tokens: int
    stop: tuple[str, ...]
    eos_ids: frozenset[int]
    priority: int = 0  # the largest is served first

    @property
    def longest(self) -> int:
        """Tokens that its text may come to hold."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True)
class Call:
    """What a run is made of: a checked call of generate, stream or Engine."""

    target: LanguageModel
    drafter: Drafter
    verifier: VerifierChoice
    seats: int
    allow_lossy: bool
    trace: bool = False
    slots: int = 0  # of every row's memory, besides the nodes of a tree; 0: it grows
    prefill_chunk: int | None = None  # tokens of prompts that are read before a round; None: all
    goes_on: bool = False  # a request that fails does not end the others


def prepare(
    target: Loadable | LanguageModel,
    prompts: Prompts,
    *,
    drafter: DrafterChoice = "ngram",
    verifier: VerifierChoice = "auto",
    no_harm: NoHarmChoice = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    logits_processors: Sequence[Processor] = (),
    grammar: GrammarChoice | Sequence[GrammarChoice] = None,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    seed: int | None = None,
    request_ids: Sequence[int] | None = None,
    chance: Chance | None = None,
    allow_lossy: bool = False,
    seats: int | None = None,
    trace: bool = False,
) -> tuple[Call, list[Request]]:
    """Raises ValueError for anything that cannot be served; the error says what was given and what
    to do."""
    model = target if isinstance(target, LanguageModel) else load(target)
    requests = asked(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        logits_processors=logits_processors,
        grammar=grammar,
        stop=stop,
        ignore_eos=ignore_eos,
        chance=make_chance(seed, chance),
        request_ids=request_ids,
    )
    rows = len(requests)
    call = Call(
        model,
        under_bank(make_drafter(drafter), no_harm, drafter),
        verifier,
        rows if seats is None else min(integer("seats", seats, 1), rows),
        switch("allow_lossy", allow_lossy),
        switch("trace", trace),
        max(request.longest for request in requests),
    )
    return call, requests


def asked(
    model: LanguageModel,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    logits_processors: Sequence[Processor],
    grammar: GrammarChoice | Sequence[GrammarChoice],
    stop: str | Sequence[str],
    ignore_eos: bool,
    chance: Chance | None,
    request_ids: Sequence[int] | None = None,
    seed: int = 0,
    priority: int = 0,
) -> list[Request]:
    """What is asked for each prompt. Raises ValueError for what the target cannot serve."""
    if not isinstance(logits_processors, Sequence):
        raise ValueError(
            f"logits_processors must be a list of callables, got {logits_processors!r}"
        )
    sampling = Sampling(
        temperature, top_k, top_p, min_p, repetition_penalty, tuple(logits_processors)
    )
    max_new_tokens = integer("max_new_tokens", max_new_tokens, 1)
    ids = encode(model, prompts)
    check_prompts(ids, model.vocabulary, model.context, max_new_tokens)
    stops = (stop,) if isinstance(stop, str) or not isinstance(stop, Sequence) else tuple(stop)
    if not all(isinstance(text, str) and text for text in stops):
        raise ValueError(f"stop must be non-empty strings, got {stop!r}")
    if stops and model.tokenizer is None:
        raise ValueError(
            "stop strings need a tokenizer, and this target has none; load (model, tokenizer), or "
            "use EOS ids"
        )
    keys = list(range(len(ids))) if request_ids is None else check_keys(request_ids, len(ids))
    grammars = grammars_of(grammar, len(ids), model)
    if switch("ignore_eos", ignore_eos) and any(grammars):
        raise ValueError(
            "a text that a grammar describes ends by EOS, so ignore_eos=True is not for it; drop "
            "one of the two"
        )
    eos_ids = frozenset() if ignore_eos else check_eos(model)
    seed, priority = integer("seed", seed, *INT64), integer("priority", priority, *INT64)
    return [
        Request(*each, sampling, chance, seed, max_new_tokens, stops, eos_ids, priority)
        for each in zip(ids, keys, grammars, strict=True)
    ]


def check_eos(model: LanguageModel) -> frozenset[int]:
    """The model's end-of-sequence ids. Raises ValueError for an id outside its vocabulary."""
    for token in model.eos_ids:
        whole = isinstance(token, int) and not isinstance(token, bool)
        if not whole or not 0 <= token < model.vocabulary:
            raise ValueError(
                f"{model.name} has the end-of-sequence id {token!r}, which is no id of its "
                f"vocabulary of {model.vocabulary} tokens; correct eos_token_id in its "
                "generation_config.json or config.json, or pass ignore_eos=True"
            )
    return model.eos_ids


def make_chance(seed: int | None, chance: Chance | None) -> Chance:
    """Keyed by the seed (default 0), or the chance that was given."""
    if chance is None:
        return Keyed(0 if seed is None else seed)
    if not isinstance(chance, Chance):
        raise ValueError(
            "chance must be a specdec.Chance such as Keyed(0) or Coupled(0), or None, got "
            f"{chance!r}"
        )
    if seed is not None:
        raise ValueError(
            f"seed={seed!r} and chance={chance!r} were both given; a chance has a seed of its own: "
            "give Keyed(seed) or Coupled(seed) alone"
        )
    return chance


def check_keys(request_ids: Any, rows: int) -> list[int]:
    given = plain(request_ids)
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != rows:
        count = (
            f"{len(given)} ids"
            if isinstance(given, Sequence) and not isinstance(given, str)
            else repr(given)
        )
        raise ValueError(f"request_ids must give one integer per prompt: {rows} prompts, {count}")
    return [integer(f"request_ids[{place}]", key, *INT64) for place, key in enumerate(given)]


def make_drafter(drafter: DrafterChoice) -> Drafter:
    """A drafter from a name, settings, a class or factory, or a drafter object."""
    if isinstance(drafter, (str, dict)):
        drafter = build("drafter", drafter)
    elif isinstance(drafter, Module):
        raise ValueError(
            f"a drafter is a name, {{'name': ..., ...}} or a specdec.Drafter, got the model "
            f"{type(drafter).__name__}; to draft with it, give "
            f"{{'name': 'small_model', 'model': it}}"
        )
    elif not isinstance(drafter, Drafter) and callable(drafter):
        try:
            drafter = drafter()
        except TypeError as error:
            raise ValueError(
                f"drafter {drafter!r} cannot be made without arguments: {error}"
            ) from error
    if not isinstance(drafter, Drafter):
        raise ValueError(
            f"a drafter is a name, {{'name': ..., ...}} or a specdec.Drafter, got "
            f"{type(drafter).__name__}"
        )
    return drafter


def encode(model: LanguageModel, prompts: Prompts) -> list[list[int]]:
    """Prompts in any of the accepted forms as lists of token ids."""
    if isinstance(prompts, Tensor):
        whole = not (
            prompts.is_floating_point() or prompts.is_complex() or prompts.dtype == torch.bool
        )
        if prompts.ndim not in (1, 2) or not whole:
            shape = tuple(prompts.shape)
            raise ValueError(
                "a tensor of prompts holds integer ids, (tokens,) or (rows, tokens); got "
                f"{prompts.dtype}, {shape}"
            )
        prompts = prompts.tolist()
    if isinstance(prompts, str):
        prompts = [prompts]
    if isinstance(prompts, (Mapping, bytes)) or not isinstance(prompts, Iterable):
        raise ValueError(
            "prompts must be a string, a list of strings, token ids, or lists of token ids; got "
            f"{type(prompts).__name__}"
            + (
                ', of which the "input_ids" may be what you mean'
                if isinstance(prompts, Mapping)
                else ""
            )
        )
    rows: list[Any] = [plain(row) for row in prompts]
    if not rows:
        raise ValueError(
            "no prompts: give a string, a list of strings, token ids, or lists of token ids"
        )
    if all(isinstance(row, int) and not isinstance(row, bool) for row in rows):
        return [rows]
    if all(isinstance(row, str) for row in rows):
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise ValueError(
                "this target has no tokenizer, so prompts must be token ids; or load (model, "
                "tokenizer)"
            )
        for number, row in enumerate(rows):
            if not row:
                raise ValueError(f"prompt {number} is empty; give at least one character")
            check_text(row, f"prompt {number}")
        return [list(tokenizer(row)["input_ids"]) for row in rows]
    found = []
    for number, row in enumerate(rows):
        if (
            not isinstance(row, Sequence)
            or isinstance(row, str)
            or not all(isinstance(token, int) and not isinstance(token, bool) for token in row)
        ):
            raise ValueError(
                f"prompt {number} mixes kinds: give all prompts as strings, or all as lists of "
                "integer ids"
            )
        found.append(list(row))
    return found


def plain(value: Any) -> Any:
    """Tensors, arrays and their numbers as plain Python values."""
    return value.tolist() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value


def check_text(text: str, what: str) -> None:
    """Raise ValueError for text that no tokenizer can take."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds half of a surrogate pair ({text[error.start]!r} at character "
            f"{error.start}), which is no text; read the file as UTF-8, or leave such characters "
            "out"
        ) from None


def check_prompts(ids: list[list[int]], vocabulary: int, context: int, max_new_tokens: int) -> None:
    for number, row in enumerate(ids):
        if not row:
            raise ValueError(
                f"prompt {number} is empty; decoding needs at least one token to start from"
            )
        wrong = [token for token in row if not 0 <= token < vocabulary]
        if wrong:
            raise ValueError(
                f"prompt {number} has token id {wrong[0]}, outside the target's vocabulary of "
                f"{vocabulary} tokens"
            )
        if len(row) >= context:
            raise ValueError(
                f"prompt {number} has {len(row)} tokens, the target's context is {context}; "
                "shorten the prompt"
            )
        if len(row) + max_new_tokens > context:
            raise ValueError(
                f"prompt {number} has {len(row)} tokens; with max_new_tokens={max_new_tokens} that "
                f"is {len(row) + max_new_tokens}, over the target's context of {context}; ask for "
                f"at most {context - len(row)}"
            )
