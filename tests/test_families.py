"""What sets model families apart and must not be missed: heads over scaled logits, layers that cannot be widened."""

import pytest
import torch

import specdec
from specdec.language_model import TransformersLM
from tests import models


@pytest.mark.parametrize(
    "name", ["afmoe", "cohere2"]
)  # a gate, and an MLP beside attention, that look at the normed input
def test_layers_that_cannot_look_at_two_inputs_are_refused(name):
    target = models.lm(name)
    drafter = {"name": "eagle3", "heads": models.head("eagle3", target), "draw": "wor", "depth": 2}
    with pytest.raises(ValueError, match=r"cannot serve as a head.*mat1 and mat2.*Llama-like"):
        specdec.generate(target, models.prompts(6), drafter=drafter, max_new_tokens=4)


def test_layers_without_a_norm_before_attention_are_refused():
    target = TransformersLM(models.sharpened(models.hf.Olmo2ForCausalLM(models.hf.Olmo2Config(**models.GROUPED))))
    with pytest.raises(ValueError, match=r"Olmo2DecoderLayer has no input_layernorm.*Llama-like"):
        models.head("eagle3", target)


@pytest.mark.parametrize("key", ["logit_scale", "logits_scaling"])
def test_heads_see_scaled_logits_as_the_target_does(key):
    config = {**models.GROUPED, key: 0.25}
    family = "Cohere" if key == "logit_scale" else "Granite"
    made = getattr(models.hf, f"{family}Config")(**config)
    target = TransformersLM(models.sharpened(getattr(models.hf, f"{family}ForCausalLM")(made)))
    target.check_head()
    states = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    expected = target.model.get_output_embeddings()(states) * (0.25 if key == "logit_scale" else 4)
    assert torch.allclose(target.head(states), expected)
