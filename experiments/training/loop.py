"""One training loop for every recipe: steps, schedule, evaluation, checkpoints that survive a kill, a progress bar.

A step's data and randomness are pure functions of (seed, step), so a run that was interrupted and resumed reads the same
windows, drops the same layers and reaches the same losses.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

console = Console(stderr=True)


def optimisers(
    model: nn.Module, muon_rate: float, adam_rate: float, weight_decay: float = 0.0, vocabulary: int = 0
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024, torch's own) on the matrices inside the layers; AdamW on embeddings, heads (matrices with a
    row for each of the `vocabulary`) and norms."""
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"training uses torch.optim.Muon, which torch {torch.__version__} lacks; install torch>=2.9")
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    matrices = [
        weight
        for name, weight in named
        if weight.ndim == 2 and "embed" not in name and "lm_head" not in name and len(weight) != vocabulary
    ]
    chosen = {id(weight) for weight in matrices}
    others = [weight for _, weight in named if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True),
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
) -> list[dict[str, float]]:
    """Run `loss_of(step)` for `steps` steps, with the rate falling linearly to zero after `warmup`.

    Every `every` steps: evaluate, write a checkpoint to `folder`/checkpoint, and `report` the new entry of the log. An
    existing checkpoint is continued from. Returns the log. Under `accelerate launch` each process takes its own batches, and
    gradients are averaged.
    """
    # Layer dropout leaves some weights out of a step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu", kwargs_handlers=[unused])
    # Wrapping moves nothing on one process; on several, gradients meet in the backward pass.
    objective = accelerator.prepare(Objective(model, loss_of))
    schedules = [get_linear_schedule_with_warmup(optimizer, warmup, steps) for optimizer in optimizers]
    folder.mkdir(parents=True, exist_ok=True)
    start, log = resume(model, optimizers, folder)
    for optimizer, schedule in zip(optimizers, schedules, strict=True) if start else ():
        schedule.last_epoch = start
        for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * factor(start)
    running, begun = log[-1]["loss"] if log else None, time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    quiet = not accelerator.is_main_process
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=quiet) as progress:
        task = progress.add_task(title, total=steps, completed=start)
        for step in range(start, steps):
            model.train()
            loss = objective(step * accelerator.num_processes + accelerator.process_index)
            accelerator.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            value = loss.item()
            running = value if running is None else 0.98 * running + 0.02 * value
            progress.update(task, advance=1, description=f"{title} loss {running:.3f}")
            if ((step + 1) % every == 0 or step + 1 == steps) and accelerator.is_main_process:
                model.eval()
                with torch.no_grad():
                    entry = {"step": step + 1, "loss": running, **evaluate()}
                entry["seconds"] = (log[-1]["seconds"] if log else 0.0) + time.perf_counter() - begun
                begun = time.perf_counter()
                log.append(entry)
                progress.console.print("  ".join(f"{name} {number:.4g}" for name, number in entry.items()))
                checkpoint(model, optimizers, folder, log)
                report(entry)
    return log


class Objective(nn.Module):
    """The loss as a module, so that a wrapper for several processes sees the parameters that it is made of."""

    def __init__(self, model: nn.Module, loss_of: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, step: int) -> Tensor:
        return self.loss_of(step)


def checkpoint(model: nn.Module, optimizers: list[torch.optim.Optimizer], folder: Path, log: list[dict]) -> None:
    """Write weights, optimiser state and log beside the last checkpoint, then put them in its place."""
    fresh, place = folder / "checkpoint.new", folder / "checkpoint"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    weights = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, fresh / "weights.safetensors")
    state = {
        f"{number}/{index}/{key}": torch.as_tensor(value).contiguous()
        for number, optimizer in enumerate(optimizers)
        for index, slots in optimizer.state_dict()["state"].items()
        for key, value in slots.items()
    }
    save_file(state, fresh / "optimizers.safetensors")
    (fresh / "log.json").write_text(json.dumps(log, indent=1))
    old = folder / "checkpoint.old"
    if place.exists():  # if not, a kill came between the two renames below, and the old one is all there is
        shutil.rmtree(old, ignore_errors=True)
        os.replace(place, old)
    os.replace(fresh, place)
    shutil.rmtree(old, ignore_errors=True)


def resume(model: nn.Module, optimizers: list[torch.optim.Optimizer], folder: Path) -> tuple[int, list[dict]]:
    """Load the last whole checkpoint of `folder`, if there is one; (steps done, log)."""
    places = [place for place in (folder / "checkpoint", folder / "checkpoint.old") if (place / "log.json").exists()]
    if not places:
        return 0, []
    place = places[0]
    weights = load_file(place / "weights.safetensors")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    flat = load_file(place / "optimizers.safetensors")
    for number, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        whole["state"] = {}
        for name, value in flat.items():
            which, index, key = name.split("/")
            if int(which) == number:
                whole["state"].setdefault(int(index), {})[key] = value
        optimizer.load_state_dict(whole)
    log = json.loads((place / "log.json").read_text())
    return log[-1]["step"], log
