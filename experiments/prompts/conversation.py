"""Turns -> token ids. What is said later follows the model's own answer to what was said before."""

from collections.abc import Collection, Sequence
from typing import Any

from experiments.prompts.prompt import Prompt

BETWEEN = "\n\n"  # an answer and the next turn, where there is no chat template


def uses_chat(tokenizer: Any, chat: bool | None) -> bool:
    """chat: true, false, or null for whether the tokenizer has a chat template. Raises ValueError
    for a template that is not there."""
    has = getattr(tokenizer, "chat_template", None) is not None
    if chat and not has:
        raise ValueError(
            "prompts.chat=true, and the target's tokenizer has no chat template; set "
            "prompts.chat=false"
        )
    return has if chat is None else chat


class Conversation:
    """A prompt as one way of decoding plays it: `ids` is what it is given in this turn.

    With a chat template the answers become text and the whole conversation is put through the
    template again. Without, the tokens stay, and the next turn comes below them.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any, chat: bool, ends: Collection[int]) -> None:
        self.tokenizer, self.chat, self.ends = tokenizer, chat, ends
        self._coming = list(prompt.later)
        thinking = {} if prompt.thinking is None else {"enable_thinking": prompt.thinking}
        self._template: dict[str, Any] = {"add_generation_prompt": True, **thinking}
        self._said: list[dict[str, str]] = []
        self.ids: list[int] = []
        self._say(prompt.text)
        if prompt.tokens is not None:
            self.ids = self._of_length(prompt, prompt.tokens)

    @property
    def over(self) -> bool:
        """Whether this turn is the last."""
        return not self._coming

    def answer(self, tokens: Sequence[int]) -> None:
        """What the model said in this turn; then the next one begins."""
        kept = list(tokens[:-1] if tokens and tokens[-1] in self.ends else tokens)
        self._said.append(
            {"role": "assistant", "content": self.tokenizer.decode(kept, skip_special_tokens=True)}
        )
        if not self.chat:
            self.ids = self.ids + kept + self._encode(BETWEEN)
        self._say(self._coming.pop(0))

    def _say(self, text: str) -> None:
        first = not self._said
        self._said.append({"role": "user", "content": text})
        if self.chat:
            whole = self.tokenizer.apply_chat_template(self._said, tokenize=False, **self._template)
            self.ids = self._encode(whole)  # special tokens stand in the template
        else:
            self.ids = (
                list(self.tokenizer(text)["input_ids"]) if first else self.ids + self._encode(text)
            )

    def _of_length(self, prompt: Prompt, tokens: int) -> list[int]:
        """The opening's last tokens, behind special ones and, where it is short, other texts.
        Raises ValueError where there are too few of those, and with a chat template, which leaves
        no place for them."""
        if self.chat:
            raise ValueError(
                "prompts.tokens cuts through a chat template; set prompts.chat=false, or "
                "prompts.tokens=null"
            )
        special = list(self.tokenizer("")["input_ids"])
        ids = self.ids[len(special) :]
        for text in reversed(prompt.before):
            if len(special) + len(ids) >= tokens:
                break
            ids = self._encode(text + BETWEEN) + ids
        if len(special) + len(ids) < tokens:
            raise ValueError(
                f"prompts.tokens={tokens}, and all texts of the source together are "
                f"{len(special) + len(ids)} tokens; ask for fewer, or give more prompts"
            )
        return [*special, *ids[len(ids) - (tokens - len(special)) :]]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def most_tokens(prompt: Prompt, tokenizer: Any, chat: bool, max_new_tokens: int) -> int:
    """How long the last turn's ids become when every answer is as long as it may be."""
    talk = Conversation(prompt, tokenizer, chat, ())
    while not talk.over:
        talk.answer([])
    return len(talk.ids) + len(prompt.later) * max_new_tokens
