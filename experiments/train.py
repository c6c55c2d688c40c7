"""Train a target, or a drafter for one: `python -m experiments.train drafter=NAME target=...` (conf/train/)."""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from experiments.training import target as target_recipe
from experiments.training.loop import fit, optimisers
from experiments.training.text import documents, encode, train_tokenizer

console = Console(stderr=True)


def train_target(config: DictConfig, folder: Path) -> None:
    """Tokenizer, then target; `folder`/model is what `specdec.load` takes."""
    found = documents(**{key: value for key, value in config.text.items() if key != "held_out"})
    seen = [document for document in found if not document.held_out(config.text.held_out)]
    unseen = [document for document in found if document.held_out(config.text.held_out)]
    recipe = config.drafter
    tokenizer = train_tokenizer((document.text for document in seen), recipe.vocabulary)
    training, held_out = encode(seen, tokenizer), encode(unseen, tokenizer)
    console.print(
        f"{len(seen)} documents, {len(training.ids):,} tokens to train on; {len(unseen)} held out, {len(held_out.ids):,} tokens; "
        f"{training.bytes / len(training.ids):.2f} bytes per token"
    )
    set_seed(config.seed)
    end = tokenizer.eos_token_id
    model = LlamaForCausalLM(
        LlamaConfig(
            **{key: value for key, value in recipe.architecture.items() if key != "rope_theta"},
            rope_parameters={"rope_type": "default", "rope_theta": recipe.architecture.rope_theta},
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    device = "cuda" if config.device == "auto" and torch.cuda.is_available() else config.device.replace("auto", "cpu")
    model.to(device)

    def loss_of(step: int) -> torch.Tensor:
        ids = torch.from_numpy(training.windows(recipe.context, recipe.batch, config.seed, step)).to(device)
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        with torch.autocast(device, torch.bfloat16):
            return target_recipe.loss(
                model, ids, random, recipe.layer_dropout, list(recipe.early_exits), recipe.early_exit_weight
            )

    fit(
        model,
        loss_of,
        lambda: target_recipe.bits_per_byte(model, held_out, recipe.context, config.evaluate_windows),
        optimisers(model, recipe.muon_rate, recipe.adam_rate, recipe.weight_decay),
        folder,
        recipe.steps,
        recipe.warmup,
        config.evaluate_every,
        title="target",
    )
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


@hydra.main(version_base="1.3", config_path="../conf/train", config_name="train")
def main(config: DictConfig) -> None:
    train_target(config, Path(config.output))


if __name__ == "__main__":
    main()
