"""Recipes of conf/recipe: each composes, names what it needs, and decodes a tiny target of its
family with a random head."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import specdec
from experiments.study import schema
from specdec.plugins import CONF, build
from tests.models import head, lm, prompts

RECIPES = sorted(path.stem for path in (CONF / "recipe").glob("*.yaml"))
FAMILIES = {"llama31": "llama_gqa", "llama33": "llama_gqa", "qwen3": "qwen3", "gemma3": "gemma3"}


def settings(recipe: str) -> schema.Settings:
    schema.register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return schema.settings_of(compose("run", [f"recipe={recipe}"]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_names_target_head_and_template(recipe):
    found = settings(recipe)
    assert found.target.name.count("/") == 1
    assert found.target.revision
    assert found.prompts.chat is True
    text = (CONF / "recipe" / f"{recipe}.yaml").read_text()
    assert f"--local-dir {found.drafter['heads']}" in text
    assert found.label == recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_decodes_a_tiny_target_of_its_family(recipe):
    """At temperature 0 the tokens are those of plain decoding; above it some are drafted."""
    found = settings(recipe)
    target = lm(FAMILIES[recipe.partition("_")[0]], torch.float64)
    given = OmegaConf.to_container(OmegaConf.create(dict(found.drafter)))
    kind = given.pop("_target_").split(".")[1]
    drafter = build("drafter", {"name": kind, **given, "heads": head(kind, target)})
    wanted = {"prompts": prompts(7, 4), "max_new_tokens": 12}
    plain = specdec.generate(target, drafter="none", **wanted)
    out = specdec.generate(target, drafter=drafter, **wanted)
    assert [row.tolist() for row in out.tokens] == [row.tolist() for row in plain.tokens]
    warm = specdec.generate(target, drafter=drafter, temperature=1.0, **wanted)
    assert warm.report.acceptance
