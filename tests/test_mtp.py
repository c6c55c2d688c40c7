"""The layer for multi-token prediction that a checkpoint brings: read, and run over trees."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_layers import MtpModel

import specdec
from drafters.mtp import Mtp, MtpHead
from specdec.models.language_model import TransformersLM
from tests.models import ARCHITECTURES, lm, prompts, sharpened
from tests.test_heads import watched

LAYERS = 3
NAMES = {  # transformers' names -> those of the released checkpoints, in front of a layer's own
    "mtp_block.": "",
    "post_norm.": "shared_head.norm.",
    "enorm.": "enorm.",
    "hnorm.": "hnorm.",
    "eh_proj.": "eh_proj.",
}
CLASSES = {"deepseek_v3": hf.DeepseekV3PreTrainedModel, "glm4_moe": hf.Glm4MoePreTrainedModel}


def main_model(family: str) -> Any:
    if family == "deepseek_v3":
        return ARCHITECTURES[family]()
    from tests.models import MOE, SIZED

    sizes = {**SIZED, **MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
    return hf.Glm4MoeForCausalLM(hf.Glm4MoeConfig(**sizes, first_k_dense_replace=1))


def checkpoint(family: str, folder: Path, without: str = "nothing") -> Path:
    """A random target with a random MTP layer, as the releases have it: layer number `LAYERS`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sharpened(main_model(family))
        layer = {  # experts are not initialised there
            name: torch.randn(weight.shape) * 0.3
            for name, weight in MtpModel(model, 1).layers[0].state_dict().items()
        }
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in layer.items():
        ours = next(prefix for prefix in NAMES if name.startswith(prefix))
        theirs = f"model.layers.{LAYERS}.{NAMES[ours]}{name.removeprefix(ours)}"
        if without not in theirs:
            weights[theirs] = weight.contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers knows the released models' number of layers, not the tiny ones'."""
    for each in CLASSES.values():
        patterns = [rf"model\.layers\.{LAYERS}\..*"]
        monkeypatch.setattr(each, "_keys_to_ignore_on_load_unexpected", patterns)


@torch.no_grad()
def theirs(target: TransformersLM, text: Tensor) -> Tensor:
    """(V,) the law of the second token behind a text, by transformers' own class."""
    model = target.model
    read = MtpModel.from_pretrained(model)
    states = model(input_ids=text[None, :-1], output_hidden_states=True, use_cache=False)
    positions = torch.arange(1, len(text))[None]
    drafted = read(text[None, 1:], states.hidden_states[-1], None, positions, None)
    return drafted[1][0, 0]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("settings", [{}, {"branching": [2, 2, 1]}], ids=["chain", "tree"])
@pytest.mark.parametrize("family", CLASSES)
def test_its_laws_are_those_of_transformers_class(family, settings, tmp_path):
    """Of the first token, in every round, whatever was accepted."""
    target = specdec.load(checkpoint(family, tmp_path))
    made = watched("mtp", None, **settings)
    out = specdec.generate(
        target, prompts(9, 1, 6), drafter=made, temperature=1.0, max_new_tokens=30
    )
    accepted = {int(number) for step in out.steps for number in step.num_accepted[step.live]}
    assert {0, 1} <= accepted
    assert len(made.seen) > 20
    for text, logits in made.seen[::4]:
        torch.testing.assert_close(logits, theirs(target, text), rtol=2e-4, atol=2e-4)


@pytest.mark.usefixtures("known")
def test_greedy_tokens_are_those_of_plain_decoding(tmp_path):
    target = specdec.load(checkpoint("deepseek_v3", tmp_path / "model"))
    plain = specdec.generate(target, prompts(9, 5), drafter="none", max_new_tokens=16)
    out = specdec.generate(target, prompts(9, 5), drafter="mtp", max_new_tokens=16)
    assert [row.tolist() for row in out.tokens] == [row.tolist() for row in plain.tokens]
    head = MtpHead.of_checkpoint(target)
    head.save(tmp_path / "head")
    again = Mtp(tmp_path / "head")
    assert all(
        torch.equal(weight, head.state_dict()[name])
        for name, weight in again.heads.state_dict().items()
    )


def test_a_target_without_such_a_layer_is_refused():
    with pytest.raises(ValueError, match=r"llama_gqa brings no MTP layer.*num_mtp_layers"):
        specdec.generate(lm("llama_gqa"), prompts(4), drafter="mtp", max_new_tokens=3)


@pytest.mark.usefixtures("known")
def test_a_checkpoint_without_its_weights_is_refused(tmp_path):
    target = specdec.load(checkpoint("deepseek_v3", tmp_path, without="eh_proj"))
    with pytest.raises(ValueError, match=r"cannot be read.*eh_proj.*has its weights"):
        specdec.generate(target, prompts(4), drafter="mtp", max_new_tokens=3)


def test_a_model_that_was_never_saved_is_refused():
    """Its config speaks of a layer, and there is no file to read it from."""
    with pytest.raises(ValueError, match="a model that was not loaded from a folder"):
        specdec.generate(lm("deepseek_v3"), prompts(4), drafter="mtp", max_new_tokens=3)


def test_the_state_may_come_first():
    head = MtpHead.for_target(lm("llama_gqa"))
    other = MtpHead(head.settings["layer"], head.vocabulary, states_first=True)
    other.load_state_dict(head.state_dict())
    one, two = torch.randn(2, 1, 3, head.hidden_size).unbind(0)
    size = head.hidden_size
    with torch.no_grad():
        head.eh_proj.weight.copy_(torch.cat([torch.eye(size), torch.zeros(size, size)], 1))
        other.eh_proj.weight.copy_(head.eh_proj.weight)
        torch.testing.assert_close(head.enter(one, two), head.enorm(one))
        torch.testing.assert_close(other.enter(one, two), other.hnorm(two))
