"""A small model that guesses several tokens in one pass: its laws, its memory, its masks, bad
input, and training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import specdec
from drafters.pard import Pard
from experiments.training import pard, recipes
from experiments.training.loop import fit, optimisers
from specdec.state import State
from specdec.tree import TokenTree
from tests.models import VOCABULARY, build, lm, prompts, shared, similar
from tests.seldom import Seldom
from tests.test_train import settings, target_settings, texts

MASK = 90
assert texts  # a fixture


class Watched(Pard):
    """Keeps what it says: (a row's text, laws (D, V))."""

    seen: list[tuple[list[int], Tensor]]

    def propose(self, state: State, chance: Any) -> TokenTree:
        tree = super().propose(state, chance)
        for row, alive in enumerate(self._drafted if tree.num_nodes > 1 else []):
            if alive and state.on_host.room[row] > 1:
                self.seen.append((state.text(row), self._known[row].clone()))
        return tree


def watched(model: Any, **arguments: Any) -> Watched:
    made = Watched(model, **{"mask_token": MASK, "depth": 4, **arguments})
    made.seen = []
    return made


@torch.no_grad()
def checked(made: Watched, draft: Any, exact: float) -> set[int]:
    """All that it said is what the model says of the text with masks behind it. Returns how many
    laws there were."""
    for text, laws in made.seen:
        masks = [MASK] * (len(laws) - 1)
        logits = draft(input_ids=torch.tensor([text + masks]), use_cache=False).logits[0]
        torch.testing.assert_close(laws, logits[len(text) - 1 :], rtol=exact, atol=exact)
    return {len(laws) for _, laws in made.seen}


@pytest.mark.parametrize("tree", [{}, {"depth": 3, "branching": [3, 2, 1]}], ids=["chain", "tree"])
@pytest.mark.parametrize("name", ["llama_gqa", "mistral_window", "gemma3"])
def test_its_laws_are_those_of_one_pass_over_the_text_and_masks(name, tree):
    """In every round, whatever was accepted before: no mask is left in its memory."""
    target, draft = lm(name, torch.float64), similar(shared(name, torch.float64), noise=0.4)
    made = watched(draft, **tree)
    out = specdec.generate(
        target, prompts(9, 1, 5), drafter=made, temperature=1.0, max_new_tokens=40
    )
    accepted = {int(number) for step in out.steps for number in step.num_accepted[step.live]}
    assert {0, 1} <= accepted
    assert len(made.seen) > 12
    depths = checked(made, draft, 1e-4 if name == "gemma3" else 1e-9)
    assert max(depths) == made.shape.depth


def test_each_place_may_have_a_mask_of_its_own():
    made = watched(shared("llama_gqa"), mask_token=[3, 5, 8])
    specdec.generate(lm("llama_gqa"), prompts(6), drafter=made, max_new_tokens=4, temperature=1.0)
    text, laws = made.seen[0]
    with torch.no_grad():
        logits = shared("llama_gqa")(input_ids=torch.tensor([[*text, 3, 5, 8]])).logits[0]
    assert len(laws) == 3  # the bonus token is the last of four
    said = logits[len(text) - 1 :][: len(laws)]
    torch.testing.assert_close(laws, said, rtol=1e-4, atol=1e-4)


def test_siblings_are_drawn_from_the_recorded_law_of_their_depth():
    class Kept(Pard):
        def propose(self, state: State, chance: Any) -> TokenTree:
            tree = super().propose(state, chance)
            trees.append((tree, self._known.clone()))
            return tree

    trees: list[tuple[TokenTree, Tensor]] = []
    made = Kept(shared("llama_gqa"), MASK, depth=3, branching=[2, 2, 1], draw="wor")
    specdec.generate(lm("llama_gqa"), prompts(9), drafter=made, temperature=1.3, max_new_tokens=9)
    tree, known = trees[0]
    assert tree.law is specdec.SiblingLaw.WOR
    assert tree.q is not None
    laws = (known / 1.3).softmax(-1)
    for node in range(7):
        depth = int(tree.depths[0, node])
        torch.testing.assert_close(tree.q[0, node], laws[0, depth].to(tree.q.dtype))


def test_it_drafts_until_its_positions_end():
    """A draft model with half of the target's context."""
    target = lm("llama_gqa", torch.float64)
    draft = build("llama_gqa", torch.float64)
    draft.config.max_position_embeddings = 24
    plain = specdec.generate(target, prompts(9, 16), drafter="none", max_new_tokens=30)
    made = watched(draft)
    out = specdec.generate(target, prompts(9, 16), drafter=made, max_new_tokens=30)
    assert [row.tolist() for row in out.tokens] == [row.tolist() for row in plain.tokens]
    longest = max(len(text) for text, _ in made.seen)
    assert 24 - 2 * made.shape.depth < longest <= 24 - made.shape.depth


def test_left_out_of_rounds_it_catches_up():
    target, draft = lm("llama_gqa", torch.float64), similar(shared("llama_gqa", torch.float64))
    made = watched(draft, depth=3)
    specdec.generate(
        target, prompts(9, 5), drafter=Seldom(made), temperature=1.0, max_new_tokens=30
    )
    assert len(made.seen) > 4
    checked(made, draft, 1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "no pard_token.*mask_token=ID"),
        ({"mask_token": VOCABULARY}, f"mask_token must be an integer <= {VOCABULARY - 1}"),
        ({"mask_token": -1}, "mask_token must be an integer >= 0"),
        ({"mask_token": "<mask>"}, "mask_token must be an integer"),
        ({"mask_token": [1, VOCABULARY], "depth": 3}, "mask_token must be an integer"),
        ({"mask_token": [1, 2], "depth": 4}, "lists 2 tokens, and depth=4 needs 3"),
        ({"mask_token": 1, "draw": "static"}, "draw must be"),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Pard(shared("llama_gqa"), **arguments)


def test_it_needs_a_model_and_the_targets_tokens():
    with pytest.raises(ValueError, match=r"none is bundled; give model=FOLDER"):
        Pard()
    with pytest.raises(ValueError, match="a vocabulary of"):
        specdec.generate(
            lm("llama_gqa"), prompts(4), drafter=Pard("demo-draft", mask_token=0), max_new_tokens=3
        )


# ---------------------------------------------------------------------------------------- training


def test_training_sees_what_drafting_sees():
    """With a window per anchor, the loss is that of passes over each text with masks behind it."""
    target, draft = shared("llama_gqa"), build("llama_gqa", seed=4)
    ids, block = torch.tensor(prompts(10, 10)), 4
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = pard.loss(draft, target, ids, "kl", block, 100, MASK, 0.5, random)
        p = target(input_ids=ids).logits.softmax(-1)
        parts: list[list[Tensor]] = [[] for _ in range(block)]
        for row in range(len(ids)):
            for root in range(ids.shape[1]):
                text = [*ids[row, : root + 1].tolist(), *[MASK] * (block - 1)]
                q = draft(input_ids=torch.tensor([text])).logits[0, root:].log_softmax(-1)
                for depth in range(block if root + block <= ids.shape[1] else 1):
                    law = p[row, root + depth]
                    parts[depth].append((law * (law.log() - q[depth])).sum())
    means = torch.stack([torch.stack(part).mean() for part in parts])
    weights = 0.5 ** torch.arange(block)
    torch.testing.assert_close(found, (means * weights).sum() / weights.sum(), rtol=1e-4, atol=1e-4)


def test_windows_without_room_for_a_block_are_refused():
    model, random = shared("llama_gqa"), torch.Generator()
    with pytest.raises(ValueError, match="no room for a block of 8"):
        pard.loss(model, model, torch.tensor(prompts(7)), "kl", 8, 4, MASK, 1.0, random)


def test_a_recipe_from_a_folder_of_text(texts: Path, tmp_path: Path) -> None:
    """Its config names the mask, so that the drafter needs no further setting."""
    recipes.train(target_settings(texts, tmp_path / "t"), tmp_path / "t", "cpu")
    target = str(tmp_path / "t" / "model")
    small = settings(
        texts,
        tmp_path / "d",
        "drafter=pard",
        "drafter.block=4",
        "drafter.drafter={depth: 4}",
        f"target={target}",
    )
    recipes.train(small, tmp_path / "d", "cpu")
    log = json.loads((tmp_path / "d" / "checkpoint" / "log.json").read_text())
    assert {"agreement", "overlap", "kl", "tau"} <= set(log[-1])
    drafter = {"name": "pard", "model": str(tmp_path / "d" / "model"), "depth": 3}
    out = specdec.generate(target, "def f", drafter=drafter, max_new_tokens=6)
    plain = specdec.generate(target, "def f", drafter="none", max_new_tokens=6)
    assert out.tokens[0].tolist() == plain.tokens[0].tolist()
    config = json.loads((tmp_path / "d" / "model" / "config.json").read_text())
    assert config["pard_token"] == config["eos_token_id"]


@pytest.mark.slow
def test_ten_sequences_are_learnt_by_heart(tmp_path):
    """The greedy continuations of ten prompts by a random target, all of a block of four."""
    target, openings = lm("llama_gqa"), prompts(*[4] * 10)
    written = specdec.generate(target, openings, drafter="none", max_new_tokens=28).tokens
    ids = torch.from_numpy(
        np.array(
            [[*opening, *row.tolist()] for opening, row in zip(openings, written, strict=True)]
        )
    )
    draft = build("llama_gqa", seed=7).train()

    def loss_of(step: int) -> Tensor:
        random = torch.Generator().manual_seed(step)
        return pard.loss(draft, target.model, ids, "ce", 4, 16, MASK, 0.9, random)

    rates = optimisers(draft, 0.02, 5e-3, vocabulary=target.vocabulary)
    fit(draft, loss_of, dict, rates, tmp_path, steps=400, warmup=10, every=400)
    made = Pard(draft.eval(), MASK, depth=4, draw="topk")
    out = specdec.generate(target, openings, drafter=made, max_new_tokens=28)
    assert out.report.acceptance_rate > 0.9
    assert out.report.tau > 4  # of 5
