"""The shared frame of a run, as types: a misspelt key or a wrong type is refused when the configuration is composed.

Plug-in groups (drafter, verifier) are plain YAML: `_target_` and constructor arguments.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from experiments import search_path


@dataclass
class Target:
    """What `specdec.load` takes."""

    name: str = MISSING  # "demo", a local folder or a hub id
    device: str | None = None  # CUDA where there is one
    dtype: str | None = None  # that of the checkpoint
    revision: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    extra_layers: int = 0


@dataclass
class Sampling:
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0


@dataclass
class Prompts:
    format: str = MISSING  # jsonl | text | folder | datasets
    path: str = MISSING  # "demo" for the bundled ones
    field: str | None = None  # where the text or the turns stand; null finds turns, prompt or question
    category: str | None = "category"  # where an entry's category stands, if anywhere
    chat: bool | None = None  # through the tokenizer's chat template; null: where it has one
    subset: str | None = None  # of a data set
    split: str | None = None  # of a data set; null: test
    limit: int | None = None  # that many, taken in turn from each category
    seed: int | None = None  # shuffle before the limit; null keeps the file's order
    tokens: int | None = None  # cut or fill each prompt up to so many (by the source's other texts, put before it)
    too_long: str = "refuse"  # | skip: prompts that do not fit the target's context are left out, counted and told


@dataclass
class Assisted:
    """transformers' assisted generation, the baseline `assisted`."""

    model: str | None = None  # the draft model; null takes the drafter's own `model`
    num_assistant_tokens: int = 5  # per round, a constant schedule
    confidence: float | None = None  # drafting stops below it; null leaves transformers' default, 0 never stops


@dataclass
class PromptLookup:
    """transformers' prompt lookup, the baseline `prompt_lookup`."""

    max_ngram: int = 3
    length: int = 10


@dataclass
class Logger:
    """logger=wandb: results go to Weights & Biases too (pip install 'specdec[wandb]'). WANDB_MODE=offline keeps them on disk."""

    project: str = "specdec"
    entity: str | None = None  # null: wandb's default, your own


@dataclass
class Run:
    study: str = "default"  # the folder that results of one question share
    seed: int = 0
    max_new_tokens: int = 128
    batch_size: int = 1
    ignore_eos: bool = False
    allow_lossy: bool = False
    baselines: list[str] = field(default_factory=lambda: ["none"])  # none | transformers | assisted | prompt_lookup
    noise: bool = True  # decode the first baseline twice: how far a ratio strays on this machine with nothing changed
    resume: bool = False  # go on in the study's latest sweep: jobs that have a result are left alone
    warmup: int = 1  # batches that every way decodes first, unrecorded
    threads: int | None = None  # of torch; null leaves its default
    progress: bool = True
    label: str | None = None  # how tables and figures call the method; null: the drafter's name and settings
    target: Target = MISSING
    drafter: dict[str, Any] = MISSING
    verifier: dict[str, Any] = MISSING
    sampling: Sampling = field(default_factory=Sampling)
    prompts: Prompts = MISSING
    assisted: Assisted = field(default_factory=Assisted)
    prompt_lookup: PromptLookup = field(default_factory=PromptLookup)
    logger: Logger | None = None


def register() -> None:
    """Make known to Hydra: the frame, the first entry of conf/run.yaml's defaults list; the group
    `logger`, which training has too; and the options of other packages."""
    search_path.register()
    store = ConfigStore.instance().store
    store(name="schema", node=Run)
    store(group="logger", name="none", node={"logger": None}, package="_global_")
    store(group="logger", name="wandb", node=Logger)
