"""One training loop for every recipe: steps, schedule, evaluation, checkpoints that survive a kill,
a progress bar.

A step's data and randomness are pure functions of (seed, step), so a run that was interrupted and
resumed reads the same windows, drops the same layers and reaches the same losses.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from rich.console import Console
from torch import Tensor, nn

from experiments.terminal.progress import bar
from experiments.training import checkpoints

console = Console(stderr=True)
Entry = dict[str, float]  # of the log: step, loss, seconds, and what the evaluation measured


def optimisers(
    model: nn.Module,
    muon_rate: float,
    adam_rate: float,
    weight_decay: float = 0.0,
    vocabulary: int = 0,
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024, torch's own) on the matrices inside the layers; AdamW on
    embeddings, heads (matrices with a row or a column for each of the `vocabulary`) and norms."""
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
        and vocabulary not in weight.shape
    ]
    chosen = {id(weight) for weight in matrices}
    others = [weight for _, weight in named if id(weight) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=muon_rate, weight_decay=weight_decay, momentum=0.95),
        torch.optim.AdamW(
            others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
        ),
    ]


def rate(step: int, steps: int, warmup: int, spent: float) -> float:
    """The share of the full rate in a step: it rises for `warmup` steps, and falls linearly to zero
    over the others, or with the budget of time, of which the share `spent` is over."""
    rising = step / warmup if warmup else 1.0
    falling = (steps - step) / max(1, steps - warmup)
    return max(0.0, min(rising, falling, 1 - spent))


def best_of(log: Sequence[Entry], measure: str) -> Entry:
    """The evaluation with the highest `measure`, the latest of equal ones."""
    return max(log, key=lambda entry: (entry[measure], entry["step"]))


def since_best(log: Sequence[Entry], measure: str) -> int:
    """How many evaluations there were after the best one."""
    best = best_of(log, measure)
    return sum(entry["step"] > best["step"] for entry in log)


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
    budget: float | None = None,
    keep: str | None = None,
    patience: int | None = None,
) -> list[Entry]:
    """Run `loss_of(step)` for `steps` steps, or for `budget` minutes of steps if these are over
    sooner (evaluations do not count), with the rate falling linearly to zero after `warmup`.

    Every `every` steps and at the end: evaluate, and `report` the new entry of the log. Then, and
    whenever `minutes` have passed: write a checkpoint to `folder`/checkpoint. An existing one is
    continued from, which is said; ValueError where it is of other `settings`. Returns the log.

    keep: a measure of the evaluations. The model is left with the weights for which it was highest.
    patience: training ends at so many evaluations after the best one.

    Under `accelerate launch` each process takes its own batches, and gradients are averaged.
    """
    # Layer dropout leaves some weights out of a step.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        cpu=next(model.parameters()).device.type == "cpu", kwargs_handlers=[unused]
    )
    if accelerator.num_processes > 1 and (budget is not None or patience is not None):
        raise ValueError(
            f"minutes and patience end a training of one process, and this one has "
            f"{accelerator.num_processes}, which would end apart; set drafter.steps instead"
        )
    # Wrapping moves nothing on one process; on several, gradients meet in the backward pass.
    objective = accelerator.prepare(Objective(model, loss_of))
    folder.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        checkpoints.agree(folder, settings)
    done, quiet = checkpoints.load(model, optimizers, folder), not accelerator.is_main_process
    # Collected here: loading makes new ones.
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]

    def spent() -> float:
        return 0.0 if budget is None else done.training / (60 * budget)

    def over() -> bool:
        if done.step >= steps or spent() >= 1:
            return True
        if keep is None or patience is None or not done.log:
            return False
        return since_best(done.log, keep) >= patience

    if done.step and not quiet:
        _say_where(folder, done.step, steps, over())
    earlier, begun = done.seconds, time.perf_counter()
    saved = begun
    # The bar counts what ends the training: steps, or the seconds of a budget.
    total, before = (round(60 * budget), int(done.training)) if budget else (steps, done.step)
    with bar(title, total, not quiet, before) as advance:
        while not over():
            model.train()
            started = time.perf_counter()
            share = rate(done.step, steps, warmup, spent())
            for group, full in zip(groups, rates, strict=True):
                group["lr"] = full * share
            loss = objective(done.step * accelerator.num_processes + accelerator.process_index)
            accelerator.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            value = loss.item()
            done.step += 1
            done.loss = value if done.loss is None else 0.98 * done.loss + 0.02 * value
            shown = int(done.training)
            done.training += time.perf_counter() - started
            if budget is None:
                advance(f"loss {done.loss:.3f}")
            else:
                seconds = int(done.training) - shown
                advance(f"loss {done.loss:.3f}, step {done.step}, seconds", by=seconds)
            if quiet:
                continue
            due = done.step % every == 0 or over()
            if due:
                model.eval()
                with torch.no_grad():
                    entry = {"step": done.step, "loss": done.loss, **evaluate()}
                entry["seconds"] = earlier + time.perf_counter() - begun
                done.log.append(entry)
                said = "  ".join(f"{name} {number:.4g}" for name, number in entry.items())
                print(said, file=sys.stderr, flush=True)
                if keep is not None and best_of(done.log, keep) is entry:
                    done.best = {
                        name: weight.detach().clone().contiguous()
                        for name, weight in model.named_parameters()
                    }
            if due or time.perf_counter() - saved >= 60 * minutes:
                done.seconds = earlier + time.perf_counter() - begun
                checkpoints.save(model, optimizers, folder, done, settings)
                saved = time.perf_counter()
            if due:
                report(entry)
    if keep is not None and done.best is not None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(done.best[name])
        best = best_of(done.log, keep)
        console.print(
            f"kept: the weights after step {best['step']} of {done.step}, {keep} {best[keep]:.3f}"
        )
    return done.log


def _say_where(folder: Path, done: int, steps: int, over: bool) -> None:
    """From which step a training goes on."""
    place = checkpoints.last(folder)
    assert place is not None
    where = f"{place}, written {checkpoints.written(place)}"
    if not over:
        console.print(f"going on from step {done} of {steps} ({where})")
    else:
        all_of_them = f"all {steps}" if done >= steps else f"{done} of {steps}"
        console.print(
            f"nothing to train: {all_of_them} steps were done before ({where}). Results are "
            "written again; to train anew, give another output=FOLDER"
        )


class Objective(nn.Module):
    """The loss as a module, so that a wrapper for several processes sees the parameters that it is
    made of."""

    def __init__(self, model: nn.Module, loss_of: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, step: int) -> Tensor:
        return self.loss_of(step)
