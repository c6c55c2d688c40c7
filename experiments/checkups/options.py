"""What the programs that check a pair or a head are told. Nothing heavy is imported here: `--help`
reads it."""

from dataclasses import dataclass


@dataclass
class CheckOptions:
    target: str | None = None
    # loops flatter every drafter, and they are most frequent at 0
    temperature: float = 0.6
    top_k: int | None = None
    top_p: float | None = None
    prompts: str = "demo"  # or a file of JSON lines
    limit: int | None = 8  # prompts; null: all
    chat: bool | None = None  # through the chat template; null: where the tokenizer has one
    max_new_tokens: int = 64
    device: str | None = None
    dtype: str | None = None  # of the target; null: the checkpoint's
    seed: int = 0
    threads: int | None = None
    json: bool = False  # one JSON object instead of sentences
    progress: bool = True
