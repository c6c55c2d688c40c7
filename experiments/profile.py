"""What forward passes cost on this machine: time against nodes, batch and context, for a target and
a draft model. Saved as JSON, which `experiments.report` predicts speed-ups from, and drawn.

python -m experiments.profile
python -m experiments.profile target=MODEL draft=null "nodes=[1,8,64]" "contexts=[128,2048]"
python -m experiments.profile compile=true "nodes=[1,8,32]" "batches=[1]" "contexts=[128]"

With compile=true each pass is also timed compiled. What compiling takes off is dispatch, and
packing weights at every product; the printed share is that part of the uncompiled pass.
Every size is compiled anew, which takes 10 to 30 seconds for a small model.

With a drafter, or an output that ends in .json, it writes a cost table instead: rounds of the real
loop by size, which `priced` decides by (`specdec.Costs`).

python -m experiments.profile drafter=small_model output=costs.json
python -m experiments.profile "drafter=[eagle,suffix]" compile=true output=costs.json
"""

import itertools
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.terminal.options import start

COMPILED = ", compiled"  # follows the name of a model


@dataclass
class Profile:
    """python -m experiments.profile: measure forward passes, write and draw them."""

    target: str = "demo"
    draft: str | None = "demo-draft"  # null: none
    # of a cost table: a drafter, or a list of drafters, by name or as {name: ..., argument: value}
    drafter: Any = None
    extra_layers: list[int] = field(default_factory=lambda: [0])  # of the target, each profiled
    # scored in a pass, the root included
    nodes: list[int] = field(default_factory=lambda: [1, 4, 8, 16, 32, 64])
    batches: list[int] = field(default_factory=lambda: [1, 4])  # rows of a pass
    # committed tokens before the pass
    contexts: list[int] = field(default_factory=lambda: [64, 192, 384])
    dtype: str | None = None  # null: the checkpoint's
    compile: bool = False  # time compiled passes too; of a cost table: rounds with compiled passes
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
    from specdec import TransformersLM

    models = {
        target_name(wanted.target, more): load(
            wanted.target, dtype=wanted.dtype, **({"extra_layers": more} if more else {})
        )
        for more in wanted.extra_layers
    }
    if wanted.draft:
        models[wanted.draft] = load(wanted.draft, dtype=wanted.dtype)
    if wanted.compile:  # of the same weights
        models |= {
            name + COMPILED: TransformersLM(lm.model, name=name, compile=True)
            for name, lm in models.items()
        }
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


def dispatch(times: pd.DataFrame) -> pd.DataFrame:
    """A row per pass that was timed both ways: milliseconds, and the share that compiling takes
    off."""
    plain = times[~times["model"].str.endswith(COMPILED)]
    fast = times[times["model"].str.endswith(COMPILED)]
    fast = fast.assign(model=fast["model"].str.removesuffix(COMPILED))
    both = plain.merge(fast, on=["model", "nodes", "batch", "context"], suffixes=("", " compiled"))
    share = 1 - both["seconds compiled"] / both["seconds"]
    return both[["model", "nodes", "batch", "context"]].assign(
        **{
            "ms": (1000 * both["seconds"]).round(2),
            "ms compiled": (1000 * both["seconds compiled"]).round(2),
            "dispatch": [f"{value:.0%}" for value in share],
        }
    )


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
        wanted.compile,
        dtype=wanted.dtype,
        **({"extra_layers": wanted.extra_layers[0]} if any(wanted.extra_layers) else {}),
    )
    costs.save(path)
    print(markdown(shown(costs)), path, sep="\n")


def draw(times: pd.DataFrame, machine: str) -> Any:
    """A panel per model: milliseconds against nodes, a line per batch and context, and for compiled
    passes."""
    from experiments.report.looks import Drawn, entitle, legend, line_styles, panels

    fast = times["model"].str.endswith(COMPILED)
    kind = fast.map({True: COMPILED, False: ""})
    times = times.assign(model=times["model"].str.removesuffix(COMPILED))
    models = list(times["model"].unique())
    figure, axes = panels(1, len(models), 2.9)
    times = times.assign(
        line=[
            f"batch {b}, context {c}{how}"
            for b, c, how in zip(times["batch"], times["context"], kind, strict=True)
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
    from experiments.terminal.tables import markdown

    quiet_transformers()
    set_threads(wanted.threads)
    set_threads(wanted.threads, load(wanted.target, dtype=wanted.dtype))
    if wanted.drafter is not None or wanted.output.endswith(".json"):
        write_cost_table(wanted)
        return
    times, where = measure(wanted), surroundings()
    dtype = str(load(wanted.target, dtype=wanted.dtype).dtype).removeprefix("torch.")
    folder = Path(wanted.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
    write_json(path, {"config": vars(wanted), "dtype": dtype, **asdict(where), "times": times})
    if wanted.compile:
        print(markdown(dispatch(pd.DataFrame(times))))
    asked = " ".join(["python -m experiments.profile", *sys.argv[1:]])
    print(f"`{asked}`, {where.threads} threads, {where.machine.processor}")
    named = f"{where.machine.processor}, {where.threads} threads"
    write_figures({"profile": draw(pd.DataFrame(times), named)}, folder)
    print(path, folder / "profile.png", sep="\n")


if __name__ == "__main__":
    start(main, Profile)
