"""What is said of a folder of a head: which drafter uses it, and why it cannot be used. Block heads
in every layout that is read and written."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import specdec
from drafters.dflash import DFlash, DFlashHead
from drafters.dspark import DSpark, DSparkHead
from experiments.export_head import export
from specdec.heads.recognised import recognise
from tests.models import HEADS, head, lm, prompts
from tests.test_published_heads import LAYOUTS, folder_of

KINDS = {"dflash": DFlash, "dspark": DSpark}
every_kind = pytest.mark.parametrize("kind", KINDS)


def target_of(dtype=torch.float64):
    """Of the family whose layers the speculators layout has."""
    return lm("qwen3", dtype)


def decoded(heads: Any, target: Any = None) -> list[list[int]]:
    drafter = {"name": heads.kind, "heads": heads, "draw": "wor"}
    target = target or target_of()
    out = specdec.generate(
        target, prompts(9, 5), drafter=drafter, temperature=1.0, max_new_tokens=16, seed=2
    )
    return [row.tolist() for row in out.tokens]


def written(folder, config, weights):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def changed(folder, change):
    """The same folder, after change(config, weights)."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    change(config, weights)
    return written(folder, config, weights)


@pytest.fixture
def exported(tmp_path):
    """`exported("dflash")`: a random head in the speculators layout, and where it is."""

    def make(kind):
        made = head(kind, target_of())
        made.save(tmp_path / "ours")
        export(str(tmp_path / "ours"), tmp_path / "speculators", "someone/model")
        return made, tmp_path / "speculators"

    return make


def released(folder, kind):
    """A random head in the releases' layout, with the names that they have."""
    made: Any = head(kind, target_of())
    own = {"target_layer_ids": [tap - 1 for tap in made.taps], "mask_token_id": made.mask_token}
    layers = {**made.settings["layers"], "vocab_size": made.vocabulary}
    config = {**layers, "block_size": made.places, "num_target_layers": 3}
    weights = {name: weight.contiguous() for name, weight in made.weights().items()}
    if kind == "dflash":
        return made, written(folder, {**config, "dflash_config": own}, weights)
    weights["markov_head.markov_w1.weight"] = weights.pop("markov_head.W1")
    weights["markov_head.markov_w2.weight"] = weights.pop("markov_head.W2").T.contiguous()
    for part in ("weight", "bias"):
        weights[f"confidence_head.proj.{part}"] = weights.pop(f"confidence_head.{part}")
    own |= {"markov_rank": made.settings["rank"], "markov_head_type": "vanilla"}
    return made, written(folder, {**config, **own}, weights)


# ------------------------------------------------------------------------------------- recognised


@pytest.mark.parametrize("kind", HEADS)
def test_a_folder_of_ours_is_recognised(kind, tmp_path):
    head(kind, lm("llama_gqa")).save(tmp_path / "head")
    found = recognise(tmp_path / "head")
    assert (found.kind, found.layout) == (kind, "the layout of this project")
    assert found.head_class is type(head(kind, lm("llama_gqa")))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_folder_is_recognised(layout, tmp_path):
    folder_of(tmp_path, layout)
    found = recognise(tmp_path)
    assert found.head_class is LAYOUTS[layout][0]
    assert ("speculators" in found.layout) is (layout == "speculators")


@every_kind
@pytest.mark.parametrize("layers", [1, 2])
def test_block_heads_are_no_eagle_heads(kind, layers, tmp_path):
    """Both have fc and layers.0."""
    made = type(head(kind, target_of())).for_target(target_of(), layers=layers, block=3)
    own = {"target_layer_ids": [0, 1], "mask_token_id": 1, "block_size": made.places}
    config = {**made.settings["layers"], "vocab_size": 97, "dflash_config": own}
    assert recognise(written(tmp_path / "head", config, made.weights())).kind == kind


@pytest.mark.parametrize("kind", ["dflash2", "eagle"])
def test_types_that_no_drafter_reads_are_named(kind, exported):
    _, folder = exported("dflash")
    changed(folder, lambda config, _: config.update(speculators_model_type=kind))
    said = f"speculators head of type '{kind}'.*no drafter here reads this type.*eagle3, dflash"
    with pytest.raises(ValueError, match=said):
        recognise(folder)
    with pytest.raises(ValueError, match=said.replace("'.*no", "', expected .*no")):
        DFlashHead.load(folder)


def test_another_kinds_head_is_named_with_its_drafter(exported):
    _, folder = exported("dspark")
    with pytest.raises(
        ValueError, match=r"type 'dspark', expected .*'dflash'; load it with the dra"
    ):
        DFlashHead.load(folder)


def test_what_is_no_head_is_said(tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    folder = written(tmp_path / "model", config, {"model.norm.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"no head that is known here.*LlamaForCausalLM.*dflash"):
        recognise(folder)
    written(folder, {"specdec_head": "meduza"}, {"norm.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="of the kind 'meduza', which no drafter here uses"):
        recognise(folder)


# --------------------------------------------------------------------- block heads, in and out


@every_kind
@pytest.mark.parametrize("from_anchor", [False, True])
def test_exported_and_read_again_it_drafts_the_same(kind, from_anchor, tmp_path):
    target = target_of()
    made: Any = head(kind, target)
    settings = {**made.settings, "from_anchor": from_anchor}
    again = type(made)(**settings).double().eval()
    again.load_state_dict(made.state_dict())
    again.save(tmp_path / "ours")
    export(str(tmp_path / "ours"), tmp_path / "out", "someone/model")
    back = type(made).load(tmp_path / "out")
    assert back.settings == settings
    assert decoded(back) == decoded(again)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["sample_from_anchor"] is from_anchor
    assert config["block_size"] == made.block + (not from_anchor)
    assert config["aux_hidden_state_layer_ids"] == list(made.taps)
    assert config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == made.block
    assert config["transformer_layer_config"]["vocab_size"] == target.vocabulary


def test_what_is_written_has_the_names_of_the_layout(exported):
    made, folder = exported("dspark")
    weights = load_file(folder / "model.safetensors")
    rank = made.settings["rank"]
    assert weights["markov_head.markov_w1.weight"].shape == (made.vocabulary, rank)
    assert weights["markov_head.markov_w2.weight"].shape == (made.vocabulary, rank)
    assert torch.equal(weights["markov_head.markov_w2.weight"].T, made.markov_head.W2)
    assert weights["confidence_head.proj.weight"].shape == (1, made.hidden_size + rank)
    assert {name.partition(".")[0] for name in weights} == {
        *("layers", "fc", "hidden_norm", "norm", "markov_head", "confidence_head")
    }


@every_kind
def test_the_releases_names_are_read(kind, tmp_path):
    made, folder = released(tmp_path / "head", kind)
    loaded = type(made).load(folder)
    assert loaded.settings == made.settings
    assert decoded(loaded) == decoded(made)


@every_kind
def test_the_targets_own_weights_may_be_in_the_file(kind, exported):
    """They are compared with the target's, not used."""
    target = target_of()
    made, folder = exported(kind)
    own = {
        "embed_tokens.weight": target.embed(torch.arange(target.vocabulary)).clone(),
        "lm_head.weight": target.head_weight.detach().clone(),
        "verifier_lm_head.weight": target.head_weight.detach().clone(),
        "d2t": torch.zeros(target.vocabulary, dtype=torch.long),
        "t2d": torch.ones(target.vocabulary, dtype=torch.bool),
    }
    changed(folder, lambda _, weights: weights.update(own))
    assert decoded(type(made).load(folder)) == decoded(made)
    changed(folder, lambda _, weights: weights["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"brings lm_head.weight, which is not the target's"):
        decoded(type(made).load(folder))


def test_a_confidence_that_does_not_see_the_token_before(exported):
    made, folder = exported("dspark")

    def narrow(config, weights):
        config["confidence_head_with_markov"] = False
        name = "confidence_head.proj.weight"
        weights[name] = weights[name][:, : made.hidden_size].contiguous()

    loaded: Any = DSparkHead.load(changed(folder, narrow))
    states = torch.randn(2, made.hidden_size, dtype=torch.float64)
    weight = made.confidence_head.weight[0, : made.hidden_size]
    expected = states @ weight + made.confidence_head.bias
    for token in (0, 5):
        assert torch.allclose(loaded.confidence(states, torch.tensor([token, token])), expected)


def test_a_family_that_the_layout_does_not_have(tmp_path):
    head("dflash", lm("llama_gqa")).save(tmp_path / "head")
    with pytest.raises(ValueError, match=r"family 'llama'.*build 'qwen3' layers"):
        export(str(tmp_path / "head"), tmp_path / "out", "someone/model")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("dflash", {"mask_token_id": None}, "lacks mask_token_id"),
        ("dflash", {"mask_token_id": 97}, "mask_token must be an integer <= 96, got 97"),
        (
            "dflash",
            {"block_size": 1},
            "block_size is 1; the root counts and guesses nothing.*least 2",
        ),
        (
            "dspark",
            {"block_size": 0},
            "block_size is 0; the root counts and guesses too.*at least 1",
        ),
        ("dflash", {"block_size": "wide"}, "block_size must be an integer, got 'wide'"),
        ("dflash", {"aux_hidden_state_layer_ids": None}, "lacks aux_hidden_state_layer_ids"),
        ("dflash", {"aux_hidden_state_layer_ids": 3}, "must be a list of numbers of layers, got 3"),
        ("dflash", {"aux_hidden_state_layer_ids": ["a"]}, "must be an integer, got 'a'"),
        ("dflash", {"transformer_layer_config": None}, "lacks transformer_layer_config"),
        ("dflash", {"draft_vocab_size": 50}, "vocabulary of its own, of 50 tokens"),
        ("dflash", {"target_hidden_size": 64}, "32 wide and its target 64"),
        ("dflash", {"projector_type": "domino"}, "corrects its laws by another network"),
        ("dspark", {"markov_head_type": "gated"}, "Markov head that also sees the states"),
        ("dspark", {"enable_confidence_head": False}, "has no confidence head"),
    ],
)
def test_configs_that_do_not_fit_are_refused(kind, change, said, exported):
    made, folder = exported(kind)
    changed(folder, lambda config, _: config.update(change))
    with pytest.raises(ValueError, match=said) as error:
        type(made).load(folder)
    assert str(folder) in str(error.value)
    with pytest.raises(ValueError, match=said):
        KINDS[kind](folder)


def test_layers_with_windows_that_hide_later_tokens_of_the_block(exported):
    made, folder = exported("dflash")

    def window(config, _):
        layers = config["transformer_layer_config"]
        layers |= {"sliding_window": 8, "use_sliding_window": True}
        layers["layer_types"] = ["sliding_attention"] * layers["num_hidden_layers"]
        config["sliding_window_non_causal"] = False

    with pytest.raises(
        ValueError, match="sliding window, whose block tokens see earlier ones only"
    ):
        DFlashHead.load(changed(folder, window))
    assert made


@every_kind
@pytest.mark.parametrize("layout", ["ours", "released", "speculators"])
def test_weights_that_are_missing_left_over_or_not_finite_are_all_named(
    kind, layout, tmp_path, exported
):
    if layout == "released":
        made, folder = released(tmp_path / "head", kind)
    else:
        made, _ = exported(kind)
        folder = tmp_path / layout
    weights = load_file(folder / "model.safetensors")
    gone = [name for name in weights if name.startswith("layers.")]
    own = [name for name in weights if name.startswith(("markov", "confidence"))]
    assert len(gone) > 10

    def nan(_, weights):
        for name in (*gone, *own):
            weights[name].view(-1)[-1] = torch.nan

    changed(folder, nan)
    with pytest.raises(ValueError, match="are NaN or infinite") as error:
        type(made).load(folder)
    assert all(name in str(error.value) for name in (*gone, *own))

    def lose(_, weights):
        for name in gone:
            weights[f"more.{name}"] = weights.pop(name)

    changed(folder, lose)
    with pytest.raises(ValueError, match=r"missing: .*not expected: ") as error:
        type(made).load(folder)
    missing, _, extra = str(error.value).partition("not expected")
    assert all(name in missing for name in gone)
    assert all(f"more.{name}" in extra for name in gone)


@pytest.mark.parametrize("name", ["markov_w1", "markov_w2"])
def test_a_missing_markov_matrix_is_called_as_in_the_file(name, exported):
    _, folder = exported("dspark")
    changed(folder, lambda _, weights: weights.pop(f"markov_head.{name}.weight"))
    with pytest.raises(ValueError, match=f"missing: markov_head.{name}.weight"):
        DSparkHead.load(folder)


@every_kind
def test_a_head_of_another_target_is_refused(kind, tmp_path):
    made, folder = released(tmp_path / "head", kind)
    loaded: Any = type(made).load(folder)
    assert loaded.target_layers == 3
    assert len(decoded(loaded)) == 2
    changed(folder, lambda config, _: config.update(num_target_layers=36))
    with pytest.raises(ValueError, match="for a target of 36 layers, qwen3 has 3"):
        decoded(type(made).load(folder))
    demo = specdec.load("demo", device="cpu", dtype="float64")
    with pytest.raises(ValueError, match="for a hidden size of 32, the target has 384"):
        decoded(loaded, demo)
    longer = type(made).for_target(target_of(), block=3)
    longer.vocabulary = 98
    with pytest.raises(ValueError, match="for a vocabulary of 98, the target has 97"):
        decoded(longer.double())


@every_kind
def test_settings_of_ours_that_are_not_there(kind, exported, tmp_path):
    made, _ = exported(kind)
    folder = tmp_path / "ours"
    changed(folder, lambda config, _: config["settings"].pop("mask_token"))
    with pytest.raises(ValueError, match=f"settings make no {kind} head .*mask_token"):
        type(made).load(folder)
