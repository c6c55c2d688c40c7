"""What is exported is read by the `speculators` package's own loader, and means the same to it.

The package pins an older transformers than constraints.txt, so it is in no extra. To run these
tests, put it and its loguru, openai and pydantic-settings on PYTHONPATH.
"""

import pytest
import torch

from drafters.eagle3 import Eagle3Head
from experiments.export_head import export
from specdec.heads.head import random_head
from specdec.heads.recognised import recognise
from tests.models import head, lm

package = pytest.importorskip("speculators", reason="needs the speculators package")
pytestmark = pytest.mark.filterwarnings("ignore")  # the package's own
FAMILIES = {"eagle3": "llama_gqa", "dflash": "qwen3", "dspark": "qwen3"}


@pytest.fixture
def exported(tmp_path):
    """`exported("dflash")`: a random head, where it is in this layout, and what the loader made of
    it."""

    def make(kind):
        target = lm(FAMILIES[kind])
        target.model.save_pretrained(tmp_path / "target")
        made = head(kind, target)
        if kind == "eagle3":  # the loader wants three different layers
            made = random_head(
                lambda: Eagle3Head.for_target(target, draft_vocabulary=60, taps=[0, 1, 2]),
                torch.float32,
            )
        made.save(tmp_path / "head")
        export(str(tmp_path / "head"), tmp_path / "out", str(tmp_path / "target"))
        loaded = package.SpeculatorModel.from_pretrained(str(tmp_path / "out"))
        return made, tmp_path / "out", loaded

    return make


@pytest.mark.parametrize("kind", FAMILIES)
def test_its_loader_finds_every_weight(kind, exported):
    made, folder, loaded = exported(kind)
    weights, config = loaded.state_dict(), loaded.config
    for name, weight in recognise(folder).weights.items():
        assert torch.equal(weights[name], weight), name
    assert not [name for name, weight in weights.items() if not weight.isfinite().all()]
    assert config.speculators_model_type == kind
    assert list(loaded.target_layer_ids) == list(made.taps)
    if kind != "eagle3":
        assert config.block_size == made.places
        assert config.sample_from_anchor is made.from_anchor
        assert config.mask_token_id == made.mask_token


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_it_writes_is_read_here(kind, exported, tmp_path):
    made, _, loaded = exported(kind)
    loaded.save_pretrained(str(tmp_path / "theirs"))
    back = type(made).load(tmp_path / "theirs")
    for name, weight in made.weights().items():
        assert torch.equal(back.weights()[name], weight), name
    assert back.taps == made.taps
