"""What compiling gains: passes compiled and not, all ways interleaved prompt by prompt in one
process, ratios paired, medians over prompts.

    python -m experiments.benchmark_compiled
    python -m experiments.benchmark_compiled limit=2 deep_limit=0 lengths=[5]        a trial

    python -m experiments.benchmark_compiled limit=0 starts=true                     compiling alone

Both targets share one set of weights, and so do the draft models. Compiling happens in a warm-up,
and a line says how long it took. With starts=true the pair is compiled in two more processes: the
first finds an empty cache, the second what the first has left there.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Line, Options, line
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Bench, Compared


@dataclass
class Compiled(Options):
    """python -m experiments.benchmark_compiled: measure compiled passes against uncompiled ones and
    transformers' ways, print a table and write it to a folder."""

    draft: str = "demo-draft"
    lengths: list[int] = field(default_factory=lambda: [3, 4, 5, 6])  # of chains, theirs too
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.6])
    eagle: str | None = "demo-eagle"  # null leaves it out
    # levels and nodes of its ranked trees
    trees: list[list[int]] = field(default_factory=lambda: [[3, 7], [4, 7], [5, 15]])
    starts: bool = False  # compile in fresh processes too


def ways(bench: "Bench", target: Any, fast: Any, temperature: float, deep: bool) -> dict[str, Any]:
    """Ours, compiled and not, and transformers'."""
    from experiments.measuring.theirs import Theirs

    wanted, draft = bench.wanted, bench.draft(bench.wanted.draft)
    assert isinstance(wanted, Compiled)
    theirs = Theirs(target, {"temperature": temperature}, wanted.seed)
    found: dict[str, Any] = {} if deep else {"transformers": theirs}
    drafters = {"none": {"name": "none"}} | {
        f"chain {n}": {"name": "small_model", "model": draft, "depth": n} for n in wanted.lengths
    }
    if wanted.eagle and not deep:
        ranked = {"name": "eagle", "heads": wanted.eagle, "draw": "ranked"}
        drafters |= {f"eagle {d}/{n}": {**ranked, "depth": d, "nodes": n} for d, n in wanted.trees}
    for name, drafter in drafters.items():
        found[name] = bench.ours(target, temperature, drafter)
        found[f"compiled {name}"] = bench.ours(fast, temperature, drafter)
    for n in () if deep else wanted.lengths:
        found[f"assisted {n}"] = replace(theirs, draft=draft, num_assistant_tokens=n)
    return found


def lines(title: str, found: "Compared") -> list[Line]:
    """What the ways of one temperature say."""
    chain, plain = found.best(["compiled chain"], "none"), found.best(["chain"], "none")
    told = [
        line(f"{title}: `none`, compiled against not", found.times("compiled none", "none")),
        line(
            f"{title}: `small_model`, compiled against not, each at its best length",
            found.times(chain, plain),
            f"{chain} (tau {found.ours(chain).tau:.2f}), {plain} (tau {found.ours(plain).tau:.2f})",
        ),
        line(
            f"{title}: `small_model` against `none`, compiled", found.times(chain, "compiled none")
        ),
    ]
    if "transformers" in found.ways:
        assisted = found.best(["assisted"], "none")
        told += [
            line(
                f"{title}: `none` compiled against transformers `generate`",
                found.times("compiled none", "transformers"),
            ),
            line(
                f"{title}: `small_model` compiled against transformers `generate`",
                found.times(chain, "transformers"),
                chain,
            ),
            line(
                f"{title}: `small_model` compiled against assisted generation, each at its best "
                "length",
                found.times(chain, assisted),
                f"{chain}, {assisted}",
            ),
            line(
                f"{title}: outside the models' forward calls, compiled",
                f"{found.outside(chain):.1%}",
                f"{chain}; `none`: {found.outside('compiled none'):.1%}",
            ),
        ]
    if any(name.startswith("compiled eagle") for name in found.ways):
        eagle = found.best(["compiled eagle"], "none")
        told.append(
            line(
                f"{title}: `eagle`, ranked, compiled against `none` compiled, its best shape",
                found.times(eagle, "compiled none"),
                f"{eagle} (tau {found.ours(eagle).tau:.2f})",
            )
        )
    return told


def predicted(bench: "Bench", title: str, found: "Compared", fast: Any) -> Line:
    """The chain at its best length: measured speed-up against tau x t(1) / (t(nodes) + drafting),
    from compiled passes timed alone."""
    from statistics import median

    from experiments.measuring.forward_times import forward_times
    from experiments.measuring.intervals import median_interval
    from specdec import TransformersLM

    wanted = bench.wanted
    assert isinstance(wanted, Compiled)
    chain = found.best(["compiled chain"], "none")
    ours, plain = found.ours(chain).per_prompt, found.ours("compiled none").per_prompt
    length = int(chain.split()[-1])
    context = round(median(entry.prompt_tokens for entry in plain)) + wanted.max_new_tokens // 2
    small = bench.draft(wanted.draft)
    draft = forward_times(TransformersLM(small.model, name="draft", compile=True), context, [1])[1]
    target = forward_times(fast, context, [1, length + 1])
    seconds = target[length + 1] + length * draft
    ratios = [
        other.decoding / one.decoding / (one.tau * target[1] / seconds)
        for one, other in zip(ours, plain, strict=True)
    ]
    detail = (
        f"t(1) {1000 * target[1]:.2f} ms, t({length + 1}) {1000 * target[length + 1]:.2f} ms, "
        f"draft {1000 * draft:.2f} ms x {length}"
    )
    what = f"{title}: measured speed-up of {chain} / predicted from compiled passes timed alone"
    return line(what, str(median_interval(ratios)), detail)


def warm(bench: "Bench", found: dict[str, Any]) -> dict[str, float]:
    """Seconds of compiling, by way: one prompt decoded before anything is measured."""
    from experiments.measuring.ways import Ours

    return {
        name: bench.one(way).compile_seconds
        for name, way in found.items()
        if isinstance(way, Ours) and name.startswith("compiled")
    }


def started(wanted: Compiled) -> list[Line]:
    from experiments.benchmarks.starts import first_and_second

    if not wanted.starts:
        return []
    keys = ("target", "draft", "dtype", "max_new_tokens", "threads")
    return [first_and_second(**{key: getattr(wanted, key) for key in keys})]


def main(wanted: Compiled) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench
    from experiments.terminal.tables import markdown

    if not wanted.limit:
        print(markdown(pd.DataFrame(started(wanted))))
        return
    bench = Bench(wanted)
    found, told, spent = {}, [], {}
    for deep in (False, True) if wanted.deep_limit else (False,):
        target = bench.deep if deep else bench.target
        fast = bench.compiled(target)
        for temperature in wanted.temperatures:
            title = f"T = {temperature:g}"
            title = f"extra_layers={wanted.extra_layers}, {title}" if deep else title
            these = ways(bench, target, fast, temperature, deep)
            seconds = warm(bench, these)
            spent |= {f"{title}: {name}": took for name, took in seconds.items() if took}
            limit = wanted.deep_limit if deep else wanted.limit
            found[title] = bench.compare(title, these, limit)
            told += lines(title, found[title])
            if not deep and temperature == wanted.temperatures[0]:
                told.append(predicted(bench, title, found[title], fast))
    first = {name: took for name, took in spent.items() if "extra_layers" not in name}
    told.append(
        line(
            "compiling, the deepened target apart",
            f"{sum(first.values()):.0f} s",
            ", ".join(
                f"{name.partition('compiled ')[2]} {took:.0f} s" for name, took in first.items()
            ),
        )
    )
    told += started(wanted)
    bench.publish("benchmark_compiled", [pd.DataFrame(told)], found, compiling=spent)


if __name__ == "__main__":
    start(main, Compiled)
