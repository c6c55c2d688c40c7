"""Train a target, or a drafter for one: `python -m experiments.train drafter=NAME target=...` (conf/train/)."""

from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from experiments.training import small_model, target
from experiments.training.loop import fit, optimisers
from experiments.training.text import Stream, documents, encode, train_tokenizer
from specdec.load import load

console = Console(stderr=True)


def text(
    config: DictConfig, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedTokenizerBase, Stream, Stream]:
    """The tokenizer (trained if there is none), the stream to train on and the one held out."""
    found = documents(config.text.source, config.text.patterns, config.text.exclude)
    seen = [document for document in found if not document.held_out(config.text.held_out)]
    unseen = [document for document in found if document.held_out(config.text.held_out)]
    if not seen or not unseen:
        raise ValueError(
            f"{len(found)} documents split into {len(seen)} to train on and {len(unseen)} held out; need both"
        )
    if tokenizer is None:
        tokenizer = train_tokenizer((document.text for document in seen), config.drafter.vocabulary)
    training, held_out = encode(seen, tokenizer), encode(unseen, tokenizer)
    console.print(
        f"{len(seen)} documents, {len(training.ids):,} tokens to train on; {len(unseen)} held out, "
        f"{len(held_out.ids):,} tokens; {training.bytes / len(training.ids):.2f} bytes per token"
    )
    return tokenizer, training, held_out


def llama(architecture: DictConfig, tokenizer: PreTrainedTokenizerBase, context: int) -> LlamaForCausalLM:
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
        ids = torch.from_numpy(training.windows(recipe.context, recipe.batch, config.seed, step)).to(device)
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        with torch.autocast(device, torch.bfloat16):
            return target.loss(
                model, ids, random, recipe.layer_dropout, list(recipe.early_exits), recipe.early_exit_weight
            )

    def evaluate() -> dict[str, float]:
        return target.bits_per_byte(model, held_out, recipe.context, config.evaluate_windows)

    run(config, folder, model, tokenizer, loss_of, evaluate)


def train_small_model(config: DictConfig, folder: Path, device: str) -> None:
    """A draft model for `config.target`; `folder`/model is what the drafter small_model takes."""
    if config.target is None:
        raise ValueError("a drafter is trained for a target: give target=demo, a folder or a hub id")
    recipe, teacher = config.drafter, load(config.target, device=device)
    tokenizer, training, held_out = text(config, teacher.tokenizer)
    set_seed(config.seed)
    draft = llama(recipe.architecture, tokenizer, teacher.context).to(device)
    small_model.start_from(draft, teacher.model)

    def loss_of(step: int) -> torch.Tensor:
        ids = torch.from_numpy(training.windows(recipe.context, recipe.batch, config.seed + 1, step)).to(device)
        with torch.autocast(device, torch.bfloat16):
            return small_model.loss(draft, teacher.model, ids)

    def evaluate() -> dict[str, float]:
        return small_model.agreement(draft, teacher.model, held_out, recipe.context, config.evaluate_windows)

    run(config, folder, draft, tokenizer, loss_of, evaluate)


def run(config: DictConfig, folder: Path, model: PreTrainedModel, tokenizer: Any, loss_of: Any, evaluate: Any) -> None:
    recipe = config.drafter
    fit(
        model,
        loss_of,
        evaluate,
        optimisers(model, recipe.muon_rate, recipe.adam_rate, recipe.weight_decay),
        folder,
        recipe.steps,
        recipe.warmup,
        config.evaluate_every,
        title=config.title,
    )
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    console.print(f"written to {folder / 'model'}")


RECIPES = {"target": train_target, "small_model": train_small_model}


@hydra.main(version_base="1.3", config_path="../conf/train", config_name="train")
def main(config: DictConfig) -> None:
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    RECIPES[config.title](config, Path(config.output), device)


if __name__ == "__main__":
    main()
