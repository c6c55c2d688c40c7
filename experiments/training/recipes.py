"""What there is to train: a target, a draft model for one, heads for one. experiments/train.py is
the command."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from experiments.training import checkpoints, pard, small_model, target
from experiments.training.documents import documents
from experiments.training.head import Decoding, Validation, accuracies
from experiments.training.head import loss_of as head_loss
from experiments.training.loop import Entry, best_of, fit, optimisers
from experiments.training.samples import sample
from experiments.training.teacher import Cached, Teacher
from experiments.training.text import Stream, encode, train_tokenizer
from experiments.training.watch import curves, reporting
from specdec.errors import integer
from specdec.heads.head import Head
from specdec.heads.marks import mark_of
from specdec.models.language_model import TransformersLM
from specdec.models.load import load
from specdec.plugins import build, callable_named, construct

console = Console(stderr=True)


HOW = ("output", "device", "logger", "evaluate_every", "checkpoint_minutes")
KEPT = ("best", "last")  # weights


def train(config: DictConfig, folder: Path, device: str) -> None:
    """What `drafter` says, into `folder`. Raises ValueError, before anything is loaded, where that
    holds a training of other settings."""
    described = settings_of(config, device)
    described.pop("text")  # compared once it is read
    checkpoints.agree(folder, described)
    RECIPES.get(config.title, train_head)(config, folder, device)


def settings_of(config: DictConfig, device: str, training: Stream | None = None) -> dict[str, Any]:
    """What decides which weights come out: not where a training runs, and how it is watched."""
    found: Any = OmegaConf.to_container(config, resolve=True)
    for key in HOW:
        found.pop(key, None)
    found["samples"].pop("folder")
    found["processes"] = processes(device).num_processes  # each takes batches of its own
    if training is not None:
        found["text"] |= {"tokens": len(training.ids), "digest": training.digest}
    return found


def text(
    config: DictConfig, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedTokenizerBase, Stream, Stream]:
    """The tokenizer (trained if there is none), the stream to train on and the one held out."""
    texts = config.text
    found = documents(texts.source, texts.patterns, texts.exclude, texts.get("field", "text"))
    seen = [document for document in found if not document.held_out(config.text.held_out)]
    unseen = [document for document in found if document.held_out(config.text.held_out)]
    if not seen or not unseen:
        sides = f"{len(seen)} to train on and {len(unseen)} held out"
        raise ValueError(
            f"{len(found)} documents split into {sides}; need both: change text.held_out, "
            f"{texts.held_out:g}, or give more documents"
        )
    if tokenizer is None:
        tokenizer = train_tokenizer((document.text for document in seen), config.drafter.vocabulary)
    training, held_out = encode(seen, tokenizer), encode(unseen, tokenizer)
    console.print(
        f"{len(seen)} documents, {len(training.ids):,} tokens to train on; {len(unseen)} held out, "
        f"{len(held_out.ids):,} tokens; {training.bytes / len(training.ids):.2f} bytes per token"
    )
    return tokenizer, training, held_out


def llama(
    architecture: DictConfig, tokenizer: PreTrainedTokenizerBase, context: int
) -> LlamaForCausalLM:
    end = tokenizer.eos_token_id
    return LlamaForCausalLM(
        LlamaConfig(
            **architecture,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            max_position_embeddings=context,
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def train_target(config: DictConfig, folder: Path, device: str) -> None:
    """A tokenizer and a target from scratch; `folder`/model is what `specdec.load` takes."""
    recipe = config.drafter
    tokenizer, training, held_out = text(config, None)
    set_seed(config.seed)
    model = llama(recipe.architecture, tokenizer, recipe.context).to(device)

    def loss_of(step: int) -> torch.Tensor:
        ids = torch.from_numpy(
            training.windows(recipe.context, recipe.batch, config.seed, step)
        ).to(device)
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        with torch.autocast(device, torch.bfloat16):
            return target.loss(
                model,
                ids,
                random,
                recipe.layer_dropout,
                list(recipe.early_exits),
                recipe.early_exit_weight,
            )

    def evaluate() -> dict[str, float]:
        return target.bits_per_byte(model, held_out, recipe.context, config.evaluate_windows)

    run(config, folder, model, tokenizer, training, loss_of, evaluate, None)


def train_small_model(config: DictConfig, folder: Path, device: str) -> None:
    """A draft model for `config.target`; `folder`/model is what the drafter small_model takes, or
    pard, whose recipe has a `block`."""
    if config.target is None:
        raise ValueError(
            "a drafter is trained for a target: give target=demo, a folder or a hub id"
        )
    recipe, teacher = config.drafter, load(config.target, device=device)
    tokenizer, training, held_out = text(config, teacher.tokenizer)
    set_seed(config.seed)
    draft = llama(recipe.architecture, tokenizer, teacher.context).to(device)
    small_model.start_from(draft, teacher.model)
    block = recipe.get("block")
    if block is not None:
        draft.config.pard_token = mask_of(recipe, tokenizer)
    windows, validation = (
        mixed(config, teacher, training, folder),
        decoding(config, teacher, held_out),
    )

    def loss_of(step: int) -> torch.Tensor:
        ids = torch.from_numpy(windows(step)).to(device)
        with torch.autocast(device, torch.bfloat16):
            if block is None:
                return small_model.loss(draft, teacher.model, ids, recipe.loss)
            random = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            mask, weight = draft.config.pard_token, recipe.depth_weight
            return pard.loss(
                draft, teacher.model, ids, recipe.loss, block, recipe.anchors, mask, weight, random
            )

    def evaluate() -> dict[str, float]:
        copied = TransformersLM(copy.deepcopy(draft).to(teacher.dtype).eval(), name="draft")
        tau = validation.tau(
            build("drafter", {"name": config.title, **settings(recipe), "model": copied})
        )
        return {"tau": tau} | small_model.agreement(
            draft, teacher.model, held_out, recipe.context, config.evaluate_windows
        )

    run(config, folder, draft, tokenizer, training, loss_of, evaluate, "tau")


def mask_of(recipe: DictConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that stands for tokens not known yet. Raises ValueError for one that the tokenizer
    does not have, and where there is none."""
    mask = tokenizer.eos_token_id if recipe.mask_token is None else recipe.mask_token
    if mask is None:
        raise ValueError("the tokenizer has no end of text to serve as mask; give mask_token=ID")
    return integer("mask_token", mask, 0, len(tokenizer) - 1)


def train_head(config: DictConfig, folder: Path, device: str) -> None:
    """Medusa, Hydra, EAGLE ... for `config.target`; `folder`/head is what the drafter takes as
    `heads`."""
    if config.target is None:
        raise ValueError("a head is trained for a target: give target=demo, a folder or a hub id")
    recipe, lm = config.drafter, load(config.target, device=device)
    if lm.tokenizer is None:
        raise ValueError(f"{config.target} has no tokenizer, so there is no text to train on")
    _, training, held_out = text(config, lm.tokenizer)
    set_seed(config.seed)
    head = untrained(recipe.head, lm, training).to(device)
    head.apart = config.apart
    teacher = Teacher(lm, head.taps, config.apart)
    windows = mixed(config, lm, training, folder)
    with processes(device).main_process_first():  # what one has put on disk, the others only read
        lesson = (
            Cached(teacher, windows, config.cache_batches, folder / "states")
            if config.cache_batches
            else teacher.on_the_fly(windows)
        )

    def loss_of(step: int) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return head_loss(
                head,
                teacher,
                lesson(step),
                recipe.loss,
                recipe.depth_weight,
                recipe.get("states_weight", 0.0),
                recipe.get("confidence_weight", 0.0),
            )

    name = config.title
    validation = Validation(
        teacher,
        lambda step: held_out.windows(recipe.context, 8, config.seed, step),
        max(1, config.evaluate_windows // 32),
        decoding(config, lm, held_out),
        lambda head: build("drafter", {"name": name, **settings(recipe), "heads": head}),
        device,
    )
    log = fit_recipe(config, folder, head, training, loss_of, lambda: validation(head), "tau")
    if log is None:
        return
    # Measured once more on all windows: the table is what static trees are built from.
    lessons = validation.lessons(max(1, config.evaluate_windows // 8))
    table = accuracies(head, teacher, lessons, recipe.temperature, device)
    notes = {"accuracies": table, "temperature": recipe.temperature}
    best = best_of(log, "tau") if config.keep == "best" else log[-1]
    notes["training"] = {key: best[key] for key in ("step", "tau", "seconds")}
    notes["training"]["last_step"] = log[-1]["step"]
    head.to(torch.bfloat16).save(folder / "head", **notes, trained_for=lm.name, target=mark_of(lm))
    console.print(f"written to {folder / 'head'}; drafter={name} drafter.heads={folder / 'head'}")


def untrained(described: DictConfig, lm: TransformersLM, training: Stream) -> Head:
    """The head that a recipe describes: what `_target_` makes of the target and other settings."""
    arguments: Any = OmegaConf.to_container(described, resolve=True)
    make = callable_named(arguments.pop("_target_", None), Head)
    if "draft_vocabulary" in arguments:
        arguments["frequency"] = torch.from_numpy(
            np.bincount(training.ids, minlength=lm.vocabulary)
        )
    head: Head = construct("this recipe's head", make, arguments, lm)
    return head


def mixed(
    config: DictConfig, lm: TransformersLM, training: Stream, folder: Path
) -> Callable[[int], np.ndarray]:
    """A step's ids: windows of text, and for a share of `samples.share` the target's own
    continuations of it."""
    recipe, chosen = config.drafter, config.samples
    own = round(recipe.batch * chosen.share)
    if not own:
        return lambda step: training.windows(recipe.context, recipe.batch, config.seed + 1, step)
    place = Path(chosen.folder) if chosen.folder else folder / "samples"
    with processes(
        lm.device.type
    ).main_process_first():  # what one has put on disk, the others only read
        rows = sample(
            lm,
            training,
            place,
            chosen.rows,
            recipe.context,
            chosen.prompt,
            chosen.temperatures,
            chosen.batch,
            config.seed,
        )

    def windows(step: int) -> np.ndarray:
        parts = [rows.windows(recipe.context, own, config.seed, step)]
        if own < recipe.batch:
            parts.append(
                training.windows(recipe.context, recipe.batch - own, config.seed + 1, step)
            )
        return np.concatenate(parts)

    return windows


def decoding(config: DictConfig, target: TransformersLM, held_out: Stream) -> Decoding:
    opening = min(64, config.drafter.context // 2)
    return Decoding(
        target,
        held_out.windows(opening, config.evaluate_prompts, config.seed, 0).tolist(),
        min(64, target.context - opening),
        config.drafter.temperature,
    )


def settings(recipe: DictConfig) -> dict[str, Any]:
    """The arguments of the drafter that validation decodes with."""
    return dict(OmegaConf.to_container(recipe.drafter))  # type: ignore[arg-type]


def run(
    config: DictConfig,
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    training: Stream,
    loss_of: Any,
    evaluate: Any,
    measure: str | None,
) -> None:
    if fit_recipe(config, folder, model, training, loss_of, evaluate, measure) is None:
        return
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    console.print(f"written to {folder / 'model'}")


def processes(device: str) -> PartialState:
    """Which of a launcher's processes this is. Called before anything is put on a device, so that
    "cuda" means this process's own device."""
    return PartialState(cpu=torch.device(device).type == "cpu")


def fit_recipe(
    config: DictConfig,
    folder: Path,
    model: nn.Module,
    training: Stream,
    loss_of: Any,
    evaluate: Any,
    measure: str | None,
) -> list[Entry] | None:
    """Train, and keep the weights for which `measure` was best, unless the config says otherwise.
    Returns the log, in the one process that writes results; others only share its work."""
    recipe, device = config.drafter, next(model.parameters()).device
    if config.keep not in KEPT:
        raise ValueError(f"keep must be one of {', '.join(KEPT)}, got {config.keep!r}")
    kept = measure if config.keep == "best" else None
    if config.patience is not None and kept is None:
        raise ValueError(
            "patience counts evaluations since the best tau, which this training does not keep; "
            "set patience=null, or train a drafter with keep=best"
        )
    writes = processes(device.type).is_main_process
    with reporting(config if writes else None) as report:
        log = fit(
            model,
            loss_of,
            evaluate,
            optimisers(
                model,
                recipe.muon_rate,
                recipe.adam_rate,
                recipe.weight_decay,
                getattr(model, "vocabulary", 0),
            ),
            folder,
            recipe.steps,
            recipe.warmup,
            config.evaluate_every,
            recipe.get("clip", 1.0),
            title=config.title,
            report=report,
            minutes=config.checkpoint_minutes,
            settings=settings_of(config, device.type, training),
            budget=config.minutes,
            keep=kept,
            patience=config.patience,
        )
    if writes:
        curves(log, folder / "training.png", config.title)
    return log if writes else None


# any other recipe says which `head` it trains
RECIPES = {"target": train_target, "small_model": train_small_model, "pard": train_small_model}
