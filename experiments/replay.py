"""Measure without a model, from what was recorded (conf/replay.yaml). What the folder holds decides
which of two things is replayed.

Trees, of `experiments.record`: a smaller shape under any rule.

python -m experiments.replay records=FOLDER drafter.depth=3 drafter.branching=[2,1,1] verifier=block
python -m experiments.replay -m records=FOLDER drafter.depth=1,2,3,4 verifier=naive,traversal

prints a line of JSON for each setting: tau, its 95% interval over texts (low, high), rounds,
cut_off_mass, and more (docs/replay_trees.md). With costs.nodes=[1,16] costs.target=[1,1.2]
costs.draft=0.3 also the predicted speed-up. `-m` also leaves a result for each setting, which
`experiments.collect study=replay` and `experiments.report study=replay` read.

Outputs, of runs with keep_texts=true: lookup drafters, by their names in conf/method/.

python -m experiments.replay records=multirun/first ngram_tree suffix suffix_store
python -m experiments.replay edits=specdec ngram_chain suffix      edits of files, no record
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.study.folder import FAILED, OUTPUTS
from experiments.study.schema import check_study
from experiments.system.files import write_json
from experiments.terminal import options, search_path
from experiments.terminal.program import JobError, register_help, start

if TYPE_CHECKING:  # --help does not need this module
    from experiments.records.replaying import Replayed


@dataclass
class Shape:
    """What is left out is as recorded."""

    name: str | None = None  # of the record, where the folder holds several
    depth: int | None = None  # levels
    branching: Any = None  # children per node, a number or a list by depth
    draw: str | None = None  # how siblings were drawn, or `sequoia`
    nodes: int | None = None  # of ranked and sequoia trees
    acceptance: Any = None  # of `sequoia`: of the first, second ... child
    tree: Any = None  # of static trees: nodes as paths of ranks


@dataclass
class CostTable:
    """For a predicted speed-up, in any unit."""

    nodes: list[int] = field(default_factory=list)  # of a pass of the target, the root included
    target: list[float] = field(default_factory=list)  # what each of these passes costs
    draft: float = 0.0  # what a level of drafting costs


@dataclass
class Replay:
    records: str = MISSING  # the folder of a record, or one with several records
    study: str = "replay"  # of a sweep's results
    temperature: float | None = None  # refused if it is not the recorded one
    seed: int = 0  # of the coins
    threads: int | None = None  # of torch; null leaves its default
    drafter: Shape = field(default_factory=Shape)
    verifier: dict[str, Any] = MISSING
    costs: CostTable = field(default_factory=CostTable)


ConfigStore.instance().store(name="replay_schema", node=Replay)
register_help("replay", ("verifier",), __doc__)
search_path.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="replay")
def main(config: DictConfig) -> None:
    job = HydraConfig.get()
    sweeping, folder = job.mode is RunMode.MULTIRUN, Path(job.runtime.output_dir)
    choices = dict(job.runtime.choices)
    try:
        search_path.check(choices)
        wanted = OmegaConf.to_object(config)
        assert isinstance(wanted, Replay)
        check_study(wanted.study)
        found = replayed(wanted)
        print(json.dumps(found.line()), flush=True)
        if sweeping:
            from experiments.records.results import write

            write(found, folder, wanted.study, str(job.job.num), list(job.overrides.task), choices)
    except Exception as error:
        if not sweeping:
            raise JobError from error
        failed.append(f"job {job.job.num} failed: {error}")
        print(failed[-1], file=sys.stderr)
        write_json(folder / FAILED, {"error": f"{type(error).__name__}: {error}"})


failed: list[str] = []  # of a sweep's jobs, which goes on


def replayed(wanted: Replay) -> "Replayed":
    from experiments.records import replaying
    from experiments.records.costs import Costs
    from experiments.system.libraries import set_threads

    set_threads(wanted.threads)
    shape = dict(vars(wanted.drafter))
    return replaying.replay(
        wanted.records,
        shape.pop("name"),
        shape,
        wanted.verifier,
        Costs.of(**vars(wanted.costs)),
        wanted.temperature,
        wanted.seed,
    )


def is_about_outputs(arguments: list[str]) -> bool:
    """Whether a command replays outputs: it names lookups or edits, or its folder holds outputs and
    no record of trees."""
    if {"-h", "--help"} & set(arguments):
        return False
    from experiments.records.folder import is_record

    given = dict(each.partition("=")[::2] for each in arguments if "=" in each)
    names = [each for each in arguments if "=" not in each and not each.startswith("-")]
    place = Path(given.get("records", "")).expanduser()
    trees = "records" in given and is_record(place)
    if trees and (names or "edits" in given):
        raise ValueError(
            f"{place} holds trees, and {' '.join(names) or 'edits'} is for recorded outputs; give "
            "drafter.depth, drafter.branching ... and verifier, or the folder of a run"
        )
    outputs = place.is_dir() and any(place.rglob(OUTPUTS))
    return bool(names) or "edits" in given or (not trees and "records" in given and outputs)


def program() -> None:
    from experiments.terminal.refusals import refusing

    with refusing():
        about_outputs = is_about_outputs(sys.argv[1:])
    if about_outputs:
        from experiments.records import lookups

        options.start(lookups.main, lookups.Replay)
        return
    if {"-m", "--multirun"} & set(sys.argv):
        first = next((n for n, each in enumerate(sys.argv) if n and "=" in each), len(sys.argv))
        sys.argv.insert(first, "hydra.output_subdir=.hydra")
    start(main, Replay)
    if failed:
        sys.exit(f"{len(failed)} of the sweep's jobs failed ({FAILED} in their folders says why)")


if __name__ == "__main__":
    program()
