"""transformers' own generate as a baseline: plain, with a draft model (assisted generation), or
with prompt lookup."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

import specdec
from experiments.measuring.ways import Sample
from experiments.system.libraries import synchronize


@dataclass(frozen=True)
class Theirs:
    target: specdec.TransformersLM
    sampling: dict[str, Any]
    seed: int = 0
    ignore_eos: bool = False
    draft: specdec.TransformersLM | None = None
    num_assistant_tokens: int = 5
    different_tokenizers: bool = False  # of target and draft: generate is given both
    confidence: float | None = None
    lookup: tuple[int, int] | None = None  # (longest n-gram, drafted tokens)

    def __call__(
        self, prompts: Sequence[Sequence[int]], request_ids: Sequence[int], max_new_tokens: int
    ) -> Sample:
        device, width = self.target.device, max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # padded on the left, as transformers wants it
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        torch.manual_seed(hash((self.seed, *request_ids)) % (1 << 63))
        with self._settings():
            synchronize(device)
            began = time.perf_counter()
            out = self.target.model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._config(max_new_tokens),
                **self._assistant(),
            )
            added = out[:, width:].tolist()
            wall = time.perf_counter() - began
        stops = frozenset() if self.ignore_eos else self.target.eos_ids
        return Sample([_until(row, stops) for row in added], wall)

    def _assistant(self) -> dict[str, Any]:
        if self.draft is None:
            return {}
        tokenizers = {
            "tokenizer": self.target.tokenizer,
            "assistant_tokenizer": self.draft.tokenizer,
        }
        given = tokenizers if self.different_tokenizers else {}
        return {"assistant_model": self.draft.model, **given}

    def _config(self, max_new_tokens: int) -> GenerationConfig:
        sampling = {key: value for key, value in self.sampling.items() if value is not None}
        if sampling.get("temperature", 0.0) > 0:
            sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0, **sampling}
        else:
            sampling = {
                "do_sample": False,
                "repetition_penalty": sampling.get("repetition_penalty", 1.0),
            }
        if self.lookup:
            sampling |= {
                "max_matching_ngram_size": self.lookup[0],
                "prompt_lookup_num_tokens": self.lookup[1],
            }
        eos = None if self.ignore_eos else sorted(self.target.eos_ids) or None
        return GenerationConfig(
            max_new_tokens=max_new_tokens, pad_token_id=0, eos_token_id=eos, **sampling
        )

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """What transformers reads from the models' own generation configs, for the time of the
        call."""
        changes = [(self.target.model, {"eos_token_id": None} if self.ignore_eos else {})]
        if self.draft:
            assisted = {
                "num_assistant_tokens": self.num_assistant_tokens,
                "num_assistant_tokens_schedule": "constant",
                "assistant_confidence_threshold": self.confidence,
            }
            changes.append((self.draft.model, assisted))
        before = [(model, model.generation_config) for model, _ in changes]
        try:
            for model, values in changes:
                if values:
                    model.generation_config = GenerationConfig.from_dict(
                        {**model.generation_config.to_dict(), **values}
                    )
            yield
        finally:
            for model, config in before:
                model.generation_config = config


def _until(tokens: list[int], stops: frozenset[int]) -> list[int]:
    """Up to the first stop, which is kept; in a batch, transformers fills the rest with padding."""
    for index, token in enumerate(tokens):
        if token in stops:
            return tokens[: index + 1]
    return tokens
