"""Heads and draft models that belong to another target are refused, and those that may be are
found out."""

import json
import warnings
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import specdec
from specdec.heads.head import FirstRounds
from specdec.heads.marks import mark_of
from specdec.models.language_model import TransformersLM
from tests.models import VOCABULARY, head, lm, shared
from tests.models import build as fresh

ROW = [1, 2, 3, 4]


def tokenizer(*first: str) -> PreTrainedTokenizerFast:
    """Of as many tokens as the model has; `first` are its first."""
    words = [*first, *(f"w{number}" for number in range(len(first), VOCABULARY))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w5"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def decode(target: Any, heads: Any, **options: Any) -> Any:
    drafter = {"name": "medusa", "heads": str(heads), "nodes": 4}
    return specdec.generate(target, ROW, drafter=drafter, max_new_tokens=4, **options)


def test_a_marked_head_knows_its_target(tmp_path):
    target = lm("llama_gqa")
    head("medusa", target).save(tmp_path, target=mark_of(target))
    decode(target, tmp_path)
    decode(lm("llama_gqa", torch.bfloat16), tmp_path)  # the type of the weights does not matter
    other = fresh("llama_gqa")
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"medusa head was trained for another target.*embedding"):
        decode(other, tmp_path)


def test_a_marked_head_knows_its_targets_tokenizer(tmp_path):
    model = shared("llama_gqa")
    own, other = tokenizer(), tokenizer("another", "first", "words")
    target = TransformersLM(model, own)
    head("medusa", target).save(tmp_path, target=mark_of(target))
    decode((model, own), tmp_path)
    decode(model, tmp_path)  # ids are ids
    with pytest.raises(ValueError, match=r"for a target with another tokenizer \(digest \w{16}"):
        decode((model, other), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": VOCABULARY + 8}, rf"vocabulary of {VOCABULARY}, the target has"),
        ({"hidden_size": 64, "head_dim": 16}, "hidden size of .*, the target has 64"),
    ],
)
def test_a_head_of_other_sizes(tmp_path, change, said):
    target = lm("llama_gqa")
    head("medusa", target).save(tmp_path)
    config = type(target.config)(**{**target.config.to_dict(), **change})
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=said):
        decode(LlamaForCausalLM(config).eval(), tmp_path)


def test_a_head_without_a_mark_that_nothing_is_accepted_of(tmp_path, monkeypatch):
    """After so many rounds it is asked whether this is its target; one that is accepted of, or that
    has a mark, or that was made here, is not."""
    monkeypatch.setattr(FirstRounds, "ROUNDS", 10)
    target = lm("llama_gqa")
    unmarked, marked = tmp_path / "unmarked", tmp_path / "marked"
    made = head("medusa", target)
    made.save(unmarked)
    made.save(marked, target=mark_of(target))
    never = [[VOCABULARY - 1]]  # the least probable token of all
    options = {"max_new_tokens": 30, "ignore_eos": True}

    def drafter(heads: Any) -> dict[str, Any]:
        return {"name": "medusa", "heads": heads, "tree": never}

    with pytest.warns(UserWarning, match=r"nothing that the medusa head drafted in 10 rounds"):
        specdec.generate(target, ROW, drafter=drafter(str(unmarked)), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in (str(marked), made):
            specdec.generate(target, ROW, drafter=drafter(quiet), **options)


def test_a_draft_model_with_as_many_tokens_and_another_tokenizer():
    model = shared("llama_gqa")
    own, other = tokenizer(), tokenizer("another")
    options = {"max_new_tokens": 4}

    def drafter(draft: Any) -> dict[str, Any]:
        return {"name": "small_model", "model": draft, "depth": 2}

    specdec.generate((model, own), ROW, drafter=drafter((model, own)), **options)
    specdec.generate((model, own), ROW, drafter=drafter(model), **options)
    said = rf"has {VOCABULARY} tokens, as many as the target .*, but another tokenizer: 'another' "
    with pytest.raises(ValueError, match=said + r"is 0 there and None here; .*target's tokenizer"):
        specdec.generate((model, own), ROW, drafter=drafter((model, other)), **options)


def test_a_draft_model_on_another_device():
    target = lm("llama_gqa")

    class Elsewhere(TransformersLM):
        device = torch.device("meta")  # type: ignore[assignment]

    elsewhere = object.__new__(Elsewhere)
    vars(elsewhere).update(vars(target))
    with pytest.raises(ValueError, match=r"draft model .* is on meta, the target on cpu; load it"):
        specdec.generate(
            target, ROW, drafter={"name": "small_model", "model": elsewhere}, max_new_tokens=4
        )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"specdec_head": "medusa"}, "config.json has no `settings`"),
        ({"specdec_head": "medusa", "settings": None}, "config.json has no `settings`"),
        ({"specdec_head": "medusa", "settings": {}}, "make no medusa head .*missing 2 required"),
        (
            {"specdec_head": "medusa", "settings": {"hidden_sise": 3}},
            "no argument 'hidden_sise'; did you mean 'hidden_size'",
        ),
        ({"hidden_size": "x"}, "make no medusa head"),
        ({"tied": "no"}, "tied must be True or False, got 'no'"),
        ({}, ""),
    ],
)
def test_a_head_whose_config_was_written_by_hand(tmp_path, config, said):
    target = lm("llama_gqa")
    head("medusa", target).save(tmp_path)
    path = tmp_path / "config.json"
    whole = json.loads(path.read_text())
    if "specdec_head" not in config:
        config = {**whole, "settings": {**whole["settings"], **config}}
    path.write_text(json.dumps(config))
    if not said:
        decode(target, tmp_path)
        return
    with pytest.raises(ValueError, match=f"{tmp_path}: .*{said}"):
        decode(target, tmp_path)
