"""Decode prompts and keep a wide drafted tree at every position of the output, with p and q at its
nodes (conf/record.yaml). `experiments.replay` then measures smaller shapes under any rule, without
a model.

python -m experiments.record output=FOLDER drafter.depth=5 drafter.branching=[4,3,2,1,1]
    sampling=warm prompts.limit=16 max_new_tokens=128
python -m experiments.record -m output=FOLDER drafter=small_model,eagle    a record of each drafter

The text is that of plain decoding. The size that the record may take is told first. A record is
written batch by batch; after Ctrl-C or a kill the same command goes on (docs/replay_trees.md).
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.study.schema import Prompts, Sampling, Target
from experiments.terminal import search_path
from experiments.terminal.program import register_help, start


@dataclass
class Record:
    output: str = MISSING  # a folder; each drafter's record is a folder of its own in it
    name: str | None = None  # of that folder; null: the drafter's
    every: int = 1  # 1: a tree at every position; k: at every k-th
    top: int = 128  # tokens of p and q that are kept at a node
    seed: int = 0
    max_new_tokens: int = 128
    batch_size: int = 8  # prompts that decode side by side; a batch is written when it is done
    ignore_eos: bool = False  # decode on after an end-of-sequence token
    threads: int | None = None  # of torch; null: as many as are fastest
    progress: bool = True
    target: Target = MISSING
    drafter: dict[str, Any] = MISSING
    sampling: Sampling = field(default_factory=Sampling)
    prompts: Prompts = MISSING


ConfigStore.instance().store(name="record_schema", node=Record)
register_help("record", ("target", "drafter", "sampling", "prompts"), __doc__)
search_path.register()
# What decides what is recorded, and so must be the same when a recording goes on.
SETTINGS = (
    "every",
    "top",
    "seed",
    "max_new_tokens",
    "batch_size",
    "ignore_eos",
    "target",
    "drafter",
    "sampling",
    "prompts",
)


@hydra.main(version_base="1.3", config_path="../conf", config_name="record")
def main(config: DictConfig) -> None:
    choices = HydraConfig.get().runtime.choices
    search_path.check(choices)
    wanted = OmegaConf.to_object(config)
    assert isinstance(wanted, Record)
    name = wanted.name or str(choices["drafter"])
    print(record(wanted, Path(wanted.output).expanduser() / name))


def record(wanted: Record, folder: Path) -> str:
    """Write a record into `folder`, or go on with it. Returns a line that says what it holds.
    Raises ValueError for settings that cannot be, before anything is decoded."""
    from experiments import prompts
    from experiments.measuring import lineup
    from experiments.measuring.play import Play
    from experiments.measuring.ways import load
    from experiments.records import folder as files
    from experiments.records.recording import Recording, most_bytes
    from experiments.records.recording import record as recorded
    from experiments.records.shapes import described
    from experiments.records.wide import Wide
    from experiments.system.libraries import quiet_transformers, set_threads
    from experiments.system.surroundings import surroundings
    from experiments.terminal.progress import bar
    from specdec.measuring.report import distinct_ngrams
    from specdec.models.vocabulary import tokenizer_digest

    for what in ("every", "top", "max_new_tokens", "batch_size"):
        if getattr(wanted, what) < 1:
            raise ValueError(f"{what} must be >= 1, got {getattr(wanted, what)}")
    if wanted.sampling.repetition_penalty != 1:
        raise ValueError("a record holds laws without repetition_penalty; set it to 1")
    quiet_transformers()
    set_threads(wanted.threads)
    found = prompts.read(**wanted.prompts.source)
    target = load(**asdict(wanted.target))
    set_threads(wanted.threads, target)
    drafter = Wide(lineup.make_drafter(wanted.drafter, wanted.target), wanted.every)
    play = Play(
        found,
        target,
        wanted.prompts.chat,
        wanted.batch_size,
        wanted.max_new_tokens,
        wanted.prompts.too_long,
    )
    shape, greedy = drafter.inner.shape, wanted.sampling.temperature == 0
    texts = sum(len(prompt.turns) for batch in play.batches for prompt in batch)
    top = min(wanted.top, target.vocabulary)
    size = most_bytes(shape, texts, wanted.max_new_tokens, wanted.every, top, greedy)
    print(
        f"{folder}: at most {files.readable(size)} for {texts} texts of up to "
        f"{wanted.max_new_tokens} tokens, trees of up to {shape.max_nodes - 1} nodes",
        file=sys.stderr,
    )
    files.check_space(folder, size)
    settings = {name: _plain(getattr(wanted, name)) for name in SETTINGS}
    files.begin(folder, settings)
    options = {**asdict(wanted.sampling), "seed": wanted.seed, "ignore_eos": wanted.ignore_eos}
    way = Recording(target, drafter, options, wanted.top, folder)
    with bar(f"record {folder.name}", play.turns, wanted.progress) as advance:
        facts, recorded_texts = recorded(play, way, advance)
    files.finish(
        folder,
        {
            **facts,
            "drafter": drafter.yaml_name,
            "shape": described(shape),
            "temperature": wanted.sampling.temperature,
            "vocabulary": target.vocabulary,
            "tokenizer": tokenizer_digest(target),
            "distinct_4grams": distinct_ngrams([text.tokens for text in recorded_texts]),
            "surroundings": asdict(surroundings()),
        },
    )
    return (
        f"{folder}: {facts['trees']} trees of {facts['texts']} texts, {facts['nodes']} nodes, "
        f"{files.readable(facts['bytes'])}, {facts['seconds']:.0f} s"
    )


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def program() -> None:
    start(main, Record, lambda: "interrupted; the same command goes on where it stopped")


if __name__ == "__main__":
    program()
