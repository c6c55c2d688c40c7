"""What a target and a draft model with another tokenizer have in common.

python -m experiments.vocabularies draft=FOLDER target=demo text=FILE_OR_FOLDER

How many tokens both have; how much of the target's law (p) and of the draft model's (q) is on
these tokens, the mean over the positions of texts, at temperature 1; and how often the newest
tokens of the target change pieces that the draft model has read.

Letters: T tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import MISSING

from experiments.terminal.options import start

if TYPE_CHECKING:
    from torch import Tensor

    from specdec import LanguageModel


@dataclass
class Vocabularies:
    """python -m experiments.vocabularies draft=FOLDER: what the vocabularies of a target and a
    draft model have in common."""

    draft: str = MISSING
    target: str = "demo"
    text: str | None = None  # a file, a folder or JSON lines; null: the demo's prompts
    limit: int = 16  # texts
    tokens: int = 256  # of each text, at most


class Common(NamedTuple):
    """What is counted. Masses are shares of 1; they are means over positions."""

    target_tokens: int
    draft_tokens: int
    shared: int
    p_inside: float
    q_inside: float
    read_again: float  # pieces that changed after they were read, per piece of the final text


def compare(
    target: "LanguageModel", draft: "LanguageModel", texts: list[str], tokens: int
) -> Common:
    """Raises ValueError for models without a tokenizer, and for texts without a token."""
    import torch

    from specdec.models.translation import INTERSECTION, Text, between

    both = between(draft, target, INTERSECTION)
    known = torch.zeros(draft.vocabulary, dtype=torch.bool, device=draft.device)
    known[both.into[both.shared]] = True
    p: list[Tensor] = []
    q: list[Tensor] = []
    again = pieces = 0
    for text in texts:
        ids = target.tokenizer(text)["input_ids"][:tokens]
        if not ids:
            continue
        written = Text(both, draft.context)
        held = 0
        for token in ids:
            written.add([token])
            kept, unread = written.unread()
            again += held - kept
            held = kept + len(unread)
        pieces += held
        p.append(_inside(target, ids, both.shared))
        q.append(_inside(draft, written.held, known))
    if not p:
        raise ValueError("there is no token in the texts; give text=FILE with some text")
    masses = [float(torch.cat(found).mean()) for found in (p, q)]
    sizes = both.target.num_tokens, both.draft.num_tokens
    return Common(*sizes, both.num_shared, *masses, again / pieces)


def _inside(model: "LanguageModel", ids: list[int], inside: "Tensor") -> "Tensor":
    """(T,) the mass of the law after each token that is on the tokens `inside` (V,)."""
    import torch

    with torch.inference_mode(), model.open(1, len(ids)) as session:
        tokens = torch.tensor([ids], device=model.device)
        law = session.read(tokens, [len(ids)], every=True).logits[0].float().softmax(-1)
        return (law * inside).sum(-1)


def main(wanted: Vocabularies) -> None:
    from experiments.prompts.sources import BUNDLED
    from experiments.store import texts
    from experiments.system.libraries import quiet_transformers
    from specdec import load

    quiet_transformers()
    found = compare(
        load(wanted.target),
        load(wanted.draft),
        list(texts(wanted.text or str(BUNDLED)))[: wanted.limit],
        wanted.tokens,
    )
    print(
        f"{wanted.target}: {found.target_tokens:,} tokens; {wanted.draft}: "
        f"{found.draft_tokens:,}; both: {found.shared:,}\n"
        f"mass on these: p {found.p_inside:.1%}, q {found.q_inside:.1%}\n"
        f"pieces read again: {found.read_again:.1%}"
    )


if __name__ == "__main__":
    start(main, Vocabularies)
