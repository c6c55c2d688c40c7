"""A command for audits: an OpenAI-compatible completions endpoint that takes and gives token ids,
such as vLLM's.

python -m experiments.audit target=FOLDER \\
    command="python -m experiments.audits.endpoint url=http://127.0.0.1:8000/v1 model=NAME"
"""

import json
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

from omegaconf import MISSING

from experiments.audits.sampler import Request, Sampler, serve
from experiments.terminal.options import start


@dataclass
class Endpoint:
    """python -m experiments.audits.endpoint url=http://127.0.0.1:8000/v1 model=NAME: answer
    requests of an audit on standard input by a completions endpoint."""

    url: str = MISSING  # of the API, such as http://127.0.0.1:8000/v1
    model: str = MISSING  # as the server calls it
    timeout: float = 600.0  # seconds


class Completions(Sampler):
    """Raises ValueError where the server cannot be reached, refuses, or gives no token ids."""

    def __init__(self, url: str, model: str, timeout: float = 600.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {url!r}")
        self.url, self.model, self.timeout = f"{url.rstrip('/')}/completions", model, timeout

    def sample(self, request: Request) -> list[list[int]]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": request.prompt,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": 1.0 if request.top_p is None else request.top_p,
            # without it, a server may take the model's own generation config
            "top_k": -1 if request.top_k is None else request.top_k,
            "n": request.samples,
            "seed": request.seed,
            "return_token_ids": True,
        }
        sent = HttpRequest(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urlopen(sent, timeout=self.timeout) as answer:
                choices = json.load(answer)["choices"]
        except HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise ValueError(f"{self.url} refused the request ({error.code}): {said}") from error
        except URLError as error:
            raise ValueError(f"{self.url} cannot be reached: {error.reason}") from error
        rows = [choice.get("token_ids") for choice in choices]
        if not all(isinstance(row, list) for row in rows):
            raise ValueError(
                f"{self.url} gave no token_ids in its choices; a server has to support "
                "return_token_ids, because text does not tell which tokens it was sampled as"
            )
        return rows


def main(wanted: Endpoint) -> None:
    serve(Completions(wanted.url, wanted.model, wanted.timeout))


if __name__ == "__main__":
    start(main, Endpoint)
