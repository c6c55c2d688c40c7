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


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("CodeGen", {"vocab_size": 53, "n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "n_positions": 64}),
        (
            "Gemma4",
            {
                **models.SIZED,
                "pad_token_id": 0,
                "layer_types": models.HYBRID,
                "vocab_size_per_layer_input": 97,
                "hidden_size_per_layer_input": 8,
                "global_head_dim": 8,
            },
        ),
    ],
)  # layers that return tuples, and streams that need the tokens beside them
def test_families_that_do_not_run_in_two_parts_are_refused(family, config):
    kind = "Gemma4TextConfig" if family == "Gemma4" else f"{family}Config"
    model = getattr(models.hf, f"{family}ForCausalLM")(getattr(models.hf, kind)(**config))
    target = TransformersLM(models.sharpened(model))
    with pytest.raises(ValueError, match=r"cannot resume at layer 2.*does not run in two parts.*use layer_skip"):
        target.lower(2)


def test_sublayers_that_a_family_needs():
    model = models.hf.Gemma3nForCausalLM(
        models.hf.Gemma3nTextConfig(
            **models.SIZED, num_kv_shared_layers=0, layer_types=models.HYBRID, vocab_size_per_layer_input=97,
            hidden_size_per_layer_input=8, laurel_rank=4,
        )
    )  # fmt: skip
    target = TransformersLM(models.sharpened(model))
    with pytest.raises(
        ValueError, match=r"does not run without these sublayers \(attention of \[1\], MLP of \[1\].*leave out"
    ):
        target.without([1], [1])
    medusa = {"name": "medusa", "heads": models.head("medusa", target)}
    with pytest.raises(ValueError, match=r"hidden states of shape.*expected \(B, T, 32\).*heads cannot"):
        specdec.generate(target, models.prompts(6), drafter=medusa, max_new_tokens=4)


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
