"""Heads in the layouts that others publish, made of random tensors: every key lands where it
belongs, and what is exported comes back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import specdec
from drafters.dflash import DFlashHead
from drafters.dspark import DSparkHead
from drafters.eagle import EagleHead
from drafters.eagle3 import Eagle3Head, default_taps
from drafters.medusa import MedusaHeads
from experiments.export_head import export
from specdec.heads.head import Head, random_head
from specdec.models.load import load
from tests.models import shared

D, V, MLP, OWN = 32, 40, 48, 12
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": D,
    "intermediate_size": MLP,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": V,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "max_position_embeddings": 128,
    "torch_dtype": "float16",
}
KEPT = torch.arange(OWN) * 3 + 1
TABLES = {
    "d2t": KEPT - torch.arange(OWN),
    "t2d": torch.zeros(V, dtype=torch.bool).index_fill(0, KEPT, True),
}


def layer(prefix, width=D):
    shapes = {
        "self_attn.q_proj": (D, width),
        "self_attn.k_proj": (D // 2, width),
        "self_attn.v_proj": (D // 2, width),
        "self_attn.o_proj": (D, D),
        "mlp.gate_proj": (MLP, D),
        "mlp.up_proj": (MLP, D),
        "mlp.down_proj": (D, MLP),
        "post_attention_layernorm": (D,),
    }
    return {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}


def eagle3_weights(prefix):
    norms = {f"{prefix}{name}.weight": (D,) for name in ("hidden_norm", "input_layernorm")}
    return {
        **layer(prefix, 2 * D),
        **norms,
        "fc.weight": (D, 3 * D),
        "norm.weight": (D,),
        "lm_head.weight": (OWN, D),
    }


def medusa():
    blocks = {
        f"{k}.{b}.linear.{part}": (D, D)[: 2 if part == "weight" else 1]
        for k in range(3)
        for b in range(2)
        for part in ("weight", "bias")
    }
    return (
        {"medusa_num_heads": 3, "medusa_num_layers": 2},
        blocks | {f"{k}.2.weight": (V, D) for k in range(3)},
        {},
    )


def eagle():
    return {**LLAMA, "bias": False}, {**layer("layers.0."), "fc.weight": (D, 2 * D)}, {}


def native():
    return {**LLAMA, "draft_vocab_size": OWN}, eagle3_weights("midlayer."), TABLES


def of_speculators():
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "verifier": {"name_or_path": "someone/model", "architectures": []},
        },
        "draft_vocab_size": OWN,
        "norm_before_residual": True,
        "norm_before_fc": True,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
        "transformer_layer_config": {
            key: value for key, value in LLAMA.items() if key != "architectures"
        },
    }
    return config, {**eagle3_weights("layers.0."), "input_norm.weight": (3 * D,)}, TABLES


LAYOUTS = {
    "medusa": (MedusaHeads, medusa),
    "eagle": (EagleHead, eagle),
    "eagle3": (Eagle3Head, native),
    "speculators": (Eagle3Head, of_speculators),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def folder_of(place, layout, change=lambda config, weights: None, **shapes):
    config, sizes, tables = LAYOUTS[layout][1]()
    random = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=random).half()
        for name, shape in (sizes | shapes).items()
    } | tables
    change(config, weights)
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    save_file(weights, place / "model.safetensors")
    return weights


def in_the_files_names(head, layout):
    weights = head.weights()
    return {
        name.replace("midlayer.", "layers.0.") if layout == "speculators" else name: value
        for name, value in weights.items()
    }


@every_layout
def test_every_key_lands_where_it_belongs(layout, tmp_path):
    weights = folder_of(tmp_path, layout)
    head = LAYOUTS[layout][0].load(tmp_path)
    found = in_the_files_names(head, layout)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype, name


def check_wrong_keys_are_named(write, head_class, place):
    """Where one matrix has another name and the next one lacks a row. write(place, spoil): a
    folder whose config and weights were spoilt."""

    def spoil(config, weights):
        first, second = [
            name for name in weights if name.endswith("_proj.weight") or "linear" in name
        ][:2]
        weights["surplus.weight"] = weights.pop(first)
        weights[second] = weights[second][:-1].clone()
        told.extend([first, second])

    told: list[str] = []
    write(place, spoil)
    with pytest.raises(ValueError, match=str(place)) as error:
        head_class.load(place)
    message = str(error.value)
    assert f"missing: {told[0]};" in message
    assert "not expected: surplus.weight;" in message
    assert f"wrong shape: {told[1]} is (" in message


@every_layout
def test_missing_extra_and_misshapen_keys_are_named(layout, tmp_path):
    def write(place, spoil):
        folder_of(place, layout, spoil)

    check_wrong_keys_are_named(write, LAYOUTS[layout][0], tmp_path)


@every_layout
def test_all_missing_keys_are_named(layout, tmp_path):
    def spoil(config, weights):
        for name in [name for name in weights if name.endswith("_proj.weight") or "linear" in name]:
            told.append(name)
            del weights[name]

    told: list[str] = []
    folder_of(tmp_path, layout, spoil)
    with pytest.raises(ValueError, match="missing: ") as error:
        LAYOUTS[layout][0].load(tmp_path)
    assert len(told) > 5
    assert all(name in str(error.value) for name in told)


@every_layout
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(layout, value, tmp_path):
    def spoil(config, weights):
        for name in [name for name in weights if weights[name].dim() == 2][:2]:
            weights[name][0, 0] = value
            told.append(name)

    told: list[str] = []
    folder_of(tmp_path, layout, spoil)
    with pytest.raises(ValueError, match=r"NaN or infinite.*take an earlier checkpoint") as error:
        LAYOUTS[layout][0].load(tmp_path)
    assert all(name in str(error.value) for name in told)


@every_layout
def test_drafts_for_a_target_of_its_size(layout, tmp_path):
    target = load(shared("llama_gqa"))
    sizes = {"hidden_size": target.hidden_size, "vocabulary": target.vocabulary}
    kind = LAYOUTS[layout][0]
    name = kind.kind
    head = random_head(lambda: kind.for_target(target), torch.float32)
    config, weights = dict(target.config.to_dict(), num_hidden_layers=1), dict(head.weights())
    if layout == "medusa":
        config = {"medusa_num_heads": len(head), "medusa_num_layers": 1}
    elif layout == "eagle":
        weights |= {
            "embed_tokens.weight": target.embed(torch.arange(sizes["vocabulary"])),
            "lm_head.weight": target.head_weight,
        }
    elif layout == "eagle3":
        config["draft_vocab_size"] = sizes["vocabulary"]
        weights |= {"embed_tokens.weight": target.embed(torch.arange(sizes["vocabulary"]))}
        del weights["d2t"], weights["t2d"]  # may be left out where the head knows all tokens
    else:
        config, weights = head.to_speculators("someone/model", [])
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    save_file(
        {key: value.detach().clone() for key, value in weights.items()},
        tmp_path / "model.safetensors",
    )
    out = [
        specdec.generate(
            target,
            [[1, 2, 3], [4, 5]],
            drafter={"name": name, "heads": heads, **tree},
            max_new_tokens=12,
        )
        for heads in (head, tmp_path)
        for tree in [{"tree": [[0], [1], [0, 0]]} if name == "medusa" else {"depth": 2, "nodes": 4}]
    ]
    assert [row.tolist() for row in out[0].tokens] == [row.tolist() for row in out[1].tokens]
    assert out[0].report.tau == out[1].report.tau


@pytest.mark.parametrize("layout", ["eagle", "eagle3", "speculators"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_rounded_head_turns_by_the_same_angles(layout, dtype, tmp_path):
    """Files hold 16 bits and targets run in them; positions are as exact in the head as they are in
    the target."""
    folder_of(tmp_path, layout)
    head = LAYOUTS[layout][0].load(tmp_path).to(dtype)
    rotary = head.decoder.get_submodule("rotary_emb")
    # RoFormer 2104.09864, section 3.2.2
    frequencies = 500000.0 ** (-torch.arange(0, D // 4, 2) / (D // 4))
    assert {weight.dtype for weight in head.parameters()} == {dtype}
    assert torch.allclose(rotary.inv_freq.double(), frequencies.double(), rtol=1e-6)
    cosines, _ = rotary(torch.zeros(1, 1, 1), torch.tensor([[100]]))
    assert torch.allclose(
        cosines[0, 0, : D // 8].double(), (100 * frequencies.double()).cos(), atol=1e-4
    )


def test_a_medusa_file_without_measured_accuracies_gets_a_usual_tree(tmp_path):
    folder_of(tmp_path, "medusa")
    drafter = specdec.plugins.build("drafter", {"name": "medusa", "heads": tmp_path})
    assert drafter.tree.nodes == 24
    assert drafter.tree.depth == 3


def test_taps_are_the_files_or_else_the_targets_usual_ones(tmp_path):
    folder_of(tmp_path / "said", "speculators")
    assert Eagle3Head.load(tmp_path / "said").taps == (1, 2, 3)
    outputs = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 4, 6]}}
    folder_of(tmp_path / "outputs", "eagle3", lambda config, _: config.update(outputs))
    assert Eagle3Head.load(tmp_path / "outputs").taps == (2, 5, 7)
    folder_of(tmp_path / "unsaid", "eagle3")
    head, target = Eagle3Head.load(tmp_path / "unsaid"), load(shared("llama_gqa"))
    assert head.taps == ()
    assert head.taps_for(target) == default_taps(target)
    assert head.taps == ()  # the head is the same for the next target


def test_layers_that_the_target_does_not_have(tmp_path):
    folder_of(
        tmp_path,
        "speculators",
        lambda config, _: config.update(eagle_aux_hidden_state_layer_ids=[2, 30, 61]),
    )
    with pytest.raises(ValueError, match=r"reads layers \[2, 30, 61\], the target has \d"):
        Eagle3Head.load(tmp_path).taps_for(load(shared("llama_gqa")))


def test_residual_norms_are_two_functions():
    """norm_before_residual changes what the layer adds to, and nothing else: with a norm that
    changes nothing they agree."""
    target = load(shared("llama_gqa"))
    plain = random_head(lambda: Eagle3Head.for_target(target), torch.float64)
    settings = {**plain.settings, "norm_before_residual": True}
    normed = random_head(lambda: Eagle3Head(**settings), torch.float64)
    normed.load_state_dict(plain.state_dict())
    x, states = torch.randn(2, 1, 1, target.hidden_size, dtype=torch.float64)
    place = (torch.zeros(1, 1, dtype=torch.long), x.new_zeros(1, 1, 1, 1), None)
    assert not torch.allclose(plain(x, states, *place), normed(x, states, *place))
    same = plain.layer.input_layernorm.hidden(states)
    difference = normed(x, states, *place) - same
    with torch.no_grad():
        plain.layer.input_layernorm.hidden = torch.nn.Identity()
    assert torch.allclose(plain(x, same, *place) - same, difference)


@pytest.mark.parametrize("key", ["embed_tokens.weight", "lm_head.weight"])
def test_what_is_the_targets_must_be_the_targets(key, tmp_path):
    target = load(shared("llama_gqa"))
    head = random_head(lambda: EagleHead.for_target(target), torch.float32)
    (tmp_path / "config.json").write_text(
        json.dumps(dict(target.config.to_dict(), num_hidden_layers=1), default=str)
    )
    other = torch.randn(target.vocabulary, target.hidden_size)
    save_file({**head.weights(), key: other}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"brings {key}, which is not the target's"):
        specdec.generate(
            target, [[1, 2]], drafter={"name": "eagle", "heads": tmp_path}, max_new_tokens=2
        )
    save_file({**head.weights(), key: other[:-1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"wrong shape: {key}"):
        EagleHead.load(tmp_path)


# ------------------------------------------------------------------------------------------- export


def logits_of(head):
    """(1, 1, V') of a fixed token and states."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, head.hidden_size, generator=random).to(head.fc.weight)
    states = torch.randn(1, 1, 3, head.hidden_size, generator=random).to(head.fc.weight)
    with torch.inference_mode():
        out = head(
            x, head.fuse(states), torch.zeros(1, 1, dtype=torch.long), x.new_zeros(1, 1, 1, 1), None
        )
        return head.logits(out, None)


@pytest.mark.parametrize("layout", ["eagle3", "speculators"])
def test_exported_and_read_again_it_says_the_same(layout, tmp_path):
    weights = folder_of(tmp_path / "in", layout)
    export(str(tmp_path / "in"), tmp_path / "out", "someone/model")
    before, after = Eagle3Head.load(tmp_path / "in"), Eagle3Head.load(tmp_path / "out")
    assert torch.equal(logits_of(before), logits_of(after))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name.replace("midlayer.", "layers.0.") for name in weights} == written.keys()
    for name, value in weights.items():
        assert torch.equal(written[name.replace("midlayer.", "layers.0.")], value), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": "someone/model",
        "architectures": [],
    }
    assert config["draft_vocab_size"] == OWN
    assert config["transformer_layer_config"]["vocab_size"] == V
    assert config["transformer_layer_config"]["rope_theta"] == 500000.0
    assert config["eagle_aux_hidden_state_layer_ids"] == (
        [1, 2, 3] if layout == "speculators" else None
    )


def test_the_bundled_head_goes_out_and_comes_back(tmp_path):
    export("demo-eagle3", tmp_path / "out", "specdec/demo/target")
    bundled, back = Eagle3Head.load("demo-eagle3"), Eagle3Head.load(tmp_path / "out")
    assert torch.equal(logits_of(bundled), logits_of(back))
    assert back.taps == bundled.taps
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]


def test_what_the_layout_has_no_place_for(tmp_path):
    with pytest.raises(ValueError, match="eagle head cannot be written in the speculators layout"):
        export("demo-eagle", tmp_path / "out", "someone/model")
    other = load(shared("mistral_window"))
    random_head(lambda: Eagle3Head.for_target(other), torch.float32).save(tmp_path / "mistral")
    with pytest.raises(ValueError, match="family 'mistral'"):
        export(str(tmp_path / "mistral"), tmp_path / "out", "someone/model")
    target = load(shared("llama_gqa"))
    random_head(lambda: Eagle3Head.for_target(target, taps=(1, 2, "head")), torch.float32).save(
        tmp_path / "taps"
    )
    with pytest.raises(ValueError, match="numbers of layers only"):
        export(str(tmp_path / "taps"), tmp_path / "out", "someone/model")
    folder_of(tmp_path / "in", "eagle3")
    with pytest.raises(
        ValueError, match=f"trained for a hidden_size of {D}, the verifier .* has 384"
    ):
        export(str(tmp_path / "in"), tmp_path / "out", "specdec/demo/target")
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------- unusable files


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (
            "speculators",
            {"speculators_model_type": "eagle"},
            "type 'eagle', expected a head of kind 'eagle3'; no drafter here reads this type",
        ),
        ("speculators", {"norm_before_residual": None}, "lacks norm_before_residual"),
        ("speculators", {"fc_norm": True}, "norms each tap"),
        ("speculators", {"target_hidden_size": 64}, "32 wide and its target 64"),
        ("speculators", {"eagle_aux_hidden_state_layer_ids": [1, 2]}, "names 2 layers"),
        ("eagle3", {"num_hidden_layers": 2}, "num_hidden_layers 2"),
        ("eagle3", {"hidden_size": None}, "lacks hidden_size"),
        ("eagle3", {"vocab_size": None}, "lacks vocab_size"),
        ("eagle", {"hidden_size": "wide"}, "none of a llama layer"),
        ("eagle", {"model_type": "lama"}, "model_type 'lama'"),
        ("medusa", {"medusa_num_layers": 5}, "no matrix 0.5.weight"),
        ("medusa", {"medusa_num_heads": 2}, "not expected: 2.0.linear"),
    ],
)
def test_configs_that_say_what_cannot_be(layout, change, message, tmp_path):
    folder_of(tmp_path, layout, lambda config, _: config.update(change))
    with pytest.raises(ValueError, match=message) as error:
        LAYOUTS[layout][0].load(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "d2t",
            torch.zeros(OWN, dtype=torch.long).index_fill(0, torch.tensor([1]), -1),
            "12 different tokens",
        ),
        ("d2t", torch.full((OWN,), V), "12 different tokens in 0 .. 39"),
        ("t2d", torch.ones(V, dtype=torch.bool), "d2t and t2d disagree"),
    ],
)
def test_tables_that_contradict(key, value, message, tmp_path):
    folder_of(tmp_path, "eagle3", lambda _, weights: weights.update({key: value}))
    with pytest.raises(ValueError, match=message):
        Eagle3Head.load(tmp_path)


@pytest.mark.parametrize("kind", [MedusaHeads, EagleHead, Eagle3Head, DFlashHead, DSparkHead])
def test_folders_that_hold_no_such_head(kind, tmp_path):
    with pytest.raises(ValueError, match=r"no head at /nowhere/at/all.*config\.json"):
        kind.load("/nowhere/at/all")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        kind.load(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="JSON object, got list"):
        kind.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ValueError, match="no weights"):
        kind.load(tmp_path)
    torch.save({}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(ValueError, match=r"pickle \(medusa_lm_head\.pt\).*can run code.*save_file"):
        kind.load(tmp_path)
    save_file({"model.norm.weight": torch.ones(D)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=f"holds .*LlamaForCausalLM.*, expected a head of kind '{kind.kind}'"
    ):
        kind.load(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        kind.load(tmp_path)


def test_a_head_of_another_kind_is_named(tmp_path):
    folder_of(tmp_path, "eagle3")
    with pytest.raises(ValueError, match="expected a head of kind 'medusa'"):
        MedusaHeads.load(tmp_path)
    with pytest.raises(ValueError, match="expected a head of kind 'eagle'"):
        EagleHead.load(tmp_path)
    assert isinstance(Eagle3Head.load(tmp_path), Head)
