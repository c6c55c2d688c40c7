"""What sets model families apart and must not be missed: heads over scaled logits, layers that
cannot be widened."""

import pytest
import torch

import specdec
from specdec.models.language_model import TransformersLM
from tests import models


# a gate, and an MLP beside attention, that look at the normed input
@pytest.mark.parametrize("name", ["afmoe", "cohere2"])
def test_layers_that_cannot_look_at_two_inputs_are_refused(name):
    target = models.lm(name)
    drafter = {"name": "eagle3", "heads": models.head("eagle3", target), "draw": "wor", "depth": 2}
    with pytest.raises(ValueError, match=r"cannot serve as a head.*mat1 and mat2.*Llama-like"):
        specdec.generate(target, models.prompts(6), drafter=drafter, max_new_tokens=4)


def test_layers_without_a_norm_before_attention_are_refused():
    target = TransformersLM(
        models.sharpened(models.hf.Olmo2ForCausalLM(models.hf.Olmo2Config(**models.GROUPED)))
    )
    with pytest.raises(ValueError, match=r"Olmo2DecoderLayer has no input_layernorm.*Llama-like"):
        models.head("eagle3", target)


# layers that return tuples, and streams that need the tokens beside them
@pytest.mark.parametrize(
    ("family", "config"),
    [
        (
            "CodeGen",
            {
                "vocab_size": 53,
                "n_embd": 32,
                "n_layer": 3,
                "n_head": 4,
                "rotary_dim": 4,
                "n_positions": 64,
            },
        ),
        (
            "Gemma4",
            {
                **models.SIZED,
                "pad_token_id": 0,
                "layer_types": [*models.HYBRID],  # Gemma 4 writes to it
                "vocab_size_per_layer_input": 97,
                "hidden_size_per_layer_input": 8,
                "global_head_dim": 8,
            },
        ),
    ],
)
def test_families_that_do_not_run_in_two_parts_are_refused(family, config):
    kind = "Gemma4TextConfig" if family == "Gemma4" else f"{family}Config"
    model = getattr(models.hf, f"{family}ForCausalLM")(getattr(models.hf, kind)(**config))
    target = TransformersLM(models.sharpened(model))
    with pytest.raises(
        ValueError, match=r"cannot resume at layer 2.*does not run in two parts.*use layer_skip"
    ):
        target.lower(2)


def test_sublayers_that_a_family_needs():
    model = models.hf.Gemma3nForCausalLM(
        models.hf.Gemma3nTextConfig(
            **models.SIZED,
            num_kv_shared_layers=0,
            layer_types=[*models.HYBRID],
            vocab_size_per_layer_input=97,
            hidden_size_per_layer_input=8,
            laurel_rank=4,
        )
    )
    target = TransformersLM(models.sharpened(model))
    with pytest.raises(
        ValueError,
        match=r"does not run without these sublayers \(attention of \[1\], MLP of \[1\].*leave out",
    ):
        target.without([1], [1])
    medusa = {"name": "medusa", "heads": models.head("medusa", target)}
    with pytest.raises(
        ValueError, match=r"hidden states of shape.*expected \(B, T, 32\).*heads cannot"
    ):
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


SIZES = {  # of what a config has, under the names that families give it
    **models.SIZED,
    **models.MOE,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": models.CONTEXT,
    "ffn_dim": 48,
    "num_layers": 3,
    "attention_heads": 4,
    "ffn_hidden_size": 48,
    "rotary_dim": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "moe_k": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "sliding_window": models.WINDOW,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 8,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "original_max_position_embeddings": models.CONTEXT,
    "new_decoder_architecture": True,
    "tie_word_embeddings": False,
}
DECODERS = [
    "apertus",
    "arcee",
    "bitnet",
    "biogpt",
    "codegen",
    "cohere",
    "ctrl",
    "deepseek_v2",
    "diffllama",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "falcon",
    "flex_olmo",
    "gemma",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt_bigcode",
    "gptj",
    "granite",
    "granitemoe",
    "helium",
    "hunyuan_v1_dense",
    "jetmoe",
    "minicpm3",
    "minimax_m2",
    "ministral",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "persimmon",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "seed_oss",
    "smollm3",
    "solar_open",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "xglm",
    "youtu",
]


def shrunk(family: str) -> models.PreTrainedModel:
    """A tiny model of a family, made by shrinking whatever of SIZES its config has."""
    kind = models.hf.CONFIG_MAPPING[family]
    sizes = {
        key: size for key, size in SIZES.items() if key in {*kind().to_dict(), *kind.attribute_map}
    }
    for alias, key in kind.attribute_map.items():
        if key in sizes:
            sizes.pop(alias, None)
    if (
        "kv_lora_rank" in sizes and "num_key_value_heads" in sizes
    ):  # latent attention has as many as queries
        sizes["num_key_value_heads"] = 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.hf.AutoModelForCausalLM.from_config(kind(**sizes))
    return models.sharpened(model)


@pytest.mark.slow
@pytest.mark.parametrize("family", DECODERS)
def test_trees_of_other_families_give_the_models_own_greedy_tokens(family):
    """Each token is the largest logit of one plain pass of the model, without cache or mask, over
    what is before it."""
    model, rows = shrunk(family), models.prompts(9, 17, 1)
    drafter = {
        "name": "small_model",
        "model": models.similar(model),
        "depth": 3,
        "branching": [2, 2, 1],
    }
    out = specdec.generate(model, rows, drafter=drafter, max_new_tokens=24, ignore_eos=True)
    assert out.report.tau > 1
    for row, tokens in zip(rows, out.tokens, strict=True):
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([[*row, *tokens.tolist()]]), use_cache=False
            ).logits[0, len(row) - 1 : -1]
        short = logits.amax(-1) - logits.gather(1, tokens[:, None])[:, 0]
        # a tie of rounding at most
        assert float(short.max()) < 1e-4 * (1 + float(logits.abs().max()))
