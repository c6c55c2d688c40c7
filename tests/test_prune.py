"""Drafters made out of targets by setting weights to zero."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import specdec
from experiments import prune
from experiments.report.knobs import _sparsity
from experiments.training import pruning
from tests.models import build


def test_the_smallest_weights_go():
    score = torch.tensor([[4.0, 1, 3, 2, 8, 5, 7, 6], [1, 1, 1, 1, 0, 2, 2, 2]])
    gone = pruning.smallest(score, "unstructured", 0.25)
    assert gone.int().tolist() == [[0, 1, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0]]
    gone = pruning.smallest(score, "2:4", 0.5)
    assert gone.int().tolist() == [[0, 1, 0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 1, 1, 0, 0]]


def test_wanda_weighs_inputs_by_their_size():
    """|W| * ||x||: the smallest weight stays if its input is large."""
    layer = nn.Linear(4, 1, bias=False)
    texts = [torch.tensor([[1, 2, 3, 4]])]
    model = build("llama_gqa")
    inner = model.model.layers[0].mlp.up_proj
    found = pruning.inputs(model, [inner, layer], texts)
    seen = []
    hook = inner.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(input_ids=texts[0])
    hook.remove()
    assert torch.allclose(found[inner], seen[0][0].norm(dim=0), rtol=1e-4)
    assert found[layer] == 1.0  # it was not reached
    made = pruning.pruned(model, "wanda", "unstructured", 0.5, texts)
    first = model.model.layers[0].self_attn.q_proj
    sizes = pruning.inputs(model, [first], texts)[first]
    gone = pruning.smallest(first.weight.abs() * sizes, "unstructured", 0.5)
    ours = made.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(ours == 0, gone)
    assert torch.equal(ours[~gone], first.weight[~gone])


@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.25), ("2:4", 0.5)])
def test_a_pruned_target_is_saved_loads_and_drafts(tiny, tmp_path, method, pattern, sparsity):
    (tmp_path / "text.txt").write_text("def read ( path ) : pass class Stack : return open " * 60)
    wanted = prune.Prune(
        output=str(tmp_path / "pruned"), target=str(tiny), text=str(tmp_path / "text.txt")
    )
    wanted.method, wanted.pattern, wanted.sparsity = method, pattern, sparsity
    wanted.places, wanted.batch, wanted.context = 4, 2, 8
    prune.main(wanted)
    folder = tmp_path / "pruned"
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "tokenizer.json"}
    draft, whole = specdec.load(folder), AutoModelForCausalLM.from_pretrained(tiny)
    assert pruning.zeros(draft.model) == pytest.approx(sparsity, abs=0.01)
    assert pruning.zeros(whole) == 0
    assert torch.equal(
        draft.model.get_input_embeddings().weight, whole.get_input_embeddings().weight
    )
    target = specdec.load(tiny)
    plain = specdec.generate(target, [1, 2, 3], drafter="none", max_new_tokens=12)
    drafter = {"name": "small_model", "model": draft}
    ours = specdec.generate(target, [1, 2, 3], drafter=drafter, max_new_tokens=12)
    assert torch.equal(plain.tokens[0], ours.tokens[0])
    assert specdec.generate(draft, [1, 2, 3], drafter="ngram", max_new_tokens=5).tokens
    with pytest.raises(ValueError, match="is there already"):
        prune.main(wanted)
    assert not list(tmp_path.glob(".pruned*"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("wonda", "unstructured", 0.5), "method must be magnitude or wanda, got 'wonda'"),
        (("wanda", "4:2", 0.5), "pattern must be"),
        (("wanda", "unstructured", 1.0), "sparsity is a share"),
        (("magnitude", "2:4", 0.25), "sparsity=0.5; got 0.25"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        pruning.pruned(build("llama_gqa"), *settings)


def test_inputs_that_are_no_fours():
    with pytest.raises(ValueError, match="a layer has 6"):
        pruning.smallest(torch.ones(2, 6), "2:4", 0.5)


@pytest.mark.parametrize(
    ("model", "share"), [("demo", 0), ("pruned/sparsity-0.4", 0.4), ("x/y", None)]
)
def test_sparsity_is_read_off_the_folders_name(model, share):
    class Of:
        drafter, name = {"model": model}, "demo"

    class Stub:
        effective = Of
        config = type("Config", (), {"target": Of})

    assert _sparsity(Stub) == share  # type: ignore[arg-type]
