"""When a training ends, and which weights it leaves: a budget of minutes, the best measured tau."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from experiments.training import loop, recipes
from experiments.training.checkpoints import last
from experiments.training.loop import best_of, fit, optimisers, rate, since_best
from specdec.plugins import build
from tests.test_train_heads import Point, log_of, settings, target, texts  # noqa: F401 (fixtures)


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_rate_is_that_of_the_linear_schedule(warmup):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, 12)
    for step in range(12):
        assert rate(step, 12, warmup, 0.0) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rate(5, 10**6, 3, 0.75) == pytest.approx(0.25)
    assert rate(5, 10**6, 3, 1.5) == 0.0


def trained(folder: Path, taus: list[float], **more: Any) -> tuple[Point, list[dict[str, float]]]:
    """Ten steps, or fewer, with an evaluation after every second one."""
    model, said = Point(), iter(taus)

    def evaluate() -> dict[str, float]:
        tau = next(said, None)
        if tau is None:
            raise KeyboardInterrupt
        return {"tau": tau, "place": float(model.place.detach().sum())}

    log = fit(
        model, model.loss, evaluate, optimisers(model, 0.02, 0.02), folder, 10, 0, every=2, **more
    )
    return model, log


def test_the_best_weights_are_kept(tmp_path, capsys):
    model, log = trained(tmp_path, [1.0, 3.0, 2.0, 3.0, 1.5], keep="tau")
    assert best_of(log, "tau")["step"] == 8  # the later of two
    assert float(model.place.detach().sum()) == pytest.approx(log[3]["place"])
    assert float(model.place.detach().sum()) != pytest.approx(log[4]["place"])
    assert "kept: the weights after step 8 of 10, tau 3.000" in " ".join(
        capsys.readouterr().err.split()
    )
    model, log = trained(tmp_path / "last", [1.0, 3.0, 2.0, 3.0, 1.5])
    assert float(model.place.detach().sum()) == pytest.approx(log[4]["place"])


def test_training_stops_when_it_gets_no_better(tmp_path):
    _, log = trained(tmp_path, [1.0, 3.0, 2.0, 2.5, 9.0], keep="tau", patience=2)
    assert [entry["step"] for entry in log] == [2, 4, 6, 8]
    assert since_best(log, "tau") == 2
    model, again = trained(tmp_path, [], keep="tau", patience=2)  # nothing is done anew
    assert again == log
    assert float(model.place.detach().sum()) == pytest.approx(log[1]["place"])


def test_the_best_weights_outlive_a_kill(tmp_path):
    with pytest.raises(KeyboardInterrupt):  # in the fourth evaluation
        trained(tmp_path, [1.0, 3.0, 2.0], keep="tau")
    model, log = trained(tmp_path, [2.5, 1.0], keep="tau")
    assert [entry["tau"] for entry in log] == [1.0, 3.0, 2.0, 2.5, 1.0]
    assert float(model.place.detach().sum()) == pytest.approx(log[1]["place"])


def clocked(monkeypatch: pytest.MonkeyPatch, model: Point) -> Callable[[int], Tensor]:
    """Steps that take 20 seconds of a clock of their own."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    def slow(step: int) -> Tensor:
        now[0] += 20
        return model.loss(step)

    return slow


def test_minutes_end_a_training_with_the_rate_at_zero(tmp_path, monkeypatch):
    """Five minutes are 15 steps. Evaluations do not count."""
    model = Point()
    loss, rates = clocked(monkeypatch, model), list[float]()
    made = optimisers(model, 0.02, 0.02)

    def noted(step: int) -> Tensor:
        rates.append(made[0].param_groups[0]["lr"])
        return loss(step)

    def evaluate() -> dict[str, float]:
        loss(0)  # time passes
        return {"tau": 1.0}

    log = fit(model, noted, evaluate, made, tmp_path, 10**6, 2, every=4, budget=5.0)
    assert [entry["step"] for entry in log] == [4, 8, 12, 15]
    assert rates[:3] == pytest.approx([0.0, 0.01, 0.02 * (1 - 2 / 15)])
    assert rates[-1] == pytest.approx(0.02 / 15)
    # What was trained before counts, and nothing is left to do.
    assert fit(model, noted, evaluate, made, tmp_path, 10**6, 2, every=4, budget=5.0) == log
    assert len(rates) == 15


@pytest.mark.parametrize(
    ("override", "wrong"),
    [("keep=first", "keep must be one of best, last"), ("keep=last", "patience counts")],
)
def test_what_makes_no_sense_is_refused(override, wrong, texts, target, tmp_path):  # noqa: F811
    config = settings("medusa", texts, target, tmp_path, override, "patience=2")
    with pytest.raises(ValueError, match=wrong):
        recipes.train_head(config, tmp_path, "cpu")
    assert last(tmp_path) is None


def test_a_head_says_how_it_was_trained(texts, target, tmp_path, monkeypatch):  # noqa: F811
    """Its file has the tau and the step of the weights that were kept."""
    said = iter([5.0, 1.0])
    monkeypatch.setattr(recipes.Decoding, "tau", lambda self, drafter: next(said))
    config = settings("dspark", texts, target, tmp_path, "drafter.head.block=3")
    recipes.train_head(config, tmp_path, "cpu")
    assert [entry["tau"] for entry in log_of(tmp_path)] == [5.0, 1.0]
    notes = json.loads((tmp_path / "head" / "config.json").read_text())["training"]
    assert (notes["step"], notes["tau"], notes["last_step"]) == (2, 5.0, 4)
    drafter: Any = build("drafter", {"name": "dspark", "heads": str(tmp_path / "head")})
    assert drafter.heads.block == 3


def test_matrices_of_a_vocabulary_are_adams():
    """Whichever side the vocabulary is on: as W1 and W2 of a Markov head."""
    model = nn.ParameterDict(
        {"W1": torch.zeros(7, 3), "W2": torch.zeros(3, 7), "inner": torch.zeros(3, 3)}
    )
    muon, adam = optimisers(model, 0.02, 0.003, vocabulary=7)
    assert [tuple(weight.shape) for weight in muon.param_groups[0]["params"]] == [(3, 3)]
    assert len(adam.param_groups[0]["params"]) == 2
