"""Processes that torchrun has started for one run (tensor parallel). Rank 0 writes; the others
write into a folder that is removed."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

SILENT = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null")


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def of_this_rank(arguments: Sequence[str]) -> Iterator[list[str]]:
    """The command line of this process. Raises ValueError for a sweep over several."""
    if world() > 1 and {"-m", "--multirun"} & set(arguments):
        raise ValueError(
            f"torchrun has started {world()} processes for one run, and this command is a sweep; "
            "start one torchrun for each of its jobs, without -m and without shards"
        )
    try:
        if world() == 1 or os.environ.get("RANK", "0") == "0":
            yield list(arguments)
            return
        with TemporaryDirectory() as folder:
            own = [f"hydra.run.dir={folder}", "progress=false", "logger=none", *SILENT]
            keys = {each.partition("=")[0] for each in own}
            yield [*(each for each in arguments if each.partition("=")[0] not in keys), *own]
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            distributed.destroy_process_group()


def check(tp_plan: str | None) -> None:
    """Raises ValueError where processes and plan do not go together."""
    if tp_plan is None and world() > 1:
        raise ValueError(
            f"torchrun has started {world()} processes, and each would do this whole run; set "
            "target.tp_plan=auto to hold the target between them"
        )
    if tp_plan is not None and world() == 1:
        raise ValueError(
            f"target.tp_plan={tp_plan} is for several processes; start them with torchrun "
            "--nproc-per-node 2 -m experiments.run ..."
        )
