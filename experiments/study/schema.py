"""The frame of a run, as types. A misspelt key or a wrong type is refused when the configuration is
composed; an impossible value is refused before anything runs.

Plug-in groups (drafter, verifier) are plain YAML: `_target_` and constructor arguments.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.system.libraries import check_threads
from experiments.terminal import search_path
from experiments.terminal.program import register_help
from specdec.registry import read_file

GROUPS = (
    "target",
    "drafter",
    "verifier",
    "sampling",
    "prompts",
    "method",
    "recipe",
    "experiment",
    "debug",
    "launcher",
    "logger",
)
TUNED = "tuned.yaml"
BASELINES = ("none", "transformers", "assisted", "prompt_lookup")


@dataclass
class Target:
    """What `specdec.load` takes."""

    name: str = MISSING  # "demo", a local folder or a hub id
    device: str | None = None  # cpu, cuda, cuda:1 ...; null: CUDA if there is one
    dtype: str | None = None  # float32, bfloat16 ...; null: the checkpoint's
    revision: str | None = None  # of a hub id: a branch, a tag or a commit
    attn_implementation: str | None = None  # of transformers: sdpa | eager; null: chosen
    trust_remote_code: bool = False  # run code that a hub repository brings
    context: int | None = None  # more positions than it was trained for, by YaRN
    # layers added that change no logit: the cost of a deeper model
    extra_layers: int = 0
    # true | false | require: an error if passes cannot be compiled; null: false
    compile: Any = None
    # int8 | int4: pack the linear layers (torchao); null: the weights as they are
    quantize: str | None = None
    # auto: the processes that torchrun starts hold it between them; null: this one has all of it
    tp_plan: str | None = None


@dataclass
class Sampling:
    temperature: float = 0.0  # 0 is greedy
    top_k: int | None = None  # keep the k most probable tokens; null: all
    # keep the smallest set of tokens that has this probability; null: all
    top_p: float | None = None
    # drop tokens below this share of the most probable one's probability; null: none
    min_p: float | None = None
    repetition_penalty: float = 1.0  # divides the logits of tokens in the text; 1: off


@dataclass
class Prompts:
    format: str = MISSING  # jsonl | text | folder | datasets | deepspec | speed_bench
    path: str = MISSING  # "demo" for the bundled ones
    # the key of the text or the turns; null finds turns, prompt or question
    field: str | None = None
    category: str | None = "category"  # the key of an entry's category, if it has one
    chat: bool | None = None  # through the tokenizer's chat template; null: where it has one
    thinking: bool | None = None  # for chat templates with enable_thinking; null: as they have it
    subset: str | None = None  # of a data set, or of the files of a benchmark
    split: str | None = None  # of a data set; null: test
    limit: int | None = None  # that many, taken in turn from each category
    seed: int | None = None  # shuffle before the limit; null keeps the file's order
    # cut or fill each prompt up to so many (by the source's other texts, put before it)
    tokens: int | None = None
    # refuse | skip: prompts that do not fit the target's context are left out, counted, reported
    too_long: str = "refuse"

    @property
    def source(self) -> dict[str, Any]:
        """What `experiments.prompts.read` takes."""
        return {
            name: value for name, value in vars(self).items() if name not in ("chat", "too_long")
        }


@dataclass
class Assisted:
    """transformers' assisted generation, the baseline `assisted`."""

    model: str | None = None  # the draft model; null takes the drafter's own `model`
    num_assistant_tokens: int = 5  # per round, a constant schedule
    # drafting stops below it; null leaves transformers' default, 0 never stops
    confidence: float | None = None


@dataclass
class PromptLookup:
    """transformers' prompt lookup, the baseline `prompt_lookup`."""

    max_ngram: int = 3  # longest n-gram that is looked up
    length: int = 10  # tokens drafted per round


@dataclass
class Logger:
    """logger=wandb: results go to Weights & Biases too (pip install 'specdec[wandb]').
    WANDB_MODE=offline keeps them on disk."""

    project: str = "specdec"  # of Weights & Biases
    entity: str | None = None  # null: wandb's default, your own


@dataclass
class Settings:
    """What a run does. Raises ValueError for values that cannot be."""

    study: str = "default"  # the folder that results of one question share
    seed: int = 0  # of all random draws
    max_new_tokens: int = 128  # that each prompt may add
    batch_size: int = 1  # prompts of one call
    # of those, how many decode side by side: the next takes the seat of one that ends; null: all
    seats: int | None = None
    # so many jobs decode the prompts, each its share of the batches; their results come back as one
    shards: int = 1
    # which of them this job is, from 0; the command that says shards=N adds it
    shard: int | None = None
    ignore_eos: bool = False  # decode on after an end-of-sequence token
    allow_lossy: bool = False  # permit rules that do not keep the target's law
    # leave the drafter out of rounds where it makes decoding slower: true | false | {slack: 0.02,
    # debt: 0.2}; null: as the drafter wants it
    no_harm: Any = None
    # what the method is compared with: none | transformers | assisted | prompt_lookup
    baselines: list[str] = field(default_factory=lambda: ["none"])
    # decode the first baseline twice: how far a ratio varies on this machine with nothing changed
    noise: bool = True
    warmup: int = 1  # batches that every way decodes first, unrecorded
    threads: int | None = None  # of torch; null: as many as make the target fastest
    progress: bool = True  # show a progress bar
    # how tables and figures call the method; null: the drafter's name and settings
    label: str | None = None
    target: Target = MISSING
    drafter: dict[str, Any] = MISSING
    verifier: dict[str, Any] = MISSING
    sampling: Sampling = field(default_factory=Sampling)
    prompts: Prompts = MISSING
    assisted: Assisted = field(default_factory=Assisted)
    prompt_lookup: PromptLookup = field(default_factory=PromptLookup)
    logger: Logger | None = None

    def __post_init__(self) -> None:
        check_study(self.study)
        check_threads(self.threads)
        for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("warmup", 0), ("shards", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if self.seats is not None and not 1 <= self.seats <= self.batch_size:
            raise ValueError(
                f"seats must be from 1 to batch_size={self.batch_size}, or null for as many, got "
                f"{self.seats}"
            )
        if self.shard is not None and not 0 <= self.shard < self.shards:
            raise ValueError(
                f"shard={self.shard} must be one of shards={self.shards}, from 0; the command that "
                "says shards=N adds it by itself"
            )
        unknown = [name for name in self.baselines if name not in BASELINES]
        if unknown:
            raise ValueError(f"unknown baseline {unknown[0]!r}; there are: {', '.join(BASELINES)}")
        alone = [name for name in self.baselines if name in ("assisted", "prompt_lookup")]
        if alone and self.batch_size > 1:
            raise ValueError(
                f"transformers' {alone[0]} takes one prompt at a time; set batch_size=1 or leave "
                "the baseline out"
            )


@dataclass
class Command(Settings):
    """Settings, and how the command runs them. Only what is in `Settings` becomes part of a
    result."""

    resume: bool | str = (
        # true: go on in the study's latest sweep; a folder: in that one. Finished jobs are left
        # alone
        False
    )
    keep_texts: bool = False  # write what the method put out, tokens and texts (outputs.jsonl)


def settings_of(config: DictConfig) -> Settings:
    """A composed configuration as values. Raises ValueError for what cannot be."""
    plain = OmegaConf.masked_copy(config, [name.name for name in fields(Settings)])
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), plain))
    assert isinstance(found, Settings)
    return found


def check_study(name: str) -> None:
    """A study's name is that of its folder, and is printed in pages and commands."""
    if not re.fullmatch(r"[\w+-][\w.+-]*", name):
        raise ValueError(
            f"study={name!r} is no name for a folder: use letters, digits, '_', '-', '+' and '.'"
        )


def register() -> None:
    """Make known to Hydra: the frame, the first entry of conf/run.yaml's defaults list; the group
    `logger`, which training has too; the options of other packages; and, as `drafter=tuned`, the
    file of that name in the working folder, which `python -m experiments.tune` writes."""
    search_path.register()
    store = ConfigStore.instance().store
    store(name="schema", node=Command)
    store(group="logger", name="none", node={"logger": None}, package="_global_")
    store(group="logger", name="wandb", node=Logger)
    with suppress(ValueError):  # without it, Hydra says that there is no such option
        store(group="drafter", name="tuned", node=dict(read_file("drafter", TUNED)))
    register_help("run", GROUPS)
