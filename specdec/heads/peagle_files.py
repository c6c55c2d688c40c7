"""P-EAGLE heads (2602.01469) in the `speculators` layout, type peagle.

They are EAGLE-3 heads of one or several layers, of which the first looks at the embedding, with two
things that stand for a token that is not known yet: `mask_hidden` (1, 1, 3 d) for the states before
it, and the row `mask_token_id` of their embedding. Unless `embed_requires_grad` is false, that
embedding is their own. Source: the configs that the vLLM project's `speculators` library writes and
vLLM reads.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from specdec.errors import integer
from specdec.heads.head import EMBEDDING
from specdec.heads.speculators import tokens_of

TYPE = "peagle"
NEEDED = ("draft_vocab_size", "mask_token_id")


def depths(config: Mapping[str, Any]) -> int:
    """How many tokens such a head guesses in one pass: `num_depths`, which older files have, or as
    many as a server is to draft. Raises ValueError where neither says it."""
    found = config.get("num_depths") or tokens_of(config)
    if found is None:
        raise ValueError(
            "the config does not say how many tokens the head guesses in one pass; set "
            "speculative_tokens in speculators_config.proposal_methods"
        )
    return integer("speculative_tokens of a peagle head", found, 2, 256)


def with_masks(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], vocabulary: int, hidden: int
) -> dict[str, Tensor]:
    """The weights with both masks as ours are. Raises ValueError where there is no row for the
    token."""
    token = integer("mask_token_id", config["mask_token_id"], 0, vocabulary - 1)
    embedding, expected = weights.get(EMBEDDING), (vocabulary, hidden)
    if embedding is None:
        raise ValueError(
            f"missing: {EMBEDDING}, whose row {token} (mask_token_id) stands for a token that is "
            "not known yet"
        )
    if embedding.shape != expected:
        raise ValueError(
            f"wrong shape: {EMBEDDING} is {tuple(embedding.shape)}, expected {expected}"
        )
    found = {**weights, "mask_embedding": embedding[token].clone()}
    states = weights.get("mask_hidden")
    if states is not None and states.shape[-1:].numel() == states.numel():
        found["mask_hidden"] = states.flatten()
    return found
