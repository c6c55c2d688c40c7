"""What holds for every test: one thread, and property tests that are the same every time and never
timed. And a run's target, small enough to be made here."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

from experiments import run
from specdec import registry
from specdec.interfaces import KV
from specdec.models.language_model import TransformersLM

os.environ.pop("SPECDEC_ALLOW", None)  # other packages of this machine are no part of these tests,
registry.announced = tuple  # nor are those that are installed
torch.set_num_threads(1)
settings.register_profile("specdec", deadline=None, derandomize=True, max_examples=60)
# for `python -m tests.mutate`, to which the first example that fails is as good as the smallest
settings.register_profile(
    "first", settings.get_profile("specdec"), phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("specdec")

TEXT = (
    "def read ( path ) : return open ( path ) . read ( ) "
    "class Stack : def push ( self , item ) : pass"
)
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random Llama of two layers with a word tokenizer, as save_pretrained leaves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: number for number, word in enumerate(["<end>", *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        eos_token_id=None,
        bos_token_id=None,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    lines = [
        {"prompt": " ".join(WORDS[first : first + 8]), "category": kind}
        for kind, first in (("code", 0), ("code", 4), ("prose", 8), ("prose", 12))
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


QUIET = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]


@pytest.fixture(scope="session")
def usual(tiny):
    """Overrides of every run: the tiny target and its prompts, and few tokens."""
    return [
        "target=model",
        f"target.name={tiny}",
        "prompts=jsonl",
        f"prompts.path={tiny}/prompts.jsonl",
        "max_new_tokens=12",
        "progress=false",
    ]


@pytest.fixture
def command(usual, tmp_path, monkeypatch):
    """`command("drafter=ngram", ...)`: python -m experiments.run in a folder of its own, on the
    tiny target."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers = list(logging.getLogger().handlers)

    def call(*overrides: str) -> Path:
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "run",
                *[o for o in overrides if o == "-m"],
                *usual,
                *QUIET,
                *[o for o in overrides if o != "-m"],
            ],
        )
        run.program()
        return tmp_path

    yield call
    logging.getLogger().handlers = handlers


@pytest.fixture
def paged(monkeypatch):
    """Every transformers model keeps its keys and values in pages, unless it is asked otherwise."""
    monkeypatch.setattr(TransformersLM, "kv", property(lambda self: KV("paged", page=4)))


@pytest.fixture(params=["contiguous", pytest.param("paged", marks=pytest.mark.slow)])
def layout(request):
    """Of every session's memory. Tests of what does not depend on it run over both."""
    if request.param == "paged":
        request.getfixturevalue("paged")
