"""transformers' own generate as a sampler."""

from dataclasses import replace

from experiments.audits.sampler import Request, Sampler
from experiments.measuring.theirs import Theirs
from specdec.models.language_model import TransformersLM


class Transformers(Sampler):
    """`draft`: an assistant model."""

    def __init__(
        self,
        target: TransformersLM,
        draft: TransformersLM | None = None,
        num_assistant_tokens: int = 5,
        different_tokenizers: bool = False,
    ) -> None:
        self.way = Theirs(
            target,
            {},
            draft=draft,
            num_assistant_tokens=num_assistant_tokens,
            different_tokenizers=different_tokenizers,
        )

    def sample(self, request: Request) -> list[list[int]]:
        sampling = {"temperature": request.temperature, "top_k": request.top_k}
        way = replace(self.way, sampling={**sampling, "top_p": request.top_p}, seed=request.seed)
        one, ids = [request.prompt], range(request.samples)
        if self.way.draft is None:
            return way(one * request.samples, ids, request.max_new_tokens).tokens
        # its assisted generation takes one row at a time
        return [way(one, [each], request.max_new_tokens).tokens[0] for each in ids]
