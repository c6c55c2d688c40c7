"""P-EAGLE: an EAGLE-3 head with mask states, all depths in one pass."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec
from drafters.eagle3 import Eagle3, Eagle3Head
from experiments.training.head import loss_of
from experiments.training.loop import fit, optimisers
from experiments.training.teacher import Teacher
from specdec.heads.head import random_head
from specdec.heads.parallel import parallel_guesses
from specdec.models.language_model import TransformersLM
from specdec.models.support import layer_kinds
from specdec.state import State
from specdec.tree import TokenTree
from tests.models import continued, lm, prompts
from tests.seldom import Seldom

DEPTHS = 4


def head_for(target: TransformersLM, depths: int = DEPTHS) -> Eagle3Head:
    """A random one, over two thirds of the target's tokens."""
    size = target.vocabulary * 2 // 3
    frequency = torch.randn(target.vocabulary, generator=torch.Generator().manual_seed(3))
    return random_head(
        lambda: Eagle3Head.for_target(
            target, draft_vocabulary=size, frequency=frequency, depths=depths
        ),
        target.dtype,
        0.2,
    )


class Watched(Eagle3):
    """Keeps what it says: (a row's text, laws (D, V))."""

    seen: list[tuple[Tensor, Tensor]]

    def propose(self, state: State, chance: Any) -> TokenTree:
        tree = super().propose(state, chance)
        for row, alive in enumerate(state.on_host.live if tree.num_nodes > 1 else []):
            if alive and state.on_host.room[row] > 1 and state.on_host.lengths[row] > 1:
                text = torch.tensor(state.text(row))
                self.seen.append((text, self._known[row].clone()))
        return tree


@torch.no_grad()
def reread(head: Eagle3Head, target: TransformersLM, text: Tensor, depths: int) -> Tensor:
    """(D, V') of a text (T,), without a memory and in one pass."""
    hidden = target.model(
        input_ids=text[None, :-1], output_hidden_states=True, use_cache=False
    ).hidden_states
    taps = torch.stack([hidden[tap] for tap in head.taps], 2)
    embedding, feature = head.masks()
    unknown = (1, depths - 1, -1)
    positions = torch.arange(len(text) + depths - 2)[None]
    back = positions[0][:, None] - positions
    window = layer_kinds(head.decoder.config)[0].size
    visible = (back >= 0) & (back < (window or len(text) + depths))
    mask = torch.zeros(visible.shape, dtype=target.dtype).masked_fill(~visible, -torch.inf)
    out = head(
        torch.cat([head.embed(text[None, 1:], target), embedding.expand(unknown)], 1),
        torch.cat([head.fuse(taps), feature.expand(unknown)], 1),
        positions,
        mask[None, None],
        None,
        use_cache=False,
    )
    return head.logits(out, target)[0, len(text) - 2 :]


@pytest.mark.parametrize("tree", [{}, {"depth": 3, "branching": [3, 2, 1]}], ids=["chain", "tree"])
@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window"])
def test_its_laws_are_those_of_one_pass_over_pairs_and_masks(name, tree):
    """In every round, whatever was accepted before, also behind a prompt of one token."""
    target = lm(name, torch.float64)
    head = head_for(target)
    made = Watched(head, **{"depth": DEPTHS, "draw": "wor", **tree})
    made.seen = []
    out = specdec.generate(
        target, prompts(9, 1, 6), drafter=made, temperature=3.0, max_new_tokens=30
    )
    accepted = {int(number) for step in out.steps for number in step.num_accepted[step.live]}
    assert {0, 1} <= accepted
    assert len(made.seen) > 30
    for text, laws in made.seen:
        said = reread(head, target, text, made.shape.depth)
        torch.testing.assert_close(laws[:, head.token_ids], said, rtol=1e-9, atol=1e-9)
        rest = laws.clone()
        rest[:, head.token_ids] = -torch.inf
        assert torch.equal(rest, torch.full_like(rest, -torch.inf))


def test_left_out_of_rounds_it_catches_up():
    target = lm("llama_gqa", torch.float64)
    head = head_for(target)
    made = Watched(head, depth=2, draw="wor")
    made.seen = []
    specdec.generate(
        target, prompts(9, 5), drafter=Seldom(made), temperature=1.0, max_new_tokens=30
    )
    assert len(made.seen) > 4
    for text, laws in made.seen:
        said = reread(head, target, text, 2)
        torch.testing.assert_close(laws[:, head.token_ids], said, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "gemma2"])
def test_training_sees_what_drafting_sees(name):
    target, text = lm(name, torch.float64), torch.tensor(prompts(12)[0])
    head = head_for(target)
    with torch.no_grad():
        hidden = target.model(
            input_ids=text[None], output_hidden_states=True, use_cache=False
        ).hidden_states
        taps = torch.stack([hidden[tap] for tap in head.taps], 2)
        guesses = parallel_guesses(head, text[None], taps, target)
    assert [guess.offset for guess in guesses] == [1, 2, 3, 4]
    exact = 1e-4 if name == "gemma2" else 1e-9  # eager attention takes its softmax in float32
    roots = len(text) - 1 - (DEPTHS - 1)  # more than these have no room for all depths
    assert guesses[1].logits.shape[1] == roots
    for at in range(roots):
        said = reread(head, target, text[: at + 2], DEPTHS)
        for depth, guess in enumerate(guesses):
            torch.testing.assert_close(guess.logits[0, at], said[depth], rtol=exact, atol=exact)


def test_a_saved_head_drafts_the_same(tmp_path):
    target = lm("llama_gqa", torch.float64)
    head = head_for(target)
    head.save(tmp_path / "head")
    settings = json.loads((tmp_path / "head" / "config.json").read_text())["settings"]
    assert settings["depths"] == DEPTHS
    runs = [
        specdec.generate(
            target,
            prompts(9, 5),
            drafter=Eagle3(heads, depth=DEPTHS, draw="wor"),
            temperature=1.0,
            max_new_tokens=16,
        )
        for heads in (head, tmp_path / "head")
    ]
    first, second = ([row.tolist() for row in out.tokens] for out in runs)
    assert first == second


def test_it_may_draft_one_token_per_pass():
    """parallel=False leaves the masks out: another draft, the same tokens."""
    target = lm("llama_gqa", torch.float64)
    head = head_for(target)
    made = Eagle3(head, parallel=False, depth=6, draw="topk")
    assert not made.settings_in_effect()["parallel"]
    plain = specdec.generate(target, prompts(9, 5), drafter="none", max_new_tokens=16)
    out = specdec.generate(target, prompts(9, 5), drafter=made, max_new_tokens=16)
    assert [row.tolist() for row in out.tokens] == [row.tolist() for row in plain.tokens]


def test_bad_settings_are_named(tmp_path):
    target = lm("llama_gqa")
    head = head_for(target)
    with pytest.raises(ValueError, match=r"has no mask states.*drafter=peagle"):
        Eagle3(head_for(target, 1), parallel=True)
    with pytest.raises(ValueError, match=r"depth=5, but the eagle3 head guesses 4 tokens"):
        Eagle3(head)
    with pytest.raises(ValueError, match="parallel must be True or False, got 1"):
        Eagle3(head, parallel=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"depths must be an integer >= 1, got 0"):
        Eagle3Head.for_target(target, depths=0)
    with pytest.raises(ValueError, match="guesses 4 tokens in one pass"):
        head.to_speculators("target", ["LlamaForCausalLM"])
    with pytest.raises(ValueError, match="no room for 4 depths"):
        head.guesses(torch.tensor(prompts(4)), torch.zeros(1, 4, 3, head.hidden_size), target)
    head.save(tmp_path / "head")
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    config["settings"]["depths"] = 1
    (tmp_path / "head" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"not expected: mask_embedding, mask_hidden"):
        Eagle3Head.load(tmp_path / "head")


@pytest.mark.slow
def test_ten_sequences_are_learnt_by_heart(tmp_path):
    """The greedy continuations of ten prompts by a random target, four tokens a pass."""
    target, openings = lm("llama_gqa"), prompts(*[4] * 10)
    texts = continued(target, openings, 28)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = Eagle3Head.for_target(target, depths=DEPTHS)
    teacher = Teacher(target, head.taps)
    lesson = teacher.on_the_fly(lambda step: texts)(0)
    rates = optimisers(head, 0.02, 5e-3, vocabulary=target.vocabulary)
    fit(
        head,
        lambda step: loss_of(head, teacher, lesson, "ce", 0.9),
        dict,
        rates,
        tmp_path,
        steps=400,
        warmup=10,
        every=400,
    )
    made = Eagle3(head.eval(), depth=DEPTHS, draw="topk")
    out = specdec.generate(target, openings, drafter=made, max_new_tokens=28)
    assert out.report.acceptance_rate > 0.9
    assert out.report.tau > 4  # of 5
