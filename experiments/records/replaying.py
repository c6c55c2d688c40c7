"""A record, a shape and a rule -> one setting's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.records import folder as files
from experiments.records import starts
from experiments.records.costs import Costs
from experiments.records.estimate import Taken, Way
from experiments.records.folder import Batch, Text
from experiments.records.laws import Cut
from experiments.records.rounds import PLAIN, Judge, Shaped, rule_of
from experiments.records.shapes import WideTrees, asked, described, frame_of, restored
from experiments.study.outcome import Interval
from specdec import Verifier
from specdec.drafting.shape import Shape
from specdec.pairing import name_of
from specdec.tree import SiblingLaw

KEPT_IN_MEMORY = 1 << 31  # bytes of a record that stays there for the next setting


@dataclass(frozen=True, eq=False)
class Replayed:
    """A setting over all texts of a record."""

    folder: Path
    facts: Mapping[str, Any]  # record.json
    shape: Shape
    rule: Verifier
    way: Way
    texts: list[Text]
    taken: Taken  # the cut-off mass of p under that of q
    beside: Taken | None  # beside it; None where nothing is cut off, or the rule does not look
    costs: Costs | None

    @property
    def tau(self) -> Interval:
        return self.taken.tau

    @property
    def cut_off_bound(self) -> tuple[float, float]:
        """tau for the two ways in which the cut-off mass may lie."""
        here = self.tau.median
        other = here if self.beside is None else self.beside.tau.median
        return min(here, other), max(here, other)

    @property
    def speedup(self) -> float | None:
        """Predicted, over plain decoding."""
        if self.costs is None:
            return None
        return self.costs.speedup(
            self.tau.median, self.taken.nodes_per_round, self.taken.depth_per_round
        )

    def line(self) -> dict[str, Any]:
        """What is printed."""
        tau, (low, high) = self.tau, self.cut_off_bound
        found = {
            "record": str(self.folder),
            "drafter": self.facts["drafter"],
            **{name: value for name, value in described(self.shape).items() if value is not None},
            "verifier": name_of(self.rule),
            "temperature": self.facts["temperature"],
            "tau": tau.median,
            "low": tau.low,
            "high": tau.high,
            "rounds": self.taken.rounds,
            "way": str(self.way),
            "texts": tau.n,
            "cut_off_mass": self.taken.cut_off_mass,
            "cut_off_low": low,
            "cut_off_high": high,
            "nodes_per_round": self.taken.nodes_per_round,
            "acceptance": [
                {"depth": depth, "rank": rank, **counts}
                for (depth, rank), counts in self.taken.acceptance.items()
            ],
        }
        return found if self.speedup is None else {**found, "speedup": self.speedup}


@lru_cache(1)
def batches_of(folder: Path, count: int) -> list[Batch]:
    return list(files.batches(folder, count))


def replay(
    place: str,
    name: str | None,
    shape: Mapping[str, Any],
    verifier: str | Mapping[str, Any],
    costs: Costs | None = None,
    temperature: float | None = None,
    seed: int = 0,
) -> Replayed:
    """seed: of the rule's coins. Raises ValueError for what is no whole record, for shapes that are
    not nested in it and rules that are not exact for them."""
    folder = files.find(place, name)
    facts = files.read_settings(folder)
    recorded = facts["temperature"]
    if temperature is not None and temperature != recorded:
        raise ValueError(
            f"{folder} was recorded at temperature {recorded:g}, and laws of another one do not "
            f"follow from it; record with sampling.temperature={temperature:g}"
        )
    greedy, whole = recorded == 0, restored(facts["shape"])
    wanted = asked(shape, whole, greedy)
    law = wanted.law(greedy)
    drafter = Shaped(facts["drafter"], wanted, greedy, law)
    rule = rule_of(verifier, drafter, recorded, facts["vocabulary"])
    way = way_of(wanted, law, rule, facts["settings"].get("every", 1))
    certain = way is Way.JUMPING
    cuts = [Cut.UNDER] if certain or name_of(rule) in PLAIN else [*Cut]
    taken = {cut: Taken() for cut in cuts}
    count, texts = facts["batches"], list[Text]()
    small = facts["bytes"] <= KEPT_IN_MEMORY
    for batch in batches_of(folder, count) if small else files.batches(folder, count):
        trees = WideTrees.of(batch.nodes, whole)
        tokens = [text.tokens for text in batch.texts]
        if certain:
            trees = starts.following_only(trees, tokens)
        selected = trees.select(wanted)
        texts += batch.texts
        for cut in cuts:
            judge = Judge(rule, law, certain, seed, cut)
            judged, weight = judge(batch, trees, selected), None
            if way is Way.WEIGHING:
                usual = 1 / (1 + judged.accepted.mean())
                frame = frame_of(wanted)
                weight = starts.Conditional(batch, trees, frame, law, judge).starts(usual)
            taken[cut].add(judged, [len(each) for each in tokens], weight)
    both = taken[Cut.UNDER], taken.get(Cut.BESIDE)
    return Replayed(folder, facts, wanted, rule, way, texts, *both, costs)


def way_of(shape: Shape, law: SiblingLaw, rule: Verifier, every: int) -> Way:
    """How rounds become a run. With p certain of the recorded text, any lossless rule accepts the
    longest path of a deterministic tree that the text goes on with."""
    if every > 1:
        return Way.JUMPING if law is SiblingLaw.DET or name_of(rule) in PLAIN else Way.AS_IS
    if law is SiblingLaw.DET or name_of(rule) in PLAIN:
        return Way.JUMPING
    return Way.AS_IS if shape.by_value else Way.WEIGHING
