"""What forward passes cost on this machine: time against nodes, batch and context, for a target and
a draft model. Saved as JSON, which `experiments.report` predicts speed-ups from, and drawn.

python -m experiments.profile
python -m experiments.profile target=MODEL draft=null "nodes=[1,8,64]" "contexts=[128,2048]"

With a drafter, or an output that ends in .json, it writes a cost table instead: rounds of the real
loop by size, which `priced` decides by (`specdec.Costs`).

python -m experiments.profile drafter=small_model output=costs.json
python -m experiments.profile "drafter=[eagle,suffix]" compiled=true output=costs.json
"""

import itertools
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.terminal.options import start


@dataclass
class Profile:
    """python -m experiments.profile: measure forward passes, write and draw them."""

    target: str = "demo"
    draft: str | None = "demo-draft"  # null: none
    # of a cost table: a drafter, or a list of drafters, by name or as {name: ..., argument: value}
    drafter: Any = None
    compiled: bool = False  # of a cost table: also rounds with compiled passes
    extra_layers: list[int] = field(default_factory=lambda: [0])  # of the target, each profiled
    # scored in a pass, the root included
    nodes: list[int] = field(default_factory=lambda: [1, 4, 8, 16, 32, 64])
    batches: list[int] = field(default_factory=lambda: [1, 4])  # rows of a pass
    # committed tokens before the pass
    contexts: list[int] = field(default_factory=lambda: [64, 192, 384])
    dtype: str | None = None  # null: the checkpoint's
    repeats: int = 20
    threads: int | None = None
    output: str = "outputs/profile"


def measure(wanted: Profile) -> list[dict[str, Any]]:
    """One row per model, nodes, batch and context: median seconds of a pass. The sizes of a tree
    take turns."""
    from experiments.measuring.forward_times import forward_times
    from experiments.measuring.ways import load
    from experiments.report.prediction import target_name
    from experiments.terminal.progress import bar

    models = {
        target_name(wanted.target, more): load(
            wanted.target, dtype=wanted.dtype, **({"extra_layers": more} if more else {})
        )
        for more in wanted.extra_layers
    }
    if wanted.draft:
        models[wanted.draft] = load(wanted.draft, dtype=wanted.dtype)
    rows: list[dict[str, Any]] = []
    sizes = list(itertools.product(models.items(), wanted.batches, wanted.contexts))
    with bar("forward passes", len(sizes)) as advance:
        for (name, model), batch, context in sizes:
            if context + max(wanted.nodes) > model.context:
                raise ValueError(
                    f"a context of {context} and {max(wanted.nodes)} nodes pass the "
                    f"{model.context} positions of {name}; give smaller contexts"
                )
            found = forward_times(model, context, wanted.nodes, batch, wanted.repeats)
            rows += [
                {
                    "model": name,
                    "nodes": nodes,
                    "batch": batch,
                    "context": context,
                    "seconds": seconds,
                }
                for nodes, seconds in found.items()
            ]
            advance()
    return rows


def write_cost_table(wanted: Profile) -> None:
    """What rounds cost, as a file of `specdec.Costs` and on the screen."""
    from experiments.measuring.cost_table import cost_table, shown
    from experiments.terminal.tables import markdown

    given = wanted.drafter
    drafters = given if isinstance(given, list) else [] if given is None else [given]
    path = Path(wanted.output if wanted.output.endswith(".json") else "outputs/costs.json")
    usual = Profile()
    costs = cost_table(
        wanted.target,
        drafters,
        [1] if wanted.batches == usual.batches else wanted.batches,
        None if wanted.contexts == usual.contexts else wanted.contexts,
        wanted.repeats,
        wanted.compiled,
        dtype=wanted.dtype,
        **({"extra_layers": wanted.extra_layers[0]} if any(wanted.extra_layers) else {}),
    )
    costs.save(path)
    print(markdown(shown(costs)), path, sep="\n")


def draw(times: pd.DataFrame, machine: str) -> Any:
    """A panel per model: milliseconds against nodes, a line per batch and context."""
    from experiments.report.looks import Drawn, entitle, legend, line_styles, panels

    models = list(times["model"].unique())
    figure, axes = panels(1, len(models), 2.9)
    times = times.assign(
        line=[
            f"batch {b}, context {c}" for b, c in zip(times["batch"], times["context"], strict=True)
        ]
    )
    looks = line_styles(times["line"])
    for axis, model in zip(axes, models, strict=True):
        for name, part in times[times["model"] == model].groupby("line", sort=False):
            axis.plot(part["nodes"], 1000 * part["seconds"], label=str(name), **looks[name])
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(times["nodes"].unique()))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set(xlabel="nodes in a pass", ylim=(0, None))
        entitle(axis, str(model).rstrip("/").rpartition("/")[2])
    axes[0].set_ylabel("time of a pass (ms)")
    legend(figure, axes[:1])
    return Drawn(
        figure,
        "Forward passes",
        f"Median time of a forward pass on {machine}, tree and root together.",
    )


def main(wanted: Profile) -> None:
    from experiments.measuring.ways import load
    from experiments.report.page import write_figures
    from experiments.system.files import write_json
    from experiments.system.libraries import quiet_transformers, set_threads
    from experiments.system.surroundings import surroundings

    quiet_transformers()
    set_threads(wanted.threads)
    if wanted.drafter is not None or wanted.output.endswith(".json"):
        write_cost_table(wanted)
        return
    times, where = measure(wanted), surroundings()
    dtype = str(load(wanted.target, dtype=wanted.dtype).dtype).removeprefix("torch.")
    folder = Path(wanted.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
    write_json(path, {"config": vars(wanted), "dtype": dtype, **asdict(where), "times": times})
    named = f"{where.machine.processor}, {where.threads} threads"
    write_figures({"profile": draw(pd.DataFrame(times), named)}, folder)
    print(path, folder / "profile.png", sep="\n")


if __name__ == "__main__":
    start(main, Profile)
