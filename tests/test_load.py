"""Model folders that are damaged: what came, what was expected and which file, for targets and for
draft models alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import specdec
from specdec.models.load import check_loaded
from tests.models import VOCABULARY, lm
from tests.models import build as fresh

ROW = [1, 2, 3, 4]
WEIGHTS = "model.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"
Weights = dict[str, torch.Tensor]
Damage = Callable[[Path], Any]


def refused(folder: Path, *words: str) -> str:
    """`load` raises for a target; for a draft model the message is the same."""
    with pytest.raises(ValueError, match=r".") as caught:
        specdec.load(folder)
    message = str(caught.value)
    assert not [word for word in words if word not in message], message
    drafter = {"name": "small_model", "model": str(folder)}
    with pytest.raises(ValueError, match=r".") as again:
        specdec.generate(lm("llama_gqa"), ROW, drafter=drafter, max_new_tokens=2)
    assert str(again.value) == message
    return message


@pytest.fixture
def saved(tiny: Path, tmp_path: Path) -> Path:
    """A model with its tokenizer, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def config(**changed: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return damage


def weights(change: Callable[[Weights], Weights]) -> Damage:
    def damage(folder: Path) -> None:
        changed = change(load_file(folder / WEIGHTS))
        save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def written(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text)


def sharded(folder: Path) -> list[Path]:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="4KB")
    (folder / WEIGHTS).unlink()
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


def without_a_shard(folder: Path) -> None:
    sharded(folder)[1].unlink()


def without_a_shard_and_its_index(folder: Path) -> None:
    """As a tool leaves it that writes the index of what it finds."""
    lost, path = sharded(folder)[1], folder / "model.safetensors.index.json"
    lost.unlink()
    index = json.loads(path.read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != lost.name}
    path.write_text(json.dumps(index))


def with_a_broken_index(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map')


def cut(share: float) -> Damage:
    def damage(folder: Path) -> None:
        whole = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(whole[: int(len(whole) * share)])

    return damage


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda found: {key: value for key, value in found.items() if key != name}


def renamed(found: Weights) -> Weights:
    return {key.replace("up_proj", "upper"): value for key, value in found.items()}


def narrower(found: Weights) -> Weights:
    return {**found, UP: found[UP][:-1].contiguous()}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (weights(without(UP)), ("do not belong to its config", f"missing: {UP}", "random layers")),
        (
            weights(lambda found: {**found, "model.extra": torch.zeros(2)}),
            ("not expected: model.extra",),
        ),
        (weights(renamed), (f"missing: {UP}", "not expected: model.layers.0.mlp.upper.weight")),
        (weights(narrower), (f"{UP} is (31, 16), the config says (32, 16)",)),
        (
            config(num_hidden_layers=4),
            ("missing: model.layers.2.input_layernorm.weight", "and 13 more"),
        ),
        (
            config(num_hidden_layers=1),
            ("not expected: model.layers.1.input_layernorm.weight", "and 4 more"),
        ),
        (config(vocab_size=50), ("embed_tokens.weight is (", "the config says (50, 16)")),
        (without_a_shard, ("No such file", "model-00002-of")),
        (without_a_shard_and_its_index, ("missing: ", "restore the file that was lost")),
        (with_a_broken_index, ("cannot load the weights",)),
        (cut(0.5), ("no whole safetensors file", "copy it again")),
        (cut(0), ("no whole safetensors file",)),
        (written(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n" * 9), ("no whole",)),
        (written("config.json", '{"model'), ("config.json", "not a valid JSON file")),
        (written("config.json", "{}"), ("config.json", "model_type")),
        (config(hidden_size=17), ("config.json", "multiple of the number of attention heads")),
        (config(dtype="floaty"), ("config.json", "floaty")),
        (written("generation_config.json", "{"), ("generation_config.json is no JSON",)),
        (written("tokenizer.json", '{"version": "1.0", "tr'), ("a tokenizer (tokenizer.json",)),
        (written("tokenizer.json", ""), ("cannot be read", "copy it again")),
        (written("tokenizer_config.json", "{"), ("cannot be read",)),
    ],
)
def test_a_damaged_folder(saved, damage, words):
    damage(saved)
    message = refused(saved, str(saved), *words)
    assert "hub id" not in message


@pytest.mark.parametrize("name", ["nowhere-at-all", "x" * 400, "a\0b", "a/b/c"])
def test_a_name_that_is_no_folder(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot load|describes no model"):
        specdec.load(name)


def test_weights_that_a_family_does_without_are_accepted():
    """Buffers of old files; tied weights are in nobody's list."""
    found = {
        "missing_keys": set(),
        "mismatched_keys": set(),
        "unexpected_keys": {
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "transformer.h.0.attn.masked_bias",
            "transformer.h.0.attn.bias",
        },
    }
    check_loaded("old", found)
    with pytest.raises(ValueError, match=r"not expected: transformer\.h\.0\.attn\.c_attn\.bias"):
        check_loaded("old", {**found, "unexpected_keys": {"transformer.h.0.attn.c_attn.bias"}})


def test_a_folder_without_a_tokenizer_takes_ids(saved):
    for path in saved.glob("tokenizer*"):
        path.unlink()
    target = specdec.load(saved)
    assert target.tokenizer is None
    assert len(specdec.generate(target, ROW, max_new_tokens=3).tokens[0]) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(saved, value):
    def spoilt(found: Weights) -> Weights:
        found[UP][0, 0] = value
        return found

    weights(spoilt)(saved)
    refused(saved, "logits are NaN", f"weights that are NaN or infinite: {UP}")


def test_a_layer_that_overflows_is_no_broken_weight():
    model = fresh("llama_gqa")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(3e38)
        model.model.layers[0].mlp.up_proj.weight.fill_(3e38)
    with pytest.raises(ValueError, match=r"weights are finite.*wider dtype"):
        specdec.load(model)


class MasksPadding(torch.nn.Module):
    """An LM head whose last ids are padding."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head, self.weight = head, head.weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(states)
        return logits.index_fill(-1, torch.arange(VOCABULARY - 5, VOCABULARY), -torch.inf)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masked_padding_ids_are_no_fault(temperature):
    """Logits of -inf at the same ids everywhere."""
    model, draft = fresh("llama_gqa"), fresh("llama_gqa")
    for each in (model, draft):
        each.lm_head = MasksPadding(each.lm_head)
    target, options = specdec.load(model), {"temperature": temperature, "max_new_tokens": 30}
    for drafter in ("ngram", {"name": "small_model", "model": draft, "depth": 3, "branching": 2}):
        out = specdec.generate(target, ROW, drafter=drafter, **options)
        assert int(out.tokens[0].max()) < VOCABULARY - 5
        assert len(out.tokens[0]) == 30


def test_ends_of_text_that_are_no_ids():
    """Of a generation config. They are asked for only where they count."""
    model = fresh("llama_gqa")
    target = specdec.load(model)
    for wrong in ("x", 2.5, -1, VOCABULARY, True, [3, -1], [3, "x"]):
        vars(model.generation_config)["eos_token_id"] = wrong
        shown = repr(wrong[1] if isinstance(wrong, list) else wrong)
        with pytest.raises(ValueError, match=rf"end-of-sequence id {shown}, which is no id.*eos"):
            specdec.generate(target, ROW, max_new_tokens=2)
        specdec.generate(target, ROW, max_new_tokens=2, ignore_eos=True)
    for right in (None, 3, [3, 4]):
        vars(model.generation_config)["eos_token_id"] = right
        specdec.generate(target, ROW, max_new_tokens=2)


def test_extra_layers_are_bounded():
    with pytest.raises(ValueError, match="extra_layers must be an integer <= 1000, got 1000000000"):
        specdec.load(lm("llama_gqa").model, extra_layers=10**9)


@pytest.mark.parametrize("value", ["no", 1, None])
def test_remote_code_is_a_yes_or_a_no(saved, value):
    with pytest.raises(ValueError, match="trust_remote_code must be True or False"):
        specdec.load(saved, trust_remote_code=value)


def test_a_misspelt_argument():
    with pytest.raises(TypeError, match=r"no argument 'divice'; did you mean 'device'\?"):
        specdec.load("demo", divice="cpu")  # type: ignore[call-arg]
