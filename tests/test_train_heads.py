"""Training of heads: losses by hand, the states and samples that it learns from, and runs in
miniature that survive a kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from torch import Tensor, nn

import specdec
from experiments.training import checkpoints, loop, recipes, samples
from experiments.training.checkpoints import Progress
from experiments.training.head import accuracies, loss_of
from experiments.training.loop import fit, optimisers
from experiments.training.losses import LOSSES, distance, mass_by_rank
from experiments.training.samples import sample
from experiments.training.teacher import Cached, Teacher
from experiments.training.text import Stream, train_tokenizer
from specdec.heads.features import FeatureHead
from specdec.heads.head import Guess, Head
from specdec.heads.marks import mark_of
from specdec.models.language_model import TransformersLM
from specdec.plugins import CONF, build
from tests import models
from tests.models import CHAINS, HEADS, continued, lm, prompts

ROOT = Path(__file__).parent.parent
RECIPES = sorted(
    path.stem
    for path in (CONF / "train" / "drafter").glob("*.yaml")
    if OmegaConf.load(path).get("head")
)

# ------------------------------------------------------------------------------------------- losses

P, Q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.5, 0.3]])
KL = float((P * (P / Q).log()).sum())
LAMBDA = float(np.exp(-3 * 0.7))  # alpha = 0.2 + 0.3 + 0.2
BY_HAND = {
    "ce": -np.log(0.2),
    "kl": KL,
    "tv": 0.3,
    "hybrid": LAMBDA * KL + (1 - LAMBDA) * 0.3,
    "dspark": 0.1 * KL + 0.9 * 0.6,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_by_hand(loss):
    torch.testing.assert_close(
        distance(P, Q.log() + 5, loss), torch.tensor([BY_HAND[loss]], dtype=torch.float32)
    )
    if loss != "ce":
        torch.testing.assert_close(distance(P, P.log(), loss), torch.zeros(1), rtol=0, atol=1e-6)


def test_the_share_of_the_hybrid_loss_has_no_slope():
    def slope(loss: str) -> Tensor:
        logits = Q.log().requires_grad_()
        distance(P, logits, loss).sum().backward()
        assert logits.grad is not None
        return logits.grad

    torch.testing.assert_close(slope("hybrid"), LAMBDA * slope("kl") + (1 - LAMBDA) * slope("tv"))


def test_losses_over_a_part_of_the_vocabulary():
    """The target's mass on tokens that the head lacks is never accepted; the best head shares out
    the rest."""
    part = P[:, :2]  # 0.8 of the mass
    best = (part / part.sum()).log()
    torch.testing.assert_close(distance(part, best, "tv"), torch.tensor([0.2]))
    for loss in ("kl", "hybrid"):
        assert float(distance(part, best, loss)) < float(
            distance(part, best + torch.tensor([[0.3, 0.0]]), loss)
        )


def test_an_unknown_loss_is_named():
    with pytest.raises(ValueError, match=r"one of ce, kl, tv, hybrid, dspark, got 'mse'"):
        distance(P, Q.log(), "mse")


def test_mass_by_rank_by_hand():
    """The head ranks 1, 2, 0 on the first row and 0, 1, 2 on the second."""
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    torch.testing.assert_close(
        mass_by_rank(p, logits, 10),
        torch.tensor([(0.3 + 0.1) / 2, (0.2 + 0.2) / 2, (0.5 + 0.7) / 2]),
    )


class Oracle(Head):
    """Says what the target says, `steps` tokens ahead: it sees the states there."""

    kind, taps = "oracle", ("head",)

    def __init__(self, steps: int, blur: float = 1.0) -> None:
        super().__init__()
        self.steps, self.blur = steps, blur

    def guesses(self, ids: Tensor, taps: Tensor, target: Any) -> list[Guess]:
        return [
            Guess(target.head(taps[:, step:, -1]) * self.blur, step, taps[:, step:, -1])
            for step in range(1, self.steps + 1)
        ]


def a_lesson(target: TransformersLM, taps: tuple[Any, ...] = ("head",)) -> tuple[Teacher, Any]:
    teacher = Teacher(target, taps)
    return teacher, teacher.on_the_fly(lambda step: np.array(prompts(12, 12, seed=step)))(0)


def test_a_guess_is_compared_with_the_law_at_its_own_place():
    """Nothing is lost on a head that sees the future; a step beside would cost."""
    teacher, lesson = a_lesson(lm("llama_gqa"))
    for loss in ("kl", "tv", "hybrid"):
        assert float(
            loss_of(Oracle(3), teacher, lesson, loss, 0.8, states_weight=1.0)
        ) == pytest.approx(0, abs=1e-5)
    assert float(loss_of(Oracle(3, blur=0.3), teacher, lesson, "kl", 0.8)) > 0.02
    p = teacher.law(lesson.last[:, 1:], 0.6).sort(-1, descending=True).values.flatten(0, 1).mean(0)
    table = accuracies(Oracle(2), teacher, [lesson], 0.6, "cpu")
    assert [len(row) for row in table] == [10, 10]
    # its own logits are rounded to bfloat16 on the way
    assert table[0] == pytest.approx(p[:10].tolist(), abs=0.01)


def test_depths_weigh_as_they_are_asked_to():
    target = lm("llama_gqa")
    teacher, lesson = a_lesson(target)
    head = models.head("medusa", target)
    with torch.no_grad():
        parts = []
        for guess in head.guesses(lesson.ids, lesson.taps, target):
            truth = target.model(input_ids=lesson.ids).logits[
                :, guess.offset : guess.offset + guess.logits.shape[1]
            ]
            parts.append(
                float(
                    distance(
                        truth.softmax(-1).flatten(0, 1), guess.logits.flatten(0, 1), "kl"
                    ).mean()
                )
            )
        found = float(loss_of(head, teacher, lesson, "kl", 0.5))
    assert found == pytest.approx((parts[0] + 0.5 * parts[1] + 0.25 * parts[2]) / 1.75, rel=1e-4)


def test_a_head_with_its_own_vocabulary_is_compared_on_that():
    target = lm("llama_gqa")
    head: Any = models.head("eagle3", target)
    teacher, lesson = a_lesson(target, head.taps)
    with torch.no_grad():
        (guess,) = head.guesses(lesson.ids, lesson.taps, target)
        q = guess.logits.softmax(-1)
        p = target.model(input_ids=lesson.ids).logits[:, 1:].softmax(-1)
        alpha = torch.stack(
            [
                torch.minimum(p[..., token], q[..., own])
                for own, token in enumerate(head.token_ids.tolist())
            ]
        ).sum(0)
        assert float(loss_of(head, teacher, lesson, "tv", 0.8)) == pytest.approx(
            float(1 - alpha.mean()), rel=1e-4
        )


# -------------------------------------------------------------------------------------- the teacher


def windows(step: int) -> np.ndarray:
    return np.array(prompts(8, 8, seed=step))


@pytest.mark.parametrize("autocast", [False, True])
def test_cached_states_are_those_computed_on_the_fly(tmp_path, autocast):
    """Exactly, and again in the second pass, also where training autocasts."""
    target = lm("llama_gqa", torch.bfloat16)
    teacher = Teacher(target, (1, 2))
    cached, live = Cached(teacher, windows, 3, tmp_path), teacher.on_the_fly(windows)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for step in (0, 2, 4):
            ours, theirs = cached(step), live(step % 3)
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
            assert ours.taps.shape == (2, 8, 2, target.hidden_size)


def test_a_fill_that_was_interrupted_goes_on(tmp_path):
    teacher, asked = Teacher(lm("llama_gqa", torch.bfloat16), ("head",)), []

    def killed(step: int) -> np.ndarray:
        if step == 55:
            raise KeyboardInterrupt
        return windows(step)

    with pytest.raises(KeyboardInterrupt):
        Cached(teacher, killed, 58, tmp_path)

    def counted(step: int) -> np.ndarray:
        asked.append(step)
        return windows(step)

    cached, live = Cached(teacher, counted, 58, tmp_path), teacher.on_the_fly(windows)
    assert asked == [0, *range(50, 58)]  # the first tells the shape
    for step in (0, 49, 50, 57):
        assert torch.equal(cached(step).taps, live(step).taps)
    asked.clear()
    Cached(teacher, counted, 58, tmp_path)
    assert asked == [0]


def test_states_that_do_not_fit_are_refused_before_anything_is_computed(tmp_path, capsys):
    """The size is told first: 10^9 batches of 2 x 8 tokens, 32 numbers of 2 bytes each, and ids of
    4."""
    teacher = Teacher(lm("llama_gqa"), ("head",))
    with pytest.raises(ValueError, match=r"need 1088\.0 GB .* cache fewer"):
        Cached(teacher, windows, 10**9, tmp_path / "states")
    assert "1088.00 GB" in " ".join(capsys.readouterr().err.split())  # lines are wrapped
    assert list((tmp_path / "states").iterdir()) == []


def test_a_folder_with_other_states_is_refused(tmp_path):
    target = lm("llama_gqa")
    Cached(Teacher(target, ("head",)), windows, 2, tmp_path)
    for taps, other, steps in (
        ((1,), windows, 2),
        (("head",), windows, 3),
        (("head",), lambda step: windows(step + 7), 2),
    ):
        with pytest.raises(ValueError, match="give another folder"):
            Cached(Teacher(target, taps), other, steps, tmp_path)


# ------------------------------------------------------------------------------------------ samples

STREAM = Stream(
    np.random.default_rng(0).integers(models.VOCABULARY, size=400).astype(np.int32), 400
)


def test_samples_are_the_targets_own_and_are_made_once(tmp_path, monkeypatch):
    target, calls, generate = lm("llama_gqa"), [], specdec.generate

    def counted(*arguments: Any, **options: Any) -> specdec.Output:
        calls.append(options["temperature"])
        return generate(*arguments, **options)

    monkeypatch.setattr(samples.specdec, "generate", counted)

    def make(folder: Path) -> np.ndarray:
        return sample(target, STREAM, folder, 6, 12, 4, [0.6, 1.0], 2, seed=5).ids

    whole = make(tmp_path / "whole")
    assert whole.shape == (6, 12)
    assert calls == [0.6, 1.0, 0.6]
    assert np.array_equal(whole[:2, :4], STREAM.windows(4, 2, 5, 0))
    assert len({tuple(row) for row in whole.tolist()}) == 6

    # As after a kill in the third batch: what is there is kept, the rest is the same.
    make(tmp_path / "again")
    sorted((tmp_path / "again").glob("*.npy"))[2].unlink()
    (tmp_path / "again" / "half.new").write_text("not whole")
    calls.clear()
    assert np.array_equal(make(tmp_path / "again"), whole)
    assert calls == [0.6]


def test_greedy_samples_are_greedy(tmp_path):
    target = lm("llama_gqa")
    ids = sample(target, STREAM, tmp_path, 2, 10, 4, [0.0], 2, seed=0).ids
    with torch.inference_mode():
        best = target.model(input_ids=torch.from_numpy(ids.astype(np.int64))).logits.argmax(-1)
    assert np.array_equal(best[:, 3:-1].numpy(), ids[:, 4:])


def test_samples_need_room_behind_their_opening(tmp_path):
    with pytest.raises(ValueError, match="samples of 8 tokens cannot open with 8"):
        sample(lm("llama_gqa"), STREAM, tmp_path, 2, 8, 8, [1.0], 2, seed=0)


def test_rows_of_a_pass_are_all_different_and_a_step_is_its_own():
    rows = samples.Rows(np.arange(60).reshape(6, 10))
    seen = np.concatenate([rows.windows(10, 2, 0, step) for step in range(3)])
    assert sorted(map(tuple, seen)) == sorted(map(tuple, rows.ids))
    assert np.array_equal(rows.windows(8, 2, 0, 4), rows.windows(8, 2, 0, 4))
    with pytest.raises(ValueError, match="asked of 6 samples of 10"):
        rows.windows(11, 2, 0, 0)


# -------------------------------------------------------------------------------- runs in miniature

TINY = [
    "text=files",
    "text.held_out=0.3",
    "evaluate_every=2",
    "evaluate_windows=8",
    "evaluate_prompts=2",
    "samples.rows=4",
    "samples.batch=2",
    "samples.prompt=4",
    "device=cpu",
    "drafter.batch=4",
    "drafter.context=16",
    "drafter.steps=4",
    "drafter.warmup=1",
]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(24):
        lines = [f"def function_{number}_{line}(x):\n    return x + {line}\n" for line in range(20)]
        (folder / f"module_{number}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def target(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random target with a tokenizer of the texts, on disk."""
    folder = tmp_path_factory.mktemp("target")
    tokenizer = train_tokenizer((path.read_text() for path in sorted(texts.iterdir())), 300)
    model = models.long_llama(context=40, vocab_size=len(tokenizer), num_hidden_layers=4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def overrides(recipe: str, texts: Path, target: Path, output: Path, *more: str) -> list[str]:
    head = OmegaConf.load(CONF / "train" / "drafter" / f"{recipe}.yaml").get("head", {})
    fewer = ["drafter.head.draft_vocabulary=64"] if "draft_vocabulary" in head else []
    return [
        f"drafter={recipe}",
        *TINY,
        *fewer,
        f"text.source={texts}",
        f"target={target}",
        f"output={output}",
        *more,
    ]


def settings(*arguments: Any) -> Any:
    with initialize_config_dir(str(CONF / "train"), version_base="1.3"):
        return compose("train", overrides(*arguments))


def log_of(folder: Path) -> list[dict[str, float]]:
    """Without the seconds, which no two runs share."""
    log = json.loads((folder / "checkpoint" / "log.json").read_text())
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in log]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_of_a_head_trains_and_its_drafter_takes_the_head(
    recipe, texts, target, tmp_path
):
    config = settings(recipe, texts, target, tmp_path)
    recipes.RECIPES.get(config.title, recipes.train_head)(config, tmp_path, "cpu")
    log = log_of(tmp_path)
    assert [entry["step"] for entry in log] == [2, 4]
    assert {"loss", "tau", "top1_depth1", "top5_depth1"} <= set(log[-1])
    assert log[-1]["tau"] >= 1
    assert 0 <= log[-1]["top1_depth1"] <= log[-1]["top5_depth1"] <= 1
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    drafter = {
        "name": config.title,
        **OmegaConf.to_container(config.drafter.drafter),
        "heads": str(tmp_path / "head"),
    }
    plain = specdec.generate(str(target), "def f", drafter="none", max_new_tokens=8)
    out = specdec.generate(str(target), "def f", drafter=drafter, max_new_tokens=8)
    assert out.tokens[0].tolist() == plain.tokens[0].tolist()
    notes = build("drafter", drafter).heads.notes  # type: ignore[attr-defined]
    assert notes["temperature"] == config.drafter.temperature
    assert 0 < sum(notes["accuracies"][0]) <= 1 + 1e-6
    assert notes["target"] == mark_of(specdec.load(target))
    other = specdec.load(target)
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(1.5)
    with pytest.raises(ValueError, match="was trained for another target"):
        specdec.generate(other, "def f", drafter=drafter, max_new_tokens=8)


@pytest.mark.parametrize("recipe", ["medusa", "eagle3"])
def test_interrupted_training_resumes_to_the_same_losses(
    recipe, texts, target, tmp_path, monkeypatch
):
    """Killed in the fourth step, two after the checkpoint; half of each batch are samples, kept
    from the first time."""
    more = ("samples.share=0.5",)
    recipes.train_head(
        settings(recipe, texts, target, tmp_path / "whole", *more), tmp_path / "whole", "cpu"
    )
    sound, steps = recipes.head_loss, []

    def killed(*arguments: Any) -> Tensor:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return sound(*arguments)

    broken = settings(recipe, texts, target, tmp_path / "broken", *more)
    monkeypatch.setattr(recipes, "head_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        recipes.train_head(broken, tmp_path / "broken", "cpu")
    assert [entry["step"] for entry in log_of(tmp_path / "broken")] == [2]
    recipes.train_head(broken, tmp_path / "broken", "cpu")
    assert len(steps) == 4 + 2
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "whole")


def test_samples_of_other_settings_are_refused(texts, target, tmp_path):
    config = settings("medusa", texts, target, tmp_path, "samples.share=0.5")
    loaded = specdec.load(str(target))
    _, training, _ = recipes.text(config, loaded.tokenizer)
    recipes.mixed(config, loaded, training, tmp_path)
    config = settings(
        "medusa", texts, target, tmp_path, "samples.share=0.5", "samples.temperatures=[0.3]"
    )
    with pytest.raises(
        ValueError, match=r"temperatures \[.*\], now \[0.3\]\); give another samples.folder"
    ):
        recipes.mixed(config, loaded, training, tmp_path)


def test_a_share_of_each_batch_is_samples(texts, target, tmp_path):
    config = settings("medusa", texts, target, tmp_path, "samples.share=0.5")
    loaded = specdec.load(str(target))
    _, training, _ = recipes.text(config, loaded.tokenizer)
    batches = recipes.mixed(config, loaded, training, tmp_path)
    written = {
        tuple(row)
        for file in (tmp_path / "samples").glob("*.npy")
        for row in np.load(file).tolist()
    }
    assert sum(len(np.load(file)) for file in (tmp_path / "samples").glob("*.npy")) == 4
    for step in (0, 1, 5):
        batch = batches(step)
        assert batch.shape == (4, 16)
        assert {tuple(row) for row in batch[:2].tolist()} <= written
        assert np.array_equal(batch[2:], training.windows(16, 2, config.seed + 1, step))
    only = settings("medusa", texts, target, tmp_path, "samples.share=1.0")
    assert {
        tuple(row) for row in recipes.mixed(only, loaded, training, tmp_path)(0).tolist()
    } == written


def test_states_on_disk_train_to_the_same_losses(texts, target, tmp_path):
    """As many batches as steps: nothing is read twice. The target's float32 states are rounded to
    bfloat16 on disk."""
    for name, more in (("live", ()), ("cached", ("cache_batches=4",))):
        recipes.train_head(
            settings("eagle", texts, target, tmp_path / name, *more), tmp_path / name, "cpu"
        )
    assert (tmp_path / "cached" / "states" / "states.npy").exists()
    for ours, theirs in zip(log_of(tmp_path / "cached"), log_of(tmp_path / "live"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)


def test_a_head_needs_a_target(texts, tmp_path):
    with pytest.raises(ValueError, match="target=demo"):
        recipes.train_head(settings("medusa", texts, "null", tmp_path), tmp_path, "cpu")


@pytest.mark.parametrize(
    ("key", "allowed"),
    [("_target_", False), ("_target_", True), ("heads", True)],
    ids=["foreign", "function", "nested"],
)
def test_what_makes_a_head_is_checked_before_it_is_called(
    key, allowed, texts, target, tmp_path, monkeypatch
):
    """A function of a foreign package; of an allowed one, making no head; one within settings."""
    mark, name = tmp_path / "mark", f"head_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "def make(*found, **more):\n    open(more['path'], 'w').close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    if allowed:
        monkeypatch.setenv("SPECDEC_ALLOW", name)
    config = settings("medusa", texts, target, tmp_path)
    with open_dict(config):
        evil = {"_target_": f"{name}.make", "path": str(mark)}
        config.drafter.head = evil if key == "_target_" else {**config.drafter.head, key: evil}
    with pytest.raises(
        (ValueError, TypeError), match=rf"_target_ {name}\.make" if key == "_target_" else "object"
    ):
        recipes.train_head(config, tmp_path, "cpu")
    assert not mark.exists()


# -------------------------------------------------------------------------------------- overfitting


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_ten_sequences_are_learnt_by_heart(kind, tmp_path):
    """The greedy continuations of ten prompts by a random target: what was trained on is what
    decoding meets, so nearly every draft of its own greedy chain is accepted."""
    target, openings = lm("llama_gqa"), prompts(*[4] * 10)
    texts = continued(target, openings, 28)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = (
            HEADS[kind](target)
            if kind != "eagle3"
            else type(models.head(kind, target)).for_target(target)
        )
    if isinstance(head, FeatureHead):
        head.steps = 3
    teacher = Teacher(target, head.taps)
    lesson = teacher.on_the_fly(lambda step: texts)(0)
    fit(
        head,
        lambda step: loss_of(head, teacher, lesson, "ce", 0.9),
        dict,
        optimisers(head, 0.02, 5e-3, vocabulary=target.vocabulary),
        tmp_path,
        steps=400,
        warmup=10,
        every=400,
    )
    made = build("drafter", {"name": kind, "heads": head.eval(), **CHAINS[kind]})
    out = specdec.generate(target, openings, drafter=made, max_new_tokens=28)
    assert out.report.acceptance_rate > 0.9
    assert out.report.tau > 3.3  # of 4


# --------------------------------------------------------------------- kills, and several processes


class Point(nn.Module):
    """Two weights that are pulled towards a step's own place."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2, 2))
        self.bias = nn.Parameter(torch.zeros(2))

    def loss(self, step: int) -> Tensor:
        wanted = torch.randn(2, 2, generator=torch.Generator().manual_seed(step))
        return ((self.place + self.bias - wanted) ** 2).mean()


def rehearse(
    folder: Path, steps: int = 40, pause: float = 0.0, rank: int = 0
) -> list[dict[str, float]]:
    """A training of `Point` that notes each step which it begins."""
    torch.set_num_threads(1)
    model, notes = Point(), folder / f"steps{rank}.txt"
    folder.mkdir(parents=True, exist_ok=True)

    def noted(step: int) -> Tensor:
        with notes.open("a") as file:
            file.write(f"{step}\n")
        time.sleep(pause)
        return model.loss(step)

    def evaluate() -> dict[str, float]:
        return {"place": float(model.place.sum())}

    log = fit(
        model, noted, evaluate, optimisers(model, 0.02, 0.02), folder, steps, warmup=2, every=5
    )
    (folder / f"weights{rank}.json").write_text(json.dumps(model.place.tolist()))
    return log


def python(*arguments: str, **options: Any) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-4000:]


@pytest.mark.slow
def test_a_kill_loses_at_most_the_last_interval(tmp_path):
    """kill -9 somewhere after the twelfth step. The checkpoint is at most five steps old, and the
    run that goes on from it ends as one that was never killed."""
    imports = "from pathlib import Path; from tests.test_train_heads import rehearse"
    call = f"{imports}; rehearse(Path({str(tmp_path / 'killed')!r})"
    process, notes = python("-c", f"{call}, pause=0.05)"), tmp_path / "killed" / "steps0.txt"
    deadline = time.monotonic() + 500
    while not (notes.exists() and len(notes.read_text().split()) > 12):
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = int(notes.read_text().split()[-1])
    assert begun < 39  # it was in the middle
    model = Point()
    start = checkpoints.load(model, optimisers(model, 0.02, 0.02), tmp_path / "killed").step
    assert 0 <= begun - start <= 5
    assert start >= 10
    rehearse(tmp_path / "killed")
    rehearse(tmp_path / "whole")
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert (tmp_path / "killed" / "weights0.json").read_text() == (
        tmp_path / "whole" / "weights0.json"
    ).read_text()


def test_a_checkpoint_outlives_a_kill_between_its_two_renames(tmp_path, monkeypatch):
    """The old one was moved away, the new one not yet put in its place: the old one counts, until
    there is a new one."""
    rehearse(tmp_path, steps=5)
    model = Point()
    muon_and_adam = optimisers(model, 0.02, 0.02)

    def reached() -> int:
        return checkpoints.load(model, muon_and_adam, tmp_path).step

    assert reached() == 5
    replace, calls = os.replace, []

    def killed_second(source: Any, place: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, place)

    monkeypatch.setattr(os, "replace", killed_second)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(model, muon_and_adam, tmp_path, Progress(10))
    assert reached() == 5
    # A second kill at the same place must not cost the only one that is left.
    calls[:] = [None]
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(model, muon_and_adam, tmp_path, Progress(10))
    assert reached() == 5
    monkeypatch.setattr(os, "replace", replace)
    checkpoints.save(model, muon_and_adam, tmp_path, Progress(10))
    assert reached() == 10


def test_a_kill_after_ten_minutes_loses_little(tmp_path, monkeypatch):
    """Steps of 20 seconds, evaluations an hour apart, the spacing that training has by default: a
    run that is killed after ten minutes loses two at most, and ends as one that was never killed.
    """
    minutes = OmegaConf.load(CONF / "train" / "train.yaml").checkpoint_minutes
    now, killed_at = [0.0], 30
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    def train(name: str, kill: bool) -> list[dict[str, float]]:
        model = Point()

        def slow(step: int) -> Tensor:
            if kill and step == killed_at:
                raise KeyboardInterrupt
            now[0] += 20
            return model.loss(step)

        def evaluate() -> dict[str, float]:
            return {"place": float(model.place.sum())}

        folder = tmp_path / name
        return fit(
            model,
            slow,
            evaluate,
            optimisers(model, 0.02, 0.02),
            folder,
            40,
            2,
            every=180,
            minutes=minutes,
        )

    whole = train("whole", kill=False)
    with pytest.raises(KeyboardInterrupt):
        train("killed", kill=True)
    model = Point()
    start = checkpoints.load(model, optimisers(model, 0.02, 0.02), tmp_path / "killed").step
    assert 0 <= (killed_at - start) * 20 <= 120
    assert start > 0
    assert train("killed", kill=False) == whole


def launch(*arguments: str, **options: Any) -> subprocess.Popen:
    """Two processes on the CPU. (`accelerate launch` itself starts several CPU processes only
    through MPI.)"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}")
    return python(*launcher, *arguments, ACCELERATE_USE_CPU="true", **options)


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    """Each takes its own batches, both end at the same weights, which are those of one process that
    averages itself."""
    script = tmp_path / "together.py"
    script.write_text(
        "import os\nfrom pathlib import Path\nfrom tests.test_train_heads import rehearse\n"
        f"rehearse(Path({str(tmp_path / 'out')!r}), steps=10, rank=int(os.environ['RANK']))\n"
    )
    finished(launch(str(script)))
    steps = [
        list(map(int, (tmp_path / "out" / f"steps{rank}.txt").read_text().split()))
        for rank in (0, 1)
    ]
    assert steps == [list(range(0, 20, 2)), list(range(1, 20, 2))]
    weights = [
        json.loads((tmp_path / "out" / f"weights{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert weights[0] == weights[1]

    model = Point()
    fit(
        model,
        lambda step: (model.loss(2 * step) + model.loss(2 * step + 1)) / 2,
        dict,
        optimisers(model, 0.02, 0.02),
        tmp_path / "alone",
        10,
        warmup=2,
        every=5,
    )
    torch.testing.assert_close(torch.tensor(weights[0]), model.place.detach())


@pytest.mark.slow
def test_two_processes_train_one_head_and_wandb_is_told_once(texts, target, tmp_path):
    pytest.importorskip("wandb")
    more = ("samples.share=0.5", "cache_batches=3", "logger=wandb", "logger.project=rehearsal")
    arguments = overrides("medusa", texts, target, tmp_path, *more)
    finished(
        launch("-m", "experiments.train", *arguments, WANDB_MODE="offline", WANDB_SILENT="true")
    )
    assert [entry["step"] for entry in log_of(tmp_path)] == [2, 4]
    assert (tmp_path / "head" / "model.safetensors").exists()
    assert (tmp_path / "training.png").exists()
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1
