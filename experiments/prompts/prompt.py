"""What a run decodes: a text, or several that are said one after the other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    index: int  # its number in the source: it keys the prompt's random draws
    text: str  # the first turn
    category: str
    later: tuple[str, ...] = ()  # the turns that follow the model's answers
    tokens: int | None = None  # cut or filled up to that many, if given
    thinking: bool | None = None  # for the chat template; None: as it has it
    before: tuple[str, ...] = ()  # what fills it up: the source's other texts, the nearest last

    @property
    def turns(self) -> tuple[str, ...]:
        return (self.text, *self.later)
