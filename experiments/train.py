"""Train a target, or a drafter for one: `python -m experiments.train drafter=NAME target=...`
(conf/train/)."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.study import schema
from experiments.terminal import search_path
from experiments.terminal.program import JobError, start

schema.register()


@hydra.main(version_base="1.3", config_path="../conf/train", config_name="train")
def main(config: DictConfig) -> None:
    import torch

    from experiments.training.recipes import processes, train

    device = (
        ("cuda" if torch.cuda.is_available() else "cpu")
        if config.device == "auto"
        else config.device
    )
    try:
        search_path.check(HydraConfig.get().runtime.choices, below="train/")
        processes(device)
        train(config, Path(config.output), device)
    except Exception as error:
        raise JobError from error


if __name__ == "__main__":
    start(main, None, lambda: "interrupted; the same command goes on from its last checkpoint")
