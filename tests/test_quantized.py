"""Targets and drafters with packed weights: what is kept, what is shared, and what is refused."""

import importlib.util
import json
import logging
import shutil

import pytest
import torch
from torch import nn

import specdec
from experiments.certificates import tiny as toys
from experiments.measuring.memory import weights
from specdec.errors import Unsupported
from specdec.models.language_model import TransformersLM
from specdec.models.quantized import format_of, numbers, packed_layers
from tests.models import GROUPED, build, hf, prompts, sharpened

if importlib.util.find_spec("torchao") is None:
    pytest.skip("torchao is not installed", allow_module_level=True)

from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerTensor,
    quantize_,
)

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
logging.getLogger("torchao").setLevel(logging.ERROR)
WEIGHT_ONLY = Int8WeightOnlyConfig(set_inductor_config=False)
PER_TENSOR = Int8DynamicActivationInt8WeightConfig(
    granularity=PerTensor(), set_inductor_config=False
)


def llama(dtype: torch.dtype = torch.float32, **settings: int) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return sharpened(hf.LlamaForCausalLM(hf.LlamaConfig(**{**GROUPED, **settings}))).to(dtype)


@pytest.mark.parametrize("scheme", ["int8", "int4", WEIGHT_ONLY], ids=["int8", "int4", "config"])
def test_a_packed_target_keeps_its_own_law(scheme):
    """Greedy output of every drafter is that of plain decoding of the packed model, as is the
    memory's work: rows of several lengths, trees."""
    model = llama(hidden_size=64, intermediate_size=96)
    target, texts = specdec.load(model, quantize=scheme), prompts(7, 3, 5)
    options = {"max_new_tokens": 12, "temperature": 0.0}
    plain = specdec.generate(target, texts, drafter="none", **options)
    for drafter in (
        {"name": "ngram", "tree": True},
        {"name": "small_model", "model": llama(), "depth": 3, "branching": 2},
        {"name": "layer_skip", "skip": {"layers": 3, "attention": [1], "mlp": [1, 2]}},
        {"name": "early_exit", "exit": 2},
    ):
        ours = specdec.generate(target, texts, drafter=drafter, **options)
        assert all(torch.equal(a, b) for a, b in zip(plain.tokens, ours.tokens, strict=True))


def test_a_copy_is_packed_and_the_model_stays_as_it_was():
    model = llama()
    ids = torch.tensor(prompts(6))
    before = model(input_ids=ids).logits.detach().clone()
    packed = specdec.load(model, quantize="int8")
    assert torch.equal(model(input_ids=ids).logits, before)
    assert format_of(model) is None
    assert format_of(packed.model) == "Int8Tensor"
    assert "packed as Int8Tensor" in repr(packed)
    own, other = packed.model, model
    assert own.get_input_embeddings().weight is other.get_input_embeddings().weight
    assert own.get_output_embeddings().weight is other.get_output_embeddings().weight
    names = [name for name, _ in packed_layers(packed.model)]
    assert len(names) == 7 * 3
    assert "lm_head" not in names
    assert weights(packed) < 0.6 * weights(model)
    assert weights(model, packed) < 1.5 * weights(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scales_per_tensor_are_refused(dtype):
    """A node's logits would depend on its siblings (fault 22). In bfloat16 the tree alone does not
    tell: its tolerance is wider than what a few tokens of alike size change."""
    with pytest.raises(Unsupported, match=r"q_proj gives a token other values.*one scale for the"):
        specdec.load(llama(dtype), quantize=PER_TENSOR)
    by_hand = llama(dtype)
    quantize_(by_hand, PER_TENSOR)
    with pytest.raises(Unsupported, match="its siblings and on other rows"):
        specdec.load(by_hand)


def test_the_fault_that_is_refused_is_real():
    """Logits of one row change with another row's tokens under a scale per tensor, not under one
    per token."""
    ids = torch.tensor([prompts(6)[0], prompts(6, seed=1)[0]])
    changed = {}
    for name, config in (
        ("tensor", PER_TENSOR),
        ("token", Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)),
    ):
        model = llama()
        quantize_(model, config)
        with torch.inference_mode():
            alone, beside = model(input_ids=ids[:1]).logits, model(input_ids=ids).logits[:1]
        changed[name] = float((alone - beside).abs().max() / alone.abs().max())
    assert changed["tensor"] > 0.01
    assert changed["token"] < 1e-4


def test_columns_that_any_token_makes_large_are_refused():
    """bitsandbytes' threshold of outliers, by its settings: its kernels are not on every
    machine."""
    model = llama()
    model.config.quantization_config = hf.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(Unsupported, match=r"LLM.int8.*llm_int8_threshold=0"):
        specdec.load(model)
    model.config.quantization_config = hf.BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=0.0
    )
    specdec.load(model)


def test_a_layer_without_a_kernel_is_named():
    class NoKernel(nn.Module):
        """Linear, with weights packed somewhere else."""

        in_features = 32

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("no kernel for float32 on CPU")

    model = llama()
    model.model.layers[1].self_attn.o_proj = NoKernel()
    with pytest.raises(Unsupported, match=r"layers\.1\.self_attn\.o_proj does not run, in float32"):
        specdec.load(model)


@pytest.mark.parametrize("config", ["int8", WEIGHT_ONLY], ids=["int8", "config"])
def test_what_was_saved_packed_loads_as_it_is(tiny, tmp_path, config):
    """In safetensors. It takes no second scheme and no extra layers."""
    packed = specdec.load(tiny, quantize=config)
    folder = tmp_path / "packed"
    packed.model.save_pretrained(folder)
    assert not list(folder.glob("*.bin"))
    again = specdec.load(folder)
    ids = torch.tensor([[1, 2, 3, 4]])
    assert format_of(again.model) == "Int8Tensor"
    assert torch.equal(again.model(input_ids=ids).logits, packed.model(input_ids=ids).logits)
    out = specdec.generate(again, [1, 2, 3], drafter="none", max_new_tokens=6)
    assert torch.equal(
        out.tokens[0],
        specdec.generate(packed, [1, 2, 3], drafter="none", max_new_tokens=6).tokens[0],
    )
    for asked in ({"quantize": "int8"}, {"extra_layers": 1}):
        with pytest.raises(ValueError, match=r"quantised"):
            specdec.load(folder, **asked)


def test_packed_pickles_are_refused(tiny, tmp_path):
    folder = tmp_path / "packed"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        specdec.load(folder)


def test_a_format_whose_package_is_missing_is_named(tiny, tmp_path):
    folder = tmp_path / "packed"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    if importlib.util.find_spec("gptqmodel") is None:
        with pytest.raises(ValueError, match=r"cannot load the weights.*(?i:gptq)"):
            specdec.load(folder)


def test_a_cast_after_packing_is_refused():
    packed = specdec.load(llama(), quantize="int8")
    specdec.generate(packed, [1, 2, 3], drafter="none", max_new_tokens=2)
    packed.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"quantised in float32 .* and is in bfloat16 now"):
        specdec.generate(packed, [1, 2, 3], drafter="none", max_new_tokens=2)
    with pytest.raises(ValueError, match=r"quantised in float32"):
        specdec.load(packed.model)


def test_extra_layers_are_packed_too_and_change_nothing():
    ids = torch.tensor(prompts(6))
    plain = specdec.load(llama(), quantize="int8")
    deeper = specdec.load(llama(), quantize="int8", extra_layers=2)
    assert len(list(packed_layers(deeper.model))) == 7 * 5
    assert torch.equal(plain.model(input_ids=ids).logits, deeper.model(input_ids=ids).logits)


def test_an_lm_head_that_is_packed_gives_its_numbers():
    """Heads copy rows of it, and Medusa's begin as it is."""
    model = llama()
    before = model.lm_head.weight.detach().clone()
    quantize_(model, WEIGHT_ONLY)
    target = specdec.load(model)
    assert float((target.head_weight - before).abs().max()) < 0.02 * float(before.abs().max())
    assert numbers(nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)) is None
    model.lm_head = nn.Module()
    model.lm_head.weight = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"LM head of .* is packed"):
        _ = target.head_weight


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"quantize": "int9"}, r"quantize must be 'int8'.*got 'int9'; did you mean"),
        ({"quantize": 8}, "got 8"),
        ({"quantize": "int8", "dtype": "float64"}, "float64, which torchao does not pack"),
        ({"quantize": "int4"}, "'int4' packs 32 inputs at a time.*layers of 16 inputs"),
        ({"quantize": "int8", "quantization_config": {}}, "both given"),
        ({"device": "cpu", "device_map": "auto"}, "both given; device_map places"),
    ],
)
def test_bad_settings(tiny, asked, words):
    with pytest.raises(ValueError, match=words):
        specdec.load(tiny, **asked)


def test_arguments_of_transformers_are_for_models_by_name():
    with pytest.raises(ValueError, match="device_map: for models that are loaded by name"):
        specdec.load(llama(), device_map="cpu")


def test_arguments_reach_transformers(tiny, monkeypatch):
    """device_map, tp_plan and quantization_config; the weights are not moved afterwards."""
    once, seen = hf.AutoModelForCausalLM.from_pretrained, {}

    def spy(*given, **options):
        seen.update(options)
        return once(*given, **options)

    monkeypatch.setattr(hf.AutoModelForCausalLM, "from_pretrained", spy)
    monkeypatch.setattr("specdec.models.load._moved", lambda *given: pytest.fail("moved"))
    specdec.load(tiny, device_map="cpu")
    assert seen["device_map"] == "cpu"
    specdec.load(tiny, tp_plan="auto")
    shared = seen.get("distributed_config")
    assert (shared.tp_plan if shared else seen["tp_plan"]) == "auto"
    monkeypatch.undo()
    packed = specdec.load(tiny, quantization_config=hf.TorchAoConfig(WEIGHT_ONLY))
    assert format_of(packed.model) == "Int8Tensor"


# -------------------------------------------------------------------------------- quantized_self


@pytest.mark.parametrize("shape", [{"depth": 3}, {"depth": 2, "branching": 2}])
def test_the_targets_own_weights_draft_for_it(shape):
    """Exact, and accepted nearly always. The target is left alone."""
    model, texts = llama(), prompts(7, 3, 5)
    target = specdec.load(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plain = specdec.generate(target, texts, drafter="none", max_new_tokens=12)
    drafter = {"name": "quantized_self", **shape}
    ours = specdec.generate(target, texts, drafter=drafter, max_new_tokens=12)
    assert all(torch.equal(a, b) for a, b in zip(plain.tokens, ours.tokens, strict=True))
    assert ours.report.acceptance_rate > 0.4
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())
    assert format_of(model) is None


def test_runs_of_one_drafter_share_a_copy():
    from drafters.quantized_self import QuantizedSelf

    drafter, target = QuantizedSelf(depth=2), specdec.load(llama())
    for _ in range(2):
        specdec.generate(target, [1, 2, 3], drafter=drafter, max_new_tokens=4)
        first, drafter._copy.seen = drafter._copy.model, getattr(drafter._copy, "seen", None)
        assert drafter._copy.seen in (None, first)
        drafter._copy.seen = first
    assert weights(target, drafter) > weights(target)
    other = specdec.load(build("llama_gqa"))
    specdec.generate(other, [1, 2, 3], drafter=drafter, max_new_tokens=4)
    assert drafter._copy.model is not first


def test_a_tiny_target_is_packed_and_a_table_is_not():
    from drafters.quantized_self import QuantizedSelf
    from specdec import Sampling
    from specdec.models.table import TableModel

    target, draft = toys.target(5), toys.draft(5)
    made = QuantizedSelf.tiny(target, draft)
    made.begin(target, 1, Sampling(1.0))
    assert format_of(made._copy.model.model) == "Int8Tensor"
    table = TableModel({(): [1, 2, 3]})
    made = QuantizedSelf.tiny(table, TableModel({(): [3, 2, 1]}))
    made.begin(table, 1, Sampling(1.0))
    assert made._copy.model is None
    with pytest.raises(ValueError, match=r"TableModel gives no access"):
        QuantizedSelf().begin(table, 1, Sampling(1.0))


def test_a_packed_target_cannot_be_packed_again():
    packed = specdec.load(llama(), quantize="int8")
    with pytest.raises(ValueError, match="quantised already"):
        specdec.generate(packed, [1, 2, 3], drafter="quantized_self", max_new_tokens=4)
    with pytest.raises(ValueError, match="needs quantize, one of int8, int4"):
        specdec.generate(
            packed, [1], drafter={"name": "quantized_self", "quantize": None}, max_new_tokens=1
        )


def test_a_draft_model_is_packed_on_its_own(command, tiny):
    """In a run: target.quantize, and the arguments of `load` as the draft model."""
    folder = command(
        "target.quantize=int8",
        "drafter=small_model",
        f"drafter.model={{name: {tiny}, quantize: int8}}",
        "baselines=[none]",
        "noise=false",
    )
    (path,) = folder.rglob("result.json")
    result = json.loads(path.read_text())
    assert result["config"]["target"]["quantize"] == "int8"
    assert result["ways"]["method"]["acceptance_rate"] == 1


def test_nothing_is_cast_where_nothing_is_packed():
    """Without packed weights a model may change its dtype between runs."""
    target = TransformersLM(llama())
    specdec.generate(target, [1, 2, 3], drafter="none", max_new_tokens=2)
    target.model.to(torch.bfloat16)
    specdec.generate(target, [1, 2, 3], drafter="none", max_new_tokens=2)
