"""The types peagle and mtp of the `speculators` layout, made of random tensors: every key lands
where it belongs, what does not fit is named, and the heads draft as they should."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import specdec
from drafters.eagle3 import Eagle3Head
from drafters.mtp import MtpHead
from experiments.export_head import export
from specdec.heads.head import Head, random_head
from specdec.heads.recognised import recognise
from tests.models import lm, prompts
from tests.test_inspect_head import inspected
from tests.test_parallel_heads import Watched, reread
from tests.test_published_heads import (
    LLAMA,
    OWN,
    TABLES,
    D,
    V,
    check_wrong_keys_are_named,
    eagle3_weights,
    layer,
)

LAYERS, DEPTHS, MASK = 2, 4, 7
CLASSES: dict[str, type[Head]] = {"peagle": Eagle3Head, "mtp": MtpHead}
every_type = pytest.mark.parametrize("kind", CLASSES)
OURS_OF_MTP = {
    "token_layernorm.": "enorm.",
    "hidden_layernorm.": "hnorm.",
    "input_proj.": "eh_proj.",
    "final_layernorm.": "post_norm.",
}


def config_of(kind: str, layers: dict[str, Any], **own: Any) -> dict[str, Any]:
    return {
        "architectures": ["PEagleSpeculator" if kind == "peagle" else "MTPDraftModel"],
        "speculators_model_type": kind,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": DEPTHS}],
            "verifier": {"name_or_path": "someone/model", "architectures": []},
        },
        **own,
        "transformer_layer_config": layers,
    }


def of_peagle() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    config = config_of(
        "peagle",
        {**LLAMA, "num_hidden_layers": LAYERS},
        draft_vocab_size=OWN,
        norm_before_residual=False,
        norm_before_fc=False,
        embed_requires_grad=True,
        eagle_aux_hidden_state_layer_ids=[1, 2, 3],
        mask_token_id=MASK,
    )
    shapes = {
        **eagle3_weights("layers.0."),
        **layer("layers.1."),
        "layers.1.input_layernorm.weight": (D,),
        "embed_tokens.weight": (V, D),
        "mask_hidden": (1, 1, 3 * D),
    }
    return config, shapes


def of_mtp() -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The config of the layers is the target's own."""
    layers = {**LLAMA, "model_type": "qwen3", "num_hidden_layers": 3, "head_dim": D // 4}
    inside = "mtp_layers.0."
    norms = ("input_layernorm", *(name.rstrip(".") for name in OURS_OF_MTP if "norm" in name))
    shapes = {
        **layer(inside),
        **{f"{inside}{name}.weight": (D,) for name in norms},
        **{f"{inside}self_attn.{name}.weight": (D // 4,) for name in ("q_norm", "k_norm")},
        f"{inside}input_proj.weight": (D, 2 * D),
    }
    return config_of("mtp", layers, num_nextn_predict_layers=1), shapes


def folder_of(place, kind, change=lambda config, weights: None):
    config, shapes = of_peagle() if kind == "peagle" else of_mtp()
    random = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=random).half() for name, shape in shapes.items()}
    if kind == "peagle":
        weights |= TABLES
    change(config, weights)
    return written(place, config, weights)


def written(place, config, weights):
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config, default=str))
    save_file({name: each.clone() for name, each in weights.items()}, place / "model.safetensors")
    return place


def ours(kind: str, name: str) -> str:
    """What a weight of the file is called here."""
    if kind == "peagle":
        return name.replace("layers.0.", "midlayer.")
    inside = name.removeprefix("mtp_layers.0.")
    return next(
        (inside.replace(theirs, own) for theirs, own in OURS_OF_MTP.items() if theirs in inside),
        f"layers.0.{inside}",
    )


# --------------------------------------------------------------------------------------- the files


@every_type
def test_every_key_lands_where_it_belongs(kind, tmp_path):
    folder_of(tmp_path, kind)
    found = CLASSES[kind].load(tmp_path).weights()
    weights = load_file(tmp_path / "model.safetensors")
    if kind == "peagle":
        assert torch.equal(found.pop("mask_embedding"), weights["embed_tokens.weight"][MASK])
        weights["mask_hidden"] = weights["mask_hidden"][0, 0]
    assert found.keys() == {ours(kind, name) for name in weights}
    for name, value in weights.items():
        assert torch.equal(found[ours(kind, name)], value), name
        assert found[ours(kind, name)].dtype == value.dtype, name


def test_settings_are_the_files(tmp_path):
    peagle = Eagle3Head.load(folder_of(tmp_path / "peagle", "peagle"))
    assert (peagle.depths, peagle.taps, peagle.vocabulary) == (DEPTHS, (1, 2, 3), V)
    assert peagle.decoder.config.num_hidden_layers == LAYERS
    older = folder_of(tmp_path / "older", "peagle", lambda config, _: config.update(num_depths=3))
    assert Eagle3Head.load(older).depths == 3
    mtp = MtpHead.load(folder_of(tmp_path / "mtp", "mtp"))
    assert (mtp.target_layers, mtp.vocabulary, mtp.states_first) == (3, V, False)
    assert mtp.decoder.config.num_hidden_layers == 1


@pytest.mark.parametrize("types", [["linear_attention", "full_attention"], None])
def test_an_mtp_layer_of_a_mixed_family_has_full_attention(types, tmp_path):
    def mix(config, weights):
        config["transformer_layer_config"] |= {"num_hidden_layers": 2, "layer_types": types}

    found = MtpHead.load(folder_of(tmp_path, "mtp", mix))
    assert found.decoder.config.layer_types == ["full_attention"]


@every_type
def test_it_is_recognised_with_its_drafter(kind, tmp_path):
    found = recognise(folder_of(tmp_path, kind))
    assert found.head_class is CLASSES[kind]
    assert found.layout == f"the speculators layout of vLLM, type {kind}"
    other = MtpHead if kind == "peagle" else Eagle3Head
    with pytest.raises(ValueError, match=f"load it with the drafter '{found.kind}'"):
        other.load(tmp_path)


@every_type
def test_missing_extra_and_misshapen_keys_are_named(kind, tmp_path):
    def write(place, spoil):
        folder_of(place, kind, spoil)

    check_wrong_keys_are_named(write, CLASSES[kind], tmp_path)


@every_type
def test_weights_that_are_not_finite_are_named(kind, tmp_path):
    def spoil(config, weights):
        for name in [name for name in weights if weights[name].dim() == 2][:2]:
            weights[name][0, 0] = float("nan")
            told.append(name)

    told: list[str] = []
    folder_of(tmp_path, kind, spoil)
    with pytest.raises(ValueError, match="NaN or infinite") as error:
        CLASSES[kind].load(tmp_path)
    assert all(name in str(error.value) for name in told)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("peagle", {"mask_token_id": None}, "lacks mask_token_id"),
        ("peagle", {"mask_token_id": V}, f"mask_token_id must be .*{V}"),
        ("peagle", {"norm_output": True}, "feeds its normed output back"),
        ("peagle", {"num_depths": 1}, "speculative_tokens of a peagle head .* got 1"),
        ("peagle", {"speculators_config": {}}, "does not say how many tokens"),
        ("peagle", {"eagle_aux_hidden_state_layer_ids": [1, 2]}, "names 2 layers"),
        ("mtp", {"num_nextn_predict_layers": 2}, "num_nextn_predict_layers 2"),
        ("mtp", {"transformer_layer_config": {}}, "lacks model_type, vocab_size"),
        ("mtp", {"transformer_layer_config": None}, "lacks transformer_layer_config"),
    ],
)
def test_configs_that_say_what_cannot_be(kind, change, message, tmp_path):
    folder_of(tmp_path, kind, lambda config, _: config.update(change))
    with pytest.raises(ValueError, match=message) as error:
        CLASSES[kind].load(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("embed_tokens.weight", None, r"missing: embed_tokens\.weight, whose row 7"),
        ("embed_tokens.weight", torch.zeros(V, D + 1), r"wrong shape: embed_tokens.* \(40, 33\)"),
        ("mask_hidden", None, "missing: mask_hidden"),
        ("mask_hidden", torch.zeros(1, 3, D), r"wrong shape: mask_hidden is \(1, 3, 32\)"),
        ("mask_hidden", torch.zeros(1, 1, 2 * D), r"wrong shape: mask_hidden is \(64,\)"),
    ],
    ids=["no embedding", "a wide embedding", "no states", "states apart", "few states"],
)
def test_masks_that_do_not_fit_are_named(key, value, message, tmp_path):
    def spoil(config, weights):
        del weights[key]
        if value is not None:
            weights[key] = value

    folder_of(tmp_path, "peagle", spoil)
    with pytest.raises(ValueError, match=message):
        Eagle3Head.load(tmp_path)


# ---------------------------------------------------------------------------------- what they draft


def peagle_folder(place, target, own_embedding=True):
    """Of random weights, for this target; over all of its tokens."""
    layers = {**target.config.to_dict(), "num_hidden_layers": LAYERS}
    settings = {
        "layer": {**Eagle3Head.for_target(target).settings["layer"], "num_hidden_layers": LAYERS},
        "vocabulary": target.vocabulary,
        "draft_vocabulary": target.vocabulary,
        "taps": [1, 1, 2],
        "depths": DEPTHS,
        "own_embedding": own_embedding,
    }
    made = random_head(lambda: Eagle3Head(**settings), target.dtype, 0.2)
    weights = {name.replace("midlayer.", "layers.0."): w for name, w in made.weights().items()}
    weights["mask_hidden"] = weights["mask_hidden"][None, None]
    if not own_embedding:
        weights["embed_tokens.weight"] = target.embed(torch.arange(target.vocabulary))
    del weights["mask_embedding"], weights["d2t"], weights["t2d"]
    config = config_of(
        "peagle",
        layers,
        draft_vocab_size=target.vocabulary,
        embed_requires_grad=own_embedding,
        eagle_aux_hidden_state_layer_ids=[1, 1, 2],
        mask_token_id=MASK,
    )
    return written(place, config, {name: w.detach() for name, w in weights.items()})


@pytest.mark.parametrize("own_embedding", [True, False])
def test_a_peagle_head_of_two_layers_guesses_as_one_pass_says(own_embedding, tmp_path):
    target = lm("llama_gqa", torch.float64)
    made = Watched(peagle_folder(tmp_path, target, own_embedding), depth=DEPTHS, draw="wor")
    assert made.parallel
    made.seen = []
    specdec.generate(target, prompts(9, 1), drafter=made, temperature=3.0, max_new_tokens=40)
    assert len(made.seen) > 8
    embedding = load_file(tmp_path / "model.safetensors")["embed_tokens.weight"]
    ids = torch.arange(target.vocabulary)
    assert torch.equal(made.heads.embed(ids, target), embedding)
    assert torch.equal(target.embed(ids), embedding) is not own_embedding
    for text, laws in made.seen:
        said = reread(made.heads, target, text, DEPTHS)
        torch.testing.assert_close(laws, said, rtol=1e-9, atol=1e-9)


def test_an_embedding_that_was_not_trained_must_be_the_targets(tmp_path):
    target = lm("llama_gqa")
    folder = peagle_folder(tmp_path, target)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "embed_requires_grad": False}))
    drafter = {"name": "eagle3", "heads": folder, "depth": 2}
    with pytest.raises(ValueError, match=r"embed_tokens\.weight, which is not the target's"):
        specdec.generate(target, prompts(4), drafter=drafter, max_new_tokens=4)


def test_an_mtp_head_drafts_as_the_head_that_was_written(tmp_path):
    target = lm("qwen3", torch.float64)
    head = random_head(lambda: MtpHead.for_target(target), target.dtype, 0.2)
    theirs = {own: name for name, own in OURS_OF_MTP.items()}
    weights = {
        "mtp_layers.0."
        + next(
            (name.replace(own, their) for own, their in theirs.items() if name.startswith(own)),
            name.removeprefix("layers.0."),
        ): weight.detach()
        for name, weight in head.weights().items()
    }
    weights["lm_head.weight"] = target.head_weight.detach()
    folder = written(tmp_path, config_of("mtp", target.config.to_dict()), weights)
    runs = [
        specdec.generate(
            target,
            prompts(9, 5),
            drafter={"name": "mtp", "heads": heads, "depth": 3},
            max_new_tokens=12,
        )
        for heads in (head, folder)
    ]
    first, second = ([row.tolist() for row in out.tokens] for out in runs)
    assert first == second
    assert runs[0].report.tau == runs[1].report.tau


def test_a_trained_embedding_goes_out_and_comes_back(tmp_path):
    target = lm("llama_gqa")
    settings = {**Eagle3Head.for_target(target).settings, "own_embedding": True}
    made = random_head(lambda: Eagle3Head(**settings), torch.float32)
    made.save(tmp_path / "own")
    export(str(tmp_path / "own"), tmp_path / "out", "someone/model")
    back = Eagle3Head.load(tmp_path / "out")
    assert back.settings["own_embedding"]
    assert all(torch.equal(back.weights()[name], each) for name, each in made.weights().items())


# ----------------------------------------------------------------------------------- inspect_head


@every_type
def test_what_is_inside_is_told(kind, tmp_path, capsys):
    status, found = inspected(capsys, folder_of(tmp_path, kind))
    assert status == 0
    assert f"type {kind}" in found["layout"]["sentence"]
    assert found["needs"]["numbers"]["trained_for"] == "someone/model"
    if kind == "peagle":
        assert found["architecture"]["numbers"]["layers"] == LAYERS
        assert found["guesses"]["numbers"]["depths"] == DEPTHS
        assert f"guesses {DEPTHS} of them in one pass" in found["guesses"]["sentence"]
    else:
        assert found["needs"]["numbers"]["layers"] == 3
        assert "the LM head's input" in found["reads"]["sentence"]
