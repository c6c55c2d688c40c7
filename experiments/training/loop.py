"""One training loop for every recipe: steps, schedule, evaluation, checkpoints that survive a kill,
a progress bar.

A step's data and randomness are pure functions of (seed, step), so a run that was interrupted and
resumed reads the same windows, drops the same layers and reaches the same losses.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from rich.console import Console
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from experiments.terminal.progress import bar
from experiments.training import checkpoints

console = Console(stderr=True)


def optimisers(
    model: nn.Module,
    muon_rate: float,
    adam_rate: float,
    weight_decay: float = 0.0,
    vocabulary: int = 0,
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024, torch's own) on the matrices inside the layers; AdamW on
    embeddings, heads (matrices with a row for each of the `vocabulary`) and norms."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"training uses torch.optim.Muon, which torch {torch.__version__} lacks; install "
            "torch>=2.9"
        )
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [
        weight
        for name, weight in named
        if weight.ndim == 2
        and "embed" not in name
        and "lm_head" not in name
        and len(weight) != vocabulary
    ]
    chosen = {id(weight) for weight in matrices}
    others = [weight for _, weight in named if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay, momentum=0.95),
        torch.optim.AdamW(
            others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
        ),
    ]


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    evaluate: Callable[[], dict[str, float]],
    optimizers: list[torch.optim.Optimizer],
    folder: Path,
    steps: int,
    warmup: int = 100,
    every: int = 200,
    clip: float = 1.0,
    title: str = "training",
    report: Callable[[dict[str, float]], None] = lambda entry: None,
    minutes: float = 2.0,
    settings: checkpoints.Settings | None = None,
) -> list[dict[str, float]]:
    """Run `loss_of(step)` for `steps` steps, with the rate falling linearly to zero after `warmup`.

    Every `every` steps: evaluate, and `report` the new entry of the log. Then, and whenever
    `minutes` have passed: write a checkpoint to `folder`/checkpoint. An existing one is continued
    from, which is said; ValueError where it is of other `settings`. Returns the log. Under
    `accelerate launch` each process takes its own batches, and gradients are averaged.
    """
    # Layer dropout leaves some weights out of a step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        cpu=next(model.parameters()).device.type == "cpu", kwargs_handlers=[unused]
    )
    # Wrapping moves nothing on one process; on several, gradients meet in the backward pass.
    objective = accelerator.prepare(Objective(model, loss_of))
    schedules = [
        get_linear_schedule_with_warmup(optimizer, warmup, steps) for optimizer in optimizers
    ]
    folder.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        checkpoints.agree(folder, settings)
    done, quiet = checkpoints.load(model, optimizers, folder), not accelerator.is_main_process
    if done.step and not quiet:
        _say_where(folder, done.step, steps)
    for optimizer, schedule in zip(optimizers, schedules, strict=True) if done.step else ():
        schedule.last_epoch = done.step
        for group, rate, factor in zip(
            optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = rate * factor(done.step)
    spent, begun = done.seconds, time.perf_counter()
    saved = begun
    with bar(title, steps, not quiet, done.step) as advance:
        for step in range(done.step, steps):
            model.train()
            loss = objective(step * accelerator.num_processes + accelerator.process_index)
            accelerator.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            value = loss.item()
            done.step, done.loss = (
                step + 1,
                value if done.loss is None else 0.98 * done.loss + 0.02 * value,
            )
            advance(f"loss {done.loss:.3f}")
            if quiet:
                continue
            due = done.step % every == 0 or done.step == steps
            if due:
                model.eval()
                with torch.no_grad():
                    entry = {"step": done.step, "loss": done.loss, **evaluate()}
                entry["seconds"] = spent + time.perf_counter() - begun
                done.log.append(entry)
                said = "  ".join(f"{name} {number:.4g}" for name, number in entry.items())
                print(said, file=sys.stderr, flush=True)
            if due or time.perf_counter() - saved >= 60 * minutes:
                done.seconds = spent + time.perf_counter() - begun
                checkpoints.save(model, optimizers, folder, done, settings)
                saved = time.perf_counter()
            if due:
                report(entry)
    return done.log


def _say_where(folder: Path, done: int, steps: int) -> None:
    """From which step a training goes on."""
    place = checkpoints.last(folder)
    assert place is not None
    where = f"{place}, written {checkpoints.written(place)}"
    if done < steps:
        console.print(f"going on from step {done} of {steps} ({where})")
    else:
        console.print(
            f"nothing to train: all {steps} steps were done before ({where}). Results are written "
            "again; to train anew, give another output=FOLDER"
        )


class Objective(nn.Module):
    """The loss as a module, so that a wrapper for several processes sees the parameters that it is
    made of."""

    def __init__(self, model: nn.Module, loss_of: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, step: int) -> Tensor:
        return self.loss_of(step)
