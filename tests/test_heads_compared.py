"""Programs that compare heads, on targets small enough to be made here: the benchmark of heads,
equal budgets of training, and the table of DeepSpec on heads in the published layouts."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import specdec
from drafters.dflash import DFlashHead
from drafters.dspark import DSparkHead
from drafters.eagle import EagleHead
from drafters.eagle3 import Eagle3Head
from drafters.medusa import MedusaHeads
from experiments import benchmark_heads, heads_budget, run
from experiments.report import knobs, tables
from experiments.study import studies
from experiments.training import recipes
from specdec.heads.head import Head, random_head
from tests.models import published_block
from tests.test_train_heads import TINY, target, texts  # noqa: F401 (fixtures)

SMALL = {"limit": 2, "deep_limit": 0, "max_new_tokens": 6, "dtype": "float32"}


def cells(said: str) -> dict[str, list[str]]:
    """The lines of a printed table by their first cell."""
    rows = [line.strip("|").split("|") for line in said.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in rows[2:]}


def heads_for(folder: Path, block: int = 3) -> dict[str, Head]:
    made = specdec.load(folder, dtype=torch.float32)
    kinds: dict[str, Any] = {
        "eagle": lambda: EagleHead.for_target(made),
        "eagle3": lambda: Eagle3Head.for_target(made),
        "medusa": lambda: MedusaHeads.for_target(made, heads=3),
        "dflash": lambda: DFlashHead.for_target(made, layers=1, block=block),
        "dspark": lambda: DSparkHead.for_target(made, layers=1, block=block),
    }
    return {name: random_head(make, made.dtype) for name, make in kinds.items()}


@pytest.mark.parametrize("dflash", [True, False])
def test_the_benchmark_of_heads(dflash, tiny, tmp_path, capsys):
    found = {}
    for name, head in heads_for(tiny).items():
        head.save(tmp_path / name)
        found[name] = str(tmp_path / name)
    if not dflash:
        del found["dflash"]
    shape = {"length": 3, "nodes": 4, "acceptance": [0.6, 0.3], "ranked": 4, "levels": 2}
    wanted = benchmark_heads.Heads(
        **SMALL,
        **shape,
        **found,
        target=str(tiny),
        prompts=f"{tiny}/prompts.jsonl",
        compile=False,
        batch=2,
        output=str(tmp_path / "out"),
    )
    benchmark_heads.main(wanted)
    told = cells(capsys.readouterr().out)
    for temperature in ("0.6", "1"):
        at = f"T = {temperature}: tau"
        assert told[f"{at}, dspark, tree"][1] == "rule traversal"
        assert told[f"{at}, dspark, chain"][1] == "rule block"
        assert told[f"{at}, medusa"][1] == "rule naive"
        assert float(told[f"{at}, dspark, tree / dspark, tree, marginals"][0].rstrip("x")) > 0
        assert (f"{at}, dspark, chain / dflash, chain" in told) is dflash
    both = told["T = 0.6: drafting a round, dspark, chain of 2 / eagle, chain of 2"]
    assert float(both[0]) > 0
    (written,) = tmp_path.rglob("benchmark.json")
    ways = json.loads(written.read_text())["ways"]["T = 1"]
    kept = {name: ways[name]["tau"] for name in ("dspark, chain", "eagle3, chain")}
    ratio = float(told["T = 1: tau, dspark, chain / eagle3, chain"][0].rstrip("x"))
    assert ratio == pytest.approx(kept["dspark, chain"] / kept["eagle3, chain"], abs=0.006)


def test_a_calibration_error_by_hand():
    """Two tokens in one bin, 0.1 too sure on average; one in another, 0.3 not sure enough."""
    sure, right = torch.tensor([0.92, 0.98, 0.15]), torch.tensor([0.8, 0.9, 0.45])
    assert heads_budget.binned_error(sure, right) == pytest.approx((0.2 + 0.3) / 3)
    assert heads_budget.binned_error(right, right) == 0


def test_heads_of_equal_budgets(texts, target, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Two heads and two seeds, trained for a second or so; then nothing is trained again."""
    prompts = [{"prompt": f"def function_{n}_1(x):", "category": "code"} for n in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    training = [each for each in TINY if not each.startswith(("drafter.steps", "device"))]
    wanted = heads_budget.Budget(
        **SMALL,
        minutes=0.01,
        heads=["medusa", "dspark"],
        target=str(target),
        prompts=str(tmp_path / "prompts.jsonl"),
        training=[*training, f"text.source={texts}", "samples.share=0.5", "evaluate_every=1000"],
        trained=str(tmp_path / "trained"),
        output=str(tmp_path / "out"),
        temperatures=[1.0],
    )
    heads_budget.main(wanted)
    said = cells(capsys.readouterr().out)
    assert list(said) == ["medusa, tree", "dspark, tree", "dspark, chain"]
    for row in said.values():
        tau, each, steps = row[1], row[2].split(", "), row[-1].split(", ")
        assert len(each) == len(steps) == 2
        assert min(map(float, each)) <= float(tau.split()[0]) <= max(map(float, each))
        assert all(int(count) >= 1 for count in steps)
        assert 0 <= float(row[5]) <= 1
    for kind in ("medusa", "dspark"):
        for seed in (0, 1):
            folder = tmp_path / "trained" / f"{kind}-{seed}"
            progress = json.loads((folder / "checkpoint" / "progress.json").read_text())
            assert progress["training"] >= 0.6

    def never(*arguments: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(recipes, "train", never)
    heads_budget.main(wanted)
    again = cells(capsys.readouterr().out)
    assert [row[1] for row in again.values()] == [row[1] for row in said.values()]
    wanted.minutes = 0.02
    with pytest.raises(ValueError, match=r"with other settings: minutes 0\.01, now 0\.02"):
        heads_budget.main(wanted)


def prompts_of(folder: Path) -> list[str]:
    return (folder / "prompts.jsonl").read_text().splitlines()


def published(head: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """config.json and weights as DeepSpec publishes heads."""
    if head.kind != "eagle3":
        return published_block(head)
    config = {
        **head.settings["layer"],
        "vocab_size": head.vocabulary,
        "draft_vocab_size": head.settings["draft_vocabulary"],
        "eagle_aux_hidden_state_layer_ids": list(head.taps),
    }
    return config, {name: weight.contiguous() for name, weight in head.weights().items()}


def test_the_table_of_deepspec(tiny, tmp_path, monkeypatch):
    """Chains of 7 at T = 1 under token by token rejection, for each data set and head."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    names = {"eagle3": "eagle3_qwen3_4b_ttt7", "dflash": "dflash_qwen3_4b_block7"}
    names["dspark"] = "dspark_qwen3_4b_block7"
    made = heads_for(tiny, block=7)
    for kind, name in names.items():
        config, weights = published(made[kind])
        (tmp_path / "heads" / name).mkdir(parents=True)
        (tmp_path / "heads" / name / "config.json").write_text(json.dumps(config))
        save_file(weights, tmp_path / "heads" / name / "model.safetensors")
    words = [json.loads(line)["prompt"] for line in prompts_of(tiny)]
    (tmp_path / "eval_datasets").mkdir()
    for name in ("gsm8k", "mt-bench"):
        lines = [{"turns": [word, "and then"], "question_id": n} for n, word in enumerate(words)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "eval_datasets" / f"{name}.jsonl").write_text(text)
    quiet = ["progress=false", "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]
    own = [f"target.name={tiny}", "prompts.subset=gsm8k,mt-bench", "max_new_tokens=16", "warmup=0"]
    monkeypatch.setattr(sys, "argv", ["run", "-m", "experiment=deepspec_table", *own, *quiet])
    run.program()
    found = studies.read("deepspec_table").results
    assert len(found) == 6
    for one in found:
        method = one.method
        assert (method.verifier, one.prompts, method.tokens) == ("token", 4, 64)
        assert method.tau == pytest.approx(64 / method.row_rounds)
        assert 1 <= method.tau_macro <= 8
        assert {entry.category for entry in method.per_prompt} == {one.config.prompts.subset}
    shown = tables.definitions_of_tau(knobs.told_apart(found)).text
    assert {"τ (micro)", "τ (macro)"} <= set(shown.columns)
    assert len(set(shown["method"])) == 6
    assert any("DSpark" in name and "mt-bench" in name for name in shown["method"])
