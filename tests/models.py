"""Tiny, randomly initialised transformers models: every architecture that must score trees, and
those that must be refused.

Each is built in well under a second and has no trained weights. V = 97 tokens, 64 positions unless
a test says otherwise.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers as hf
from transformers import PreTrainedModel

import specdec
from drafters.dflash import DFlashHead
from drafters.dspark import DSparkHead
from drafters.eagle import EagleHead
from drafters.eagle3 import Eagle3Head
from drafters.hydra_heads import HydraHeads
from drafters.medusa import MedusaHeads
from drafters.mtp import MtpHead
from specdec.heads.head import Head, random_head
from specdec.models.language_model import TransformersLM

VOCABULARY, CONTEXT, WINDOW = 97, 64, 5
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
SIZED = {**GROUPED, "head_dim": 8}
# tied, they echo
SPECIAL = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
HYBRID = ["sliding_attention", "full_attention", "sliding_attention"]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,  # K and V differ in head size
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}

ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama_mha": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**COMMON)),
    "llama_gqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "llama_mqa": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**COMMON, num_key_value_heads=1)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=CONTEXT, **SPECIAL
        )
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            **SPECIAL,
        )
    ),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**COMMON)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**COMMON)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZED)),
    "mistral_window": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(**GROUPED, sliding_window=WINDOW)
    ),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**SIZED, sliding_window=WINDOW)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SIZED, sliding_window=WINDOW, layer_types=HYBRID)
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=4)),
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**SIZED, **MOE)),
    "gpt_oss": lambda: hf.GptOssForCausalLM(  # sinks in its softmax, windows in every other layer
        hf.GptOssConfig(
            **SIZED,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=WINDOW,
            layer_types=HYBRID,
        )
    ),
    "llama4": lambda: (
        hf.Llama4ForCausalLM(  # chunks of positions, layers without any, heads in pairs
            hf.Llama4TextConfig(
                **SIZED,
                intermediate_size_mlp=48,
                num_local_experts=4,
                attention_chunk_size=WINDOW,
                no_rope_layers=[1, 0, 1],
                interleave_moe_layer_step=2,
            )
        )
    ),
    "afmoe": lambda: hf.AfmoeForCausalLM(  # gates what attention gives, as one contiguous block
        hf.AfmoeConfig(
            **SIZED, **MOE, sliding_window=WINDOW, layer_types=HYBRID, num_dense_layers=1
        )
    ),
    "cohere2": lambda: (
        # attention and MLP side by side, no positions where there is no window
        hf.Cohere2ForCausalLM(
            hf.Cohere2Config(
                **GROUPED, sliding_window=WINDOW, layer_types=HYBRID, tie_word_embeddings=False
            )
        )
    ),
    "deepseek_v3": lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**COMMON, **MLA)),
}

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
REFUSED: dict[str, tuple[Callable[[], PreTrainedModel], str]] = {
    "bloom": (
        lambda: hf.BloomForCausalLM(
            hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
        ),
        "ALiBi",
    ),
    "falcon": (
        lambda: hf.FalconForCausalLM(hf.FalconConfig(**SMALL, num_attention_heads=4, alibi=True)),
        "ALiBi",
    ),
    "mpt": (
        lambda: hf.MptForCausalLM(
            hf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4)
        ),
        "ALiBi",
    ),
    "gpt_neo": (
        lambda: hf.GPTNeoForCausalLM(
            hf.GPTNeoConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                attention_types=[[["global", "local"], 1]],
            )
        ),
        "place in the cache",
    ),
    "bert": (
        lambda: sharpened(
            hf.BertLMHeadModel(hf.BertConfig(**SMALL, intermediate_size=48, num_attention_heads=4))
        ),
        "not causal.*is_decoder",
    ),
    "doge": (
        lambda: hf.DogeForCausalLM(hf.DogeConfig(**GROUPED)),
        "its forward fails with a 4-D attention mask",
    ),
    "lfm2": (
        lambda: hf.Lfm2ForCausalLM(
            hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention", "conv"])
        ),
        "recurrent",
    ),
    "mamba": (lambda: hf.MambaForCausalLM(hf.MambaConfig(**SMALL)), "recurrent"),
    "rwkv": (lambda: hf.RwkvForCausalLM(hf.RwkvConfig(**SMALL)), "recurrent"),
    "jamba": (
        lambda: hf.JambaForCausalLM(
            hf.JambaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=8,
                num_attention_heads=4,
                num_key_value_heads=2,
                mamba_d_state=4,
                mamba_d_conv=2,
                mamba_dt_rank=4,
                use_mamba_kernels=False,
            )
        ),
        "recurrent",
    ),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(
                vocab_size=VOCABULARY, d_model=32, d_ff=32, num_layers=2, num_heads=2, d_kv=16
            )
        ),
        "encoder-decoder",
    ),
}


def sharpened(model: PreTrainedModel, factor: float = 4.0) -> PreTrainedModel:
    """Larger weight matrices, in place: a fresh model's law is nearly uniform, which no mask or
    position could bend."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(factor)
    return model.eval()


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A fresh model of an architecture; the same weights for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sharpened(ARCHITECTURES[name]()).to(dtype)


@cache
def shared(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same model for all tests that only read it."""
    return build(name, dtype)


def long_llama(context: int = 1024, **settings: Any) -> PreTrainedModel:
    """Two layers, and room for long texts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {**GROUPED, "num_hidden_layers": 2, "max_position_embeddings": context, **settings}
        return sharpened(hf.LlamaForCausalLM(hf.LlamaConfig(**config)))


def similar(model: PreTrainedModel, noise: float = 0.1, seed: int = 1) -> PreTrainedModel:
    """A copy with noise on its weights: a draft model that is right about as often as it is
    wrong."""
    other, random = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim > 1:
                spread = weight.float().std() * noise
                weight.add_((torch.randn(weight.shape, generator=random) * spread).to(weight.dtype))
    return other


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token ids, one list per length."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (length,), generator=random).tolist() for length in lengths]


@cache
def lm(name: str, dtype: torch.dtype = torch.float32) -> TransformersLM:
    """A shared model as a target."""
    return TransformersLM(shared(name, dtype), name=name)


def _eagle3(target: TransformersLM) -> Eagle3Head:
    frequency = torch.randn(target.vocabulary, generator=torch.Generator().manual_seed(3))
    return Eagle3Head.for_target(
        target, draft_vocabulary=target.vocabulary * 2 // 3, frequency=frequency
    )


HEADS: dict[str, Callable[[TransformersLM], Head]] = {
    "medusa": lambda target: MedusaHeads.for_target(target, heads=3, blocks=2),
    "hydra_heads": lambda target: HydraHeads.for_target(target, heads=3),
    "eagle": EagleHead.for_target,
    "eagle3": _eagle3,  # two thirds of the target's tokens, not the first ones
    "dflash": lambda target: DFlashHead.for_target(target, block=3),
    "dspark": lambda target: DSparkHead.for_target(target, block=3),
    "mtp": MtpHead.for_target,
}
CHAINS: dict[str, dict[str, Any]] = {  # of the best tokens
    "medusa": {"branching": [1, 1, 1]},
    "hydra_heads": {"depth": 3, "draw": "topk"},
    "eagle": {"depth": 3, "draw": "topk"},
    "eagle3": {"depth": 3, "draw": "topk"},
    "dflash": {"depth": 3, "draw": "topk"},
    "dspark": {"depth": 3, "draw": "topk"},
    "mtp": {"depth": 3, "draw": "topk"},
}


def head(kind: str, target: TransformersLM, spread: float = 0.2) -> Head:
    """A fresh head with random weights, the same at every call."""
    return random_head(lambda: HEADS[kind](target), target.dtype, spread)


def continued(target: TransformersLM, openings: list[list[int]], tokens: int) -> np.ndarray:
    """(openings, ...) with their greedy continuations by the target, `tokens` long."""
    out = specdec.generate(target, openings, drafter="none", max_new_tokens=tokens)
    return np.array(
        [[*opening, *row.tolist()] for opening, row in zip(openings, out.tokens, strict=True)]
    )


def published_block(head: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """config.json and weights of a block head in the layout of DFlash's release."""
    config = {
        **head.settings["layers"],
        "vocab_size": head.vocabulary,
        "block_size": head.places,
        "dflash_config": {
            "target_layer_ids": [tap - 1 for tap in head.taps],
            "mask_token_id": head.mask_token,
        },
    }
    return config, {name: weight.contiguous() for name, weight in head.weights().items()}
