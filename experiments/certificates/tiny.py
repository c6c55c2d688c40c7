"""A transformers model so small that its law over a few tokens can be written down: random weights,
a handful of tokens."""

import copy
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specdec.models.language_model import TransformersLM

CONTEXT = 64


@cache
def llama(
    vocabulary: int, seed: int = 0, hidden: int = 16, sharpness: float = 6.0
) -> PreTrainedModel:
    """float32, two layers, grouped heads. A fresh model's law is nearly uniform; `sharpness` makes
    it depend on its context."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=CONTEXT,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(sharpness)
    return model.eval()


@cache
def similar(vocabulary: int, noise: float = 0.3, **options: float) -> PreTrainedModel:
    """The same model with noise on its weights: a draft model that is right about as often as it is
    wrong."""
    model, random = copy.deepcopy(llama(vocabulary, **options)), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.add_(torch.randn(weight.shape, generator=random) * weight.std() * noise)
    return model


def target(vocabulary: int) -> TransformersLM:
    return TransformersLM(llama(vocabulary), name="tiny")


def draft(vocabulary: int) -> TransformersLM:
    return TransformersLM(similar(vocabulary), name="tiny draft")
