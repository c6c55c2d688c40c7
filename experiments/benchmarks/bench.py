"""Many ways over the same prompts, decoded in turn as the runs of studies are, and set against one
another."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import median
from typing import Any

import pandas as pd

import specdec
from experiments import prompts
from experiments.benchmarks.options import Options
from experiments.measuring import lineup, measures
from experiments.measuring.intervals import pooled_interval, pooled_ratio_interval
from experiments.measuring.play import Play, Played
from experiments.measuring.rounds import rounds
from experiments.measuring.ways import Ours, Way, load
from experiments.study.outcome import Interval, OurResult, Speedup, WayResult
from experiments.study.schema import Target
from experiments.system.files import new_folder, write_json, write_text
from experiments.system.libraries import quiet_transformers, set_threads
from experiments.system.surroundings import surroundings
from experiments.terminal.progress import bar
from experiments.terminal.tables import markdown
from specdec.measuring.clock import PHASES
from specdec.measuring.report import Report


@dataclass(frozen=True)
class Compared:
    """What came of it. `ways`: what a study's result holds of each."""

    ways: Mapping[str, WayResult]
    rounds: pd.DataFrame  # as in rounds.parquet

    def ours(self, name: str) -> OurResult:
        found = self.ways[name]
        assert isinstance(found, OurResult)
        return found

    def ratio(self, way: str, baseline: str) -> Speedup:
        return measures.speedup(self.ways[way], self.ways[baseline])

    def times(self, way: str, baseline: str) -> str:
        return self.ratio(way, baseline).text(unit="x")

    def tau(self, name: str, prompts: Collection[int] | None = None) -> Interval:
        """With its interval over prompts: those of these numbers, or all."""
        kept, rounds = self.kept(name, prompts)
        return pooled_interval(kept, rounds)

    def tau_ratio(self, one: str, other: str, prompts: Collection[int] | None = None) -> Interval:
        """tau of one way / tau of another, with its interval over prompts, which are paired."""
        return pooled_ratio_interval(*self.kept(one, prompts), *self.kept(other, prompts))

    def kept(
        self, name: str, prompts: Collection[int] | None = None
    ) -> tuple[list[float], list[float]]:
        """Tokens that were kept, and rounds, of each prompt."""
        entries = [
            each for each in self.ours(name).per_prompt if prompts is None or each.prompt in prompts
        ]
        return [each.tau * each.rounds for each in entries], [each.rounds for each in entries]

    def drafting(self, name: str) -> float:
        """Seconds of drafting in a round, the mean."""
        one = self.ours(name)
        return one.seconds["draft"] / max(1, one.rounds)

    def rate(self, name: str) -> float:
        """Tokens per second of decoding over all prompts, prefills left out."""
        rounds = self.rounds[self.rounds["way"] == name]
        seconds = rounds.drop_duplicates(["prompt", "turn", "batch", "round"])[
            [f"{phase}_seconds" for phase in PHASES]
        ]
        return float(rounds["kept"].sum() / seconds.to_numpy().sum())

    def outside(self, name: str) -> float:
        """The share of decoding outside the models' forward calls, the median over prompts."""
        return median(entry.outside_models for entry in self.ours(name).per_prompt)

    def best(self, kinds: Sequence[str], baseline: str) -> str:
        """The fastest of the ways whose names begin with one of `kinds`."""
        names = [name for name in self.ways if name.startswith(tuple(kinds))]
        return max(names, key=lambda name: self.ratio(name, baseline).median)


class Bench:
    def __init__(self, wanted: Options) -> None:
        quiet_transformers()
        set_threads(wanted.threads)
        self.wanted, self.began = wanted, time.perf_counter()
        set_threads(wanted.threads, self.target)
        self.prompts = prompts.read(
            "jsonl", wanted.prompts, category="category", limit=wanted.limit
        )

    @cached_property
    def target(self) -> specdec.TransformersLM:
        return load(self.wanted.target, dtype=self.wanted.dtype)

    @cached_property
    def deep(self) -> specdec.TransformersLM:
        return load(
            self.wanted.target, dtype=self.wanted.dtype, extra_layers=self.wanted.extra_layers
        )

    def compiled(self, target: specdec.TransformersLM) -> specdec.TransformersLM:
        """The same weights, with compiled passes."""
        model, tokenizer, extra = target.model, target.tokenizer, target.extra_layers
        return specdec.TransformersLM(model, tokenizer, target.name, extra, compile=True)

    def one(self, way: Ours) -> Report:
        """The first prompt, decoded on its own."""
        play = Play(self.prompts[:1], way.target, False, 1, self.wanted.max_new_tokens)
        report = way(*play.first(), self.wanted.max_new_tokens).report
        assert report is not None
        return report

    def draft(self, name: str) -> specdec.TransformersLM:
        return lineup.draft_model(name, Target(self.wanted.target, dtype=self.wanted.dtype))

    def ours(
        self,
        target: specdec.TransformersLM,
        temperature: float,
        drafter: Mapping[str, Any],
        **more: Any,
    ) -> Ours:
        """`drafter`: {"name": ..., arguments}; `more`: other options of specdec.generate."""
        made = lineup.make_drafter(drafter, Target(self.wanted.target, dtype=self.wanted.dtype))
        return Ours(target, made, {"temperature": temperature, "seed": self.wanted.seed, **more})

    def compare(
        self,
        title: str,
        ways: dict[str, Way],
        limit: int | None = None,
        batch: int = 1,
        warmup: int = 1,
        given: Sequence[prompts.Prompt] | None = None,
        forget: bool = True,
    ) -> Compared:
        """given: other prompts than the benchmark's own. forget: drafters begin without what they
        learnt before."""
        target = next(iter(ways.values())).target
        chosen = (self.prompts if given is None else given)[:limit]
        play = Play(chosen, target, False, batch, self.wanted.max_new_tokens)
        played: list[Played] = []
        with bar(title, play.turns) as advance:
            for one in play(ways, warmup, forget):
                played.append(one)
                advance()
        return Compared(
            measures.way_results(played, ways), rounds("benchmark", title, title, played)
        )

    def publish(
        self,
        program: str,
        tables: Sequence[pd.DataFrame],
        found: Mapping[str, Compared],
        **more: Any,
    ) -> None:
        """Print the tables with a line on how they were measured; write both, what they were made
        from (`found`, by title) and `more` to a new folder."""
        wanted, where = self.wanted, surroundings()
        minutes = (time.perf_counter() - self.began) / 60
        distinct = ", ".join(
            f"{each.ways['none'].distinct_4grams or 0:.0%} at {title}"
            for title, each in found.items()
        )
        deep = (
            f" ({min(wanted.deep_limit, len(self.prompts))} on the deepened target)"
            if wanted.deep_limit
            else ""
        )
        measured = max(len(each.ways["none"].per_prompt) for each in found.values())
        note = (
            f"Medians over {measured} prompts{deep} with 95% bootstrap intervals of "
            f"paired ratios, {wanted.dtype}, batch 1, {wanted.max_new_tokens} new tokens, "
            f"{where.threads} threads, {where.machine.processor}. Distinct 4-grams of plain "
            f"decoding: {distinct}. `python -m experiments.{program}`, {minutes:.0f} minutes."
        )
        text = "\n".join([*map(markdown, tables), note]) + "\n"
        print(text)
        folder = new_folder(wanted.output)
        write_text(folder / "table.md", text)
        made_from = {
            "tables": [table.to_dict("records") for table in tables],
            "ways": {
                title: {name: asdict(way) for name, way in each.ways.items()}
                for title, each in found.items()
            },
        }
        write_json(
            folder / "benchmark.json",
            {"config": vars(wanted), **asdict(where), **made_from, **more},
        )
