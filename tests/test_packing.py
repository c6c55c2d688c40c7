"""Documents that share a window of training text: states and guesses are those of each document
alone; and a block's training sees what its drafting sees."""

from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.training.head import loss_of
from experiments.training.teacher import Teacher
from specdec.heads.features import FeatureHead
from specdec.heads.head import Guess
from specdec.heads.packing import documents_of
from specdec.models.language_model import TransformersLM
from tests import models
from tests.models import HEADS, lm, prompts
from tests.test_heads import drafter, standing

END = 3
KINDS = ("eagle", "eagle3", "dflash", "dspark", "medusa", "mtp")


def target_with_end(name: str) -> TransformersLM:
    model = models.build(name, torch.float64)
    model.generation_config.eos_token_id = END
    return TransformersLM(model, name=name)


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Two documents (1, T) and the window that holds both."""
    first, second = (torch.tensor([row]) for row in prompts(11, 12, seed=5))
    first[first == END], second[second == END] = END + 1, END + 1
    first[0, -1] = END
    return first, second, torch.cat([first, second], 1)


def test_documents_by_hand():
    found = documents_of(torch.tensor([[7, END, 5, 6, END, END, 8]]), [END])
    assert found.number.tolist() == [[0, 0, 1, 1, 1, 2, 3]]
    assert found.position.tolist() == [[0, 1, 0, 1, 2, 0, 0]]
    one = documents_of(torch.tensor([[7, END, 5]]), ())
    assert one.number.tolist() == [[0, 0, 0]]
    assert one.position.tolist() == [[0, 1, 2]]


def test_guesses_about_another_document_do_not_count():
    """At offset 2: the last two of a document look beyond its end."""
    documents = documents_of(torch.tensor([[7, 5, 6, END, 8, 9, 4]]), [END])
    guess = Guess(torch.zeros(1, 5, 4), 2)
    assert guess.counts(documents).tolist() == [[True, False, False, False, True]]
    at = Guess(torch.zeros(1, 2, 4), 1, anchors=torch.tensor([[1, 2]]))
    assert at.counts(documents).tolist() == [[True, False]]
    whole = documents_of(torch.tensor([[7, 5, 6, END, 8, 9, 4]]), ())
    assert guess.counts(whole).all()


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "gemma3"])
def test_states_are_those_of_each_document_alone(name):
    target = target_with_end(name)
    first, second, both = texts()
    apart, joined = (Teacher(target, (1,), one).states(both) for one in (True, False))
    alone = torch.cat([Teacher(target, (1,)).states(one) for one in (first, second)], 1)
    torch.testing.assert_close(apart, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(joined, alone, rtol=1e-2, atol=1e-2)


def said(kind: str, target: TransformersLM, ids: Tensor, apart: bool) -> list[tuple[Any, Any]]:
    """Of each depth: the guess, and the positions that it was made at."""
    head: Any = models.head(kind, target)
    head.apart, head.anchors = apart, ids.shape[1]  # at every anchor
    if isinstance(head, FeatureHead):
        head.steps = 3
    teacher = Teacher(target, head.taps, apart)
    lesson = teacher.lesson(ids, teacher.states(ids))
    with torch.no_grad():
        found = head.guesses(ids, lesson.taps, target)
    places = [
        torch.arange(guess.logits.shape[1]) if guess.anchors is None else guess.anchors[0]
        for guess in found
    ]
    return list(zip(found, places, strict=True))


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window"])
@pytest.mark.parametrize("kind", KINDS)
def test_guesses_are_those_of_each_document_alone(kind, name):
    target = target_with_end(name)
    first, second, both = texts()
    documents = documents_of(both, [END])
    checked = 0
    for start, alone in ((0, first), (first.shape[1], second)):
        pairs = zip(said(kind, target, both, True), said(kind, target, alone, False), strict=True)
        for (packed, where), (own, places) in pairs:
            assert packed.counts(documents).shape == packed.logits.shape[:2]
            for index, place in enumerate(places.tolist()):
                at = (where == place + start).nonzero()
                if len(at):
                    ours = packed.logits[0, int(at[0])]
                    torch.testing.assert_close(ours, own.logits[0, index], rtol=1e-4, atol=1e-4)
                    checked += 1
    assert checked > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_does_not_see_what_follows_the_end(kind):
    """Another second document that guesses say nothing about changes nothing for the first."""
    target = target_with_end("llama_gqa")
    head: Any = models.head(kind, target)
    head.apart, head.anchors = True, 64
    teacher = Teacher(target, head.taps, True)

    def loss(ids: Tensor) -> float:
        with torch.no_grad():
            return float(
                loss_of(head, teacher, teacher.lesson(ids, teacher.states(ids)), "kl", 0.8)
            )

    first, _, _ = texts()
    one, other = (torch.cat([first, torch.tensor([[END] * 4 + [last]])], 1) for last in (5, 6))
    assert loss(one) == pytest.approx(loss(other), rel=1e-6)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window"])
@pytest.mark.parametrize("kind", ["dflash", "dspark"])
def test_a_block_in_training_sees_what_it_sees_when_it_drafts(kind, name):
    """The logits of a round's block, and those of training with the same root, where the text is
    longer than the window."""
    target, text = lm(name, torch.float64), torch.tensor(prompts(9)[0])
    made: Any = drafter(kind, target, {"draw": "topk"})
    made.heads.anchors = 64
    with torch.inference_mode():
        state = standing(made, target, text)
        made._guess(made._brought(state), state)
        known = made._known
        longer = torch.cat([text, text[:4]])
        teacher = Teacher(target, made.heads.taps)
        taps = teacher.lesson(longer[None], teacher.states(longer[None])).taps
        guesses = made.heads.guesses(longer[None], taps, target)
    for depth, guess in enumerate(guesses):
        at = int((guess.anchors[0] == len(text) - 1).nonzero()[0])
        tokens = longer[len(text) - 1 + depth][None]
        with torch.inference_mode():
            drafted = made._heads.after(known[:, depth], tokens)[0]
        torch.testing.assert_close(guess.logits[0, at], drafted, rtol=1e-6, atol=1e-6)


def test_every_kind_that_attends_is_tested():
    assert set(HEADS) - {"hydra_heads"} == set(KINDS)
