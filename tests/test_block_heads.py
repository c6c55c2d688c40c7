"""Heads that guess a block in one pass: layouts, memory, conditional laws, bad input."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import specdec
from drafters.dflash import DFlash, DFlashHead
from drafters.dspark import DSpark
from specdec.heads.block import spread_taps
from specdec.models.language_model import TransformersLM
from specdec.sampling import Sampling
from tests.models import build, head, lm, prompts, published_block

KINDS = {"dflash": DFlash, "dspark": DSpark}


def decoded(drafter: Any, target: Any = None, temperature: float = 1.0) -> list[list[int]]:
    target = target or lm("llama_gqa", torch.float64)
    out = specdec.generate(
        target, prompts(9, 5), drafter=drafter, temperature=temperature, max_new_tokens=16, seed=2
    )
    return [row.tolist() for row in out.tokens]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_head_drafts_the_same(kind, tmp_path):
    made: Any = head(kind, lm("llama_gqa", torch.float64))
    made.save(tmp_path / "head")
    drafter = KINDS[kind]
    again = drafter(tmp_path / "head", draw="wor")
    assert decoded(again) == decoded(drafter(made, draw="wor"))


def published(kind: str, target: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A head in the releases' layout."""
    return published_block(head(kind, target))


def written(folder: Any, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_releases_layout_is_read(kind, tmp_path):
    """target_layer_ids are outputs of layers: one less than our taps. block_size counts the
    root."""
    target = lm("llama_gqa", torch.float64)
    made: Any = head(kind, target)
    folder = written(tmp_path / "head", *published(kind, target))
    loaded: Any = type(made).load(folder)
    assert loaded.settings == made.settings
    assert decoded(KINDS[kind](loaded, draw="wor")) == decoded(KINDS[kind](made, draw="wor"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("mask", "lacks dflash_config.mask_token_id"),
        ("outside", "mask_token must be"),
        ("missing", "missing: fc.weight"),
        ("left over", "not expected: extra.weight"),
        ("size", "block_size is 0; the root counts"),
    ],
)
def test_what_is_wrong_with_a_published_head_is_named(kind, broken, said, tmp_path):
    target = lm("llama_gqa", torch.float64)
    config, weights = published(kind, target)
    if broken == "mask":
        del config["dflash_config"]["mask_token_id"]
    elif broken == "outside":
        config["dflash_config"]["mask_token_id"] = target.vocabulary
    elif broken == "missing":
        del weights["fc.weight"]
    elif broken == "left over":
        weights["extra.weight"] = torch.zeros(2)
    else:
        config["block_size"] = 0
    with pytest.raises(ValueError, match=said):
        KINDS[kind](written(tmp_path / "head", config, weights))


@pytest.mark.parametrize("kind", KINDS)
def test_no_tree_is_deeper_than_the_block(kind):
    with pytest.raises(ValueError, match="guesses blocks of 3 tokens"):
        KINDS[kind](head(kind, lm("llama_gqa")), depth=4)


def test_a_layer_that_the_target_lacks_is_named():
    target = lm("llama_gqa")
    made = DFlashHead.for_target(target, taps=[1, 40], block=3)
    with pytest.raises(ValueError, match=r"reads layers \[1, 40\], the target has"):
        decoded(DFlash(made), target)


@pytest.mark.parametrize(("kind", "alike"), [("dflash", True), ("dspark", False)])
def test_markov_laws_are_conditional_on_the_token_before(kind, alike):
    """Behind two siblings DFlash has one law, DSpark two."""
    trees = []

    class Kept(KINDS[kind]):  # type: ignore[misc]
        def propose(self, state, chance):
            trees.append(super().propose(state, chance))
            return trees[-1]

    made = head(kind, lm("llama_gqa", torch.float64))
    decoded(Kept(made, depth=2, branching=[2, 1], draw="wor"))
    q = trees[0].q
    assert torch.equal(q[0, 1], q[0, 2]) is alike


def test_a_confident_chain_goes_on_and_an_unsure_one_ends():
    target = lm("llama_gqa", torch.float64)
    made: Any = head("dspark", target)
    for bias, drafted in ((50.0, True), (-50.0, False)):
        with torch.no_grad():
            made.confidence_head.weight.zero_()
            made.confidence_head.bias.fill_(bias)
        drafter = DSpark(made, draw="wor", stop={"confidence": 0.5})
        out = specdec.generate(
            target, prompts(9), drafter=drafter, temperature=1.0, max_new_tokens=8
        )
        assert (out.report.acceptance_rate is not None) is drafted


@pytest.mark.parametrize("least", [-0.1, 1.5, "much"])
def test_confidence_is_a_share(least):
    with pytest.raises(ValueError, match="confidence must be a number between 0 and 1"):
        DSpark(head("dspark", lm("llama_gqa")), draw="wor", stop={"confidence": least})


def test_the_memory_holds_the_context_only():
    """Blocks are scratch: as many committed tokens as the target's memory has."""
    target = lm("llama_gqa", torch.float64)
    seen = []

    class Watched(DFlash):
        def observe(self, state):
            super().observe(state)
            seen.append((list(self._memory.lengths), list(state.on_host.lengths)))

    decoded(Watched(head("dflash", target), draw="wor"))
    # What a round commits is read in the next one.
    for (held, _), (_, before) in zip(seen[1:], seen, strict=False):
        assert all(
            mine in (0, length - 1) or mine < length
            for mine, length in zip(held, before, strict=True)
        )
    assert max(seen[-1][0]) > 9


def test_taps_are_those_of_the_paper_where_there_are_enough_layers():
    assert spread_taps(6) == [1, 2, 3, 4, 5]
    assert spread_taps(36) == [2, 10, 18, 26, 34]


@pytest.mark.parametrize("name", ["llama_gqa", "gemma2"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_head_is_read_out_at_the_targets_scale(kind, name):
    model = build(name)
    scales = torch.linspace(1, 5, 32)
    with torch.no_grad():
        model.get_decoder().norm.weight.add_(scales)
    target = TransformersLM(model, name=name)
    made: Any = type(head(kind, lm("llama_gqa"))).for_target(target, block=3, anchors=5)
    state = torch.randn(1, 3, 32)
    torch.testing.assert_close(made.norm(state), target.final_norm(state), rtol=1e-4, atol=1e-4)
    assert made.anchors == 5
    with pytest.raises(ValueError, match="anchors must be an integer >= 1, got 0"):
        type(made).for_target(target, anchors=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_does_not_show_its_norm_gets_a_head_of_scale_one(kind, monkeypatch):
    target = TransformersLM(build("llama_gqa"), name="llama")
    with torch.no_grad():
        target.model.get_decoder().norm.weight.fill_(3)
    monkeypatch.setattr("specdec.models.layers.FINAL_NORMS", ("another_name",))
    assert target.final_norm(torch.randn(1, 1, 32)) is None
    made: Any = type(head(kind, lm("llama_gqa"))).for_target(target, block=3, anchors=5)
    assert made.anchors == 5
    assert torch.equal(made.norm.weight, torch.ones(32))


def test_laws_averaged_over_the_token_before(monkeypatch):
    """By hand, over all tokens: m_1 = sum_x m_0(x) softmax(U_1 + W1[x] W2). Then every node of a
    depth has one law."""
    target, trees = lm("llama_gqa", torch.float64), []
    monkeypatch.setattr("drafters.dspark.MARGINAL", target.vocabulary)
    made: Any = head("dspark", target)

    class Kept(DSpark):
        def propose(self, state, chance):
            trees.append(super().propose(state, chance))
            return trees[-1]

    drafter = Kept(made, conditional=False, depth=2, branching=[2, 1], draw="wor")
    decoded(drafter)
    assert torch.equal(trees[0].q[0, 1], trees[0].q[0, 2])

    drafter.begin(target, 1, Sampling(1.0))
    random = torch.Generator().manual_seed(0)
    block = torch.randn(1, 2, target.vocabulary, generator=random, dtype=torch.float64)
    found = drafter._averaged(block, torch.tensor([5])).softmax(-1)[0]
    every = torch.arange(target.vocabulary)
    first = made.after(block[0, 0], torch.tensor(5)).softmax(-1)
    below = made.after(block[0, 1].expand(len(every), -1), every).softmax(-1)
    torch.testing.assert_close(found, torch.stack([first, first @ below]))
