"""Heads that were trained for the same minutes, on the same text, compared: tau, speed, parameters,
what drafting costs, and whether they are as sure as they are right.

    python -m experiments.heads_budget minutes=20
    python -m experiments.heads_budget minutes=20 heads=[eagle3,dspark] seeds=[0]
    python -m experiments.heads_budget minutes=1 limit=2 max_new_tokens=16 seeds=[0]      a trial

Each head of `heads` is trained once per seed (conf/train/drafter/), into a folder below `trained`;
what is there is kept, and a training that was interrupted goes on. `minutes` counts steps alone:
neither evaluations nor the target's own samples, which all heads of a seed share. Then the heads
decode the same prompts in turn, each with the tree that its recipe names and, where it can, a
sampled chain. Intervals run over prompts, and both seeds' prompts count as prompts of their own.

Calibration: on held-out text, the probability that a head gives to its best token against the
probability that the target does, |difference| over ten bins, weighted by how many tokens each has.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.benchmarks.options import Options
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from omegaconf import DictConfig

    from experiments.benchmarks.bench import Bench, Compared
    from experiments.training.text import Stream


@dataclass
class Budget(Options):
    """python -m experiments.heads_budget: train heads for the same minutes, compare them, print a
    table and write it to a folder."""

    minutes: float = 20.0  # of training steps, for each head and seed
    # recipes of conf/train/drafter/
    heads: list[str] = field(default_factory=lambda: ["eagle3", "medusa", "dflash", "dspark"])
    seeds: list[int] = field(default_factory=lambda: [0, 1])  # of trainings
    # of every training, as `python -m experiments.train` takes them
    training: list[str] = field(default_factory=lambda: ["samples.share=0.5", "samples.rows=1024"])
    trained: str = "trained/heads_budget"  # the folder that heads are kept in
    temperatures: list[float] = field(default_factory=lambda: [0.6, 1.0])
    length: int = 7  # of sampled chains, or as deep as the head guesses
    limit: int = 16
    deep_limit: int = 0
    output: str = "outputs/heads_budget"


class Trained(NamedTuple):
    """A head of one seed."""

    kind: str
    seed: int
    folder: Path
    config: "DictConfig"  # that it was trained with

    @property
    def head(self) -> str:
        return str(self.folder / "head")

    def drafter(self, length: int | None) -> dict[str, Any]:
        """Settings: the recipe's tree, or a sampled chain of `length`."""
        from experiments.training.recipes import settings

        own = settings(self.config.drafter) if length is None else {"depth": length, "draw": "wor"}
        return {"name": self.kind, "heads": self.head, **own}

    def made(self) -> Any:
        """The head, loaded."""
        from specdec.plugins import build

        return build("drafter", self.drafter(None)).heads  # type: ignore[attr-defined]


def train(wanted: Budget) -> list[Trained]:
    """Every head and seed; those that are there already are not trained again. Raises ValueError
    where a folder holds a training of other settings."""
    import torch
    from hydra import compose, initialize_config_dir

    from experiments.study import schema
    from experiments.training import checkpoints, recipes
    from specdec.registry import CONF

    schema.register()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    recipes.processes(device)
    found = []
    for seed in wanted.seeds:
        for kind in wanted.heads:
            folder = Path(wanted.trained) / f"{kind}-{seed}"
            overrides = [
                f"drafter={kind}",
                f"target={wanted.target}",
                f"seed={seed}",
                f"minutes={wanted.minutes}",
                "drafter.steps=1000000",  # time ends it
                f"samples.folder={Path(wanted.trained) / f'samples-{seed}'}",
                f"output={folder}",
                *wanted.training,
            ]
            with initialize_config_dir(str(CONF / "train"), version_base="1.3"):
                config = compose("train", overrides)
            if not config.drafter.get("head"):
                raise ValueError(f"the recipe {kind!r} trains no head; give others in heads=[...]")
            settings = recipes.settings_of(config, device)
            settings.pop("text")
            checkpoints.agree(folder, settings)
            if not (folder / "head" / "config.json").exists():
                recipes.train(config, folder, device)
            found.append(Trained(kind, seed, folder, config))
    return found


def chain_of(one: Trained, length: int) -> int | None:
    """The longest sampled chain up to `length` that a head drafts; None where it drafts none."""
    from specdec.plugins import arguments_of, find

    if "draw" not in (arguments_of(find("drafter", one.kind).make) or {}):
        return None
    head = one.made()
    guessed = (getattr(head, name, None) for name in ("block", "heads"))
    return min([length, *(each for each in guessed if isinstance(each, int))])


def calibration(one: Trained, target: Any, held_out: "Stream", temperature: float) -> float:
    """The error that the top of this page defines, in shares."""
    import torch

    from experiments.training.teacher import Teacher

    config, head = one.config, one.made().on(target.device, target.dtype)
    teacher = Teacher(target, head.taps_for(target), config.apart)
    lesson = teacher.on_the_fly(lambda step: held_out.windows(config.drafter.context, 8, 0, step))
    sure, right = [], []
    with torch.no_grad():
        for step in range(max(1, config.evaluate_windows // 32)):
            taught = lesson(step)
            documents = teacher.documents(taught.ids)
            for guess in head.guesses(taught.ids, taught.taps, target):
                counts = guess.counts(documents)
                p = teacher.law(guess.truth(taught.last)[counts], temperature)
                share, token = (guess.logits[counts].float() / temperature).softmax(-1).max(-1)
                if head.token_ids is not None:
                    token = head.token_ids[token]
                sure.append(share)
                right.append(p.gather(-1, token[:, None])[:, 0])
    return binned_error(torch.cat(sure), torch.cat(right))


def binned_error(sure: Any, right: Any, bins: int = 10) -> float:
    """Expected calibration error of probabilities `sure` (n,) that came true with `right` (n,)."""
    import torch

    place = (sure * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, dtype=torch.float64)
    gap = (sure - right).double()
    return float(sums.index_add(0, place, gap).abs().sum() / len(sure))


def compared(
    bench: "Bench", heads: list[Trained], temperature: float, wanted: Budget
) -> "Compared":
    """Every head's tree and chain, and plain decoding, in turn."""
    ways: dict[str, Any] = {"none": bench.ours(bench.target, temperature, {"name": "none"})}
    for one in heads:
        for shape, length in (("tree", None), ("chain", chain_of(one, wanted.length))):
            if shape == "tree" or length is not None:
                name = way_of(one.kind, one.seed, shape)
                ways[name] = bench.ours(bench.target, temperature, one.drafter(length))
    return bench.compare(f"T = {temperature:g}", ways)


def way_of(kind: str, seed: int, shape: str) -> str:
    return f"{kind}, {shape}, seed {seed}"


def rows_of(
    found: "Compared", heads: list[Trained], temperature: float, errors: list[float]
) -> list[dict[str, str]]:
    """One per head and shape, its seeds pooled. errors: of calibration, one per head and seed."""
    from statistics import mean

    from experiments.measuring.intervals import median_interval, pooled_interval

    rows = []
    for kind in dict.fromkeys(one.kind for one in heads):
        own = [one for one in heads if one.kind == kind]
        error = mean(value for one, value in zip(heads, errors, strict=True) if one.kind == kind)
        made = [one.made() for one in own]
        size = sum(weight.numel() for weight in made[0].parameters())
        steps = [head.notes["training"]["last_step"] for head in made]
        for shape in ("tree", "chain"):
            names = [way_of(kind, one.seed, shape) for one in own]
            if names[0] not in found.ways:
                continue
            kept = [found.kept(name) for name in names]
            tau = pooled_interval(
                [value for each, _ in kept for value in each],
                [value for _, each in kept for value in each],
            )
            ratios = [r for name in names for r in found.ratio(name, "none").per_batch]
            drafting = [found.drafting(name) for name in names]
            rows.append(
                {
                    "head": f"{kind}, {shape}",
                    "T": f"{temperature:g}",
                    "tau": tau.text(),
                    "tau of each seed": ", ".join(
                        f"{found.tau(name).median:.2f}" for name in names
                    ),
                    "against none": median_interval(ratios).text(unit="x"),
                    "drafting a round": f"{1e3 * mean(drafting):.2f} ms",
                    "calibration error": f"{error:.3f}",
                    "parameters": f"{size / 1e6:.2f} M",
                    "steps": ", ".join(map(str, steps)),
                }
            )
    return rows


def main(wanted: Budget) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench
    from experiments.training.recipes import text

    heads = train(wanted)
    bench = Bench(wanted)
    _, _, held_out = text(heads[0].config, bench.target.tokenizer)
    titled = {f"T = {each:g}": compared(bench, heads, each, wanted) for each in wanted.temperatures}
    rows: list[dict[str, str]] = []
    for temperature, found in zip(wanted.temperatures, titled.values(), strict=True):
        errors = [calibration(one, bench.target, held_out, temperature) for one in heads]
        rows += rows_of(found, heads, temperature, errors)
    bench.publish("heads_budget", [pd.DataFrame(rows)], titled, training=asdict(wanted))


if __name__ == "__main__":
    start(main, Budget)
