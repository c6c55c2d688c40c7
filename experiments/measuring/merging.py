"""At the end of a sweep: one result of all shards of each setting."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.study.sweeps import REFUSED
from experiments.terminal.refusals import said


class Merged(Callback):
    """Comes before `Planned`, which exits where jobs have failed."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        from experiments.measuring.shards import merge  # it needs torch, and not every command does

        try:
            for folder in merge(Path(config.hydra.sweep.dir)):
                print(f"one result of all shards: {folder}", file=sys.stderr)
        except REFUSED as error:
            sys.exit(said(error))
