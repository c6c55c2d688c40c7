"""Layers that a `device_map` leaves on a disk, with the tokens of the model on one device."""

import copy

import pytest
import torch
from accelerate import dispatch_model

import specdec
from specdec import Refused, threads
from specdec.errors import Unsupported
from specdec.models.language_model import TransformersLM
from tests import models

LLAMA = "llama_gqa"


def device_map(model, one, other):
    """The upper layers, the norm and the head on another device."""
    layers = model.config.num_hidden_layers
    of_layers = {f"model.layers.{n}": one if n < layers // 2 else other for n in range(layers)}
    ends = {"model.embed_tokens": one, "model.rotary_emb": one, "model.norm": other}
    return {**ends, **of_layers, "lm_head": other}


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Half of a model is on a disk."""
    model = copy.deepcopy(models.shared(LLAMA))
    folder = tmp_path_factory.mktemp("offload")
    placed = dispatch_model(model, device_map(model, "cpu", "disk"), offload_dir=folder)
    return TransformersLM(placed, name="offloaded")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kv", ["model", "int8"])
def test_tokens_are_those_of_one_device(on_disk, temperature, kv):
    whole, prompts = models.lm(LLAMA), models.prompts(5, 9)
    draft = models.similar(models.shared(LLAMA))
    for drafter in ("none", {"name": "small_model", "model": specdec.load(draft), "depth": 3}):
        ours, theirs = (
            specdec.generate(
                target.with_kv(specdec.KV.asked(kv)) if kv == "int8" else target,
                prompts,
                drafter=drafter,
                temperature=temperature,
                max_new_tokens=12,
                seed=3,
            )
            for target in (on_disk, whole)
        )
        assert [row.tolist() for row in ours.tokens] == [row.tolist() for row in theirs.tokens]


def test_weights_are_on_the_disk_between_passes(on_disk):
    upper = on_disk.model.model.layers[-1].mlp.up_proj.weight
    assert (upper.device.type, on_disk.device.type) == ("meta", "cpu")
    assert on_disk.spread == ["cpu", "disk"]


def test_a_draft_model_may_be_spread_too(on_disk):
    prompts = models.prompts(6)
    drafted, plain = (
        specdec.generate(models.lm(LLAMA), prompts, drafter=drafter, max_new_tokens=10)
        for drafter in ({"name": "small_model", "model": on_disk, "depth": 3}, "none")
    )
    assert drafted.tokens[0].tolist() == plain.tokens[0].tolist()
    assert drafted.report.acceptance_rate == 1


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda lm: lm.open(1, 8, compile=True), "compiled passes do not work"),
        (lambda lm: TransformersLM(lm.model, compile=True), "compiled passes do not work"),
        (lambda lm: lm.open(1, 8, kv=specdec.KV("paged")), r"pages .* does not work"),
        (lambda lm: lm.without([0], []), r"layer_skip, early_exit\) does not work"),
        (lambda lm: lm.lower(1), r"layer_skip, early_exit\) does not work"),
        (lambda lm: lm.excerpt(1, 4, 4, 4), r"sparse_self\) does not work"),
        (lambda lm: lm.check_head(), "heads, which share its embedding"),
        (lambda lm: lm.embed(torch.zeros(1, dtype=torch.long)), "heads, which share its embedding"),
        (lambda lm: lm.head_weight, "heads, which share its embedding"),
        (lambda lm: specdec.load(lm, quantize="int8"), "quantize makes layers of its own"),
        (lambda lm: specdec.load(lm.model, extra_layers=1), "extra_layers makes layers"),
    ],
    ids=[
        "compiled session",
        "compiled target",
        "pages",
        "sublayers left out",
        "lower layers",
        "excerpt",
        "head",
        "embedding",
        "head weight",
        "quantize",
        "extra layers",
    ],
)
def test_what_does_not_work_is_refused_by_name(on_disk, asked, words):
    with pytest.raises(Refused, match=words) as error:
        asked(on_disk)
    assert "several devices (cpu, disk)" in str(error.value)


@pytest.mark.parametrize("drafter", ["layer_skip", "early_exit", "sparse_self", "eagle"])
def test_drafters_that_use_the_targets_layers_are_refused(on_disk, drafter):
    whole = models.lm(LLAMA)
    skip = {"layers": whole.layers, "attention": [1], "mlp": [0]}
    arguments = {
        "layer_skip": {"skip": skip},
        "early_exit": {"exit": 1},
        "sparse_self": {},
        "eagle": {"heads": models.head("eagle", whole)},
    }
    with pytest.raises(Refused, match="several devices"):
        specdec.generate(
            on_disk,
            models.prompts(6),
            drafter={"name": drafter, **arguments[drafter]},
            max_new_tokens=4,
        )


def test_threads_are_not_measured(on_disk, monkeypatch):
    monkeypatch.setattr(threads, "_default", lambda: torch.get_num_threads())
    monkeypatch.setattr(threads, "candidates", lambda most: [1, most + 1])
    monkeypatch.setattr(threads, "timed", lambda *_: pytest.fail("measured"))
    threads.fit(on_disk)
    assert threads.measured() == {}


def test_layers_on_several_accelerators_are_refused():
    model = models.build(LLAMA)
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(Unsupported, match=r"several accelerators \(0, 1\)"):
        specdec.load(model)
