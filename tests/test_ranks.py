"""Two processes that hold one target between them decode what one process does; rank 0 writes; a
rank that dies ends the run with its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import specdec
from experiments.study import result
from experiments.system import ranks as processes
from specdec.plugins import CONF
from specdec.ranks import ranks_of, refuse_own_clocks
from tests.models import build, head, prompts, shared, similar

ROWS = prompts(9, 1, 14, 7)
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WANTED = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3, "seats": 3}
DRAFTERS = {
    "none": {},
    "small_model": {"depth": 3, "branching": 2},
    "eagle": {"depth": 3, "nodes": 8},
    "layer_skip": {"depth": 2, "skip": {"layers": 3, "attention": [1], "mlp": [1]}},
    "early_exit": {"depth": 2, "exit": 1},
    "sparse_self": {},
    "medusa": {},
}

# Of every rank: the same prompts with each drafter, and what is refused.
SCRIPT = """
import json, sys
from pathlib import Path
import torch
import specdec
from tests.test_ranks import DRAFTERS, ROWS, WANTED, drafter_of
folder = Path(sys.argv[1])
target = specdec.load(folder / "target", tp_plan="auto")
found = {"ranks": target.ranks}
for name, given in DRAFTERS.items():
    made = drafter_of(name, folder, given)
    try:
        out = specdec.generate(target, ROWS, drafter=made, **WANTED)
        kv = {"kv": "contiguous"} if name == "sparse_self" else {"memory": "1MiB", "page": 4}
        with specdec.Engine(target, drafter=made, seats=2, **kv) as engine:
            handles = [engine.submit(row, max_new_tokens=6) for row in ROWS]
            served = [one.result().tokens for one in handles]
        found[name] = [row.tolist() for row in out.tokens], served
    except ValueError as error:
        found[name] = f"{type(error).__name__}: {error}"
for key, options in {
    "no_harm": {"drafter": "ngram", "no_harm": True},
    "portfolio": {"drafter": "portfolio"},
    "priced": {"drafter": {"name": "priced", "drafter": drafter_of("small_model", folder, {})}},
    "quantized_self": {"drafter": "quantized_self"},
}.items():
    try:
        specdec.generate(target, ROWS[0], max_new_tokens=3, **options)
        found[key] = "not refused"
    except ValueError as error:
        found[key] = f"{type(error).__name__}: {error}"
rank = torch.distributed.get_rank()
(folder / f"found{rank}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


def drafter_of(name: str, folder: Path, given: dict) -> dict:
    own = {"small_model": {"model": str(folder / "draft")}}
    heads = {"heads": str(folder / name)} if (folder / name).exists() else {}
    return {"name": name, **given, **heads, **own.get(name, {})}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CONF.parent), "OMP_NUM_THREADS": "1", **more}


def together(script: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *TWO, *([script] if isinstance(script, str) else [str(script)])]
    return subprocess.run(
        [*command, *arguments], env=environment(), capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target in float64, a draft model and heads, as files."""
    place = tmp_path_factory.mktemp("ranks")
    model = shared("llama_gqa", torch.float64)
    model.save_pretrained(place / "target")
    similar(model).save_pretrained(place / "draft")
    lender = specdec.load(model)
    for kind in ("eagle", "medusa"):
        head(kind, lender).save(place / kind)
    return place


@pytest.mark.slow
def test_two_processes_decode_what_one_does(folder, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = together(script, str(folder))
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((folder / f"found{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["ranks"] == 2
    target = specdec.load(folder / "target")
    for name, given in DRAFTERS.items():
        made = drafter_of(name, folder, given)
        out = specdec.generate(target, ROWS, drafter=made, **WANTED)
        plain = [
            specdec.generate(target, row, drafter="none", max_new_tokens=6).tokens[0].tolist()
            for row in ROWS
        ]
        assert first[name] == [[row.tolist() for row in out.tokens], plain], name
    assert "no_harm decides by the clock, and the 2 ranks" in first["no_harm"]
    assert "portfolio decides by the clock" in first["portfolio"]
    assert "decides by the clock" in first["priced"]
    assert "quantize packs whole layers" in first["quantized_self"]


USED = ("drafter=small_model", "target.dtype=float64", "max_new_tokens=10", "sampling=cool")


@pytest.fixture
def options(folder, tiny, tmp_path):
    """A run with a target that two ranks can hold, and prompts of its tokenizer."""
    from transformers import AutoTokenizer

    for name in ("target", "draft"):
        AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / name)
    lines = ["target=model", f"target.name={folder}/target", "target.tp_plan=auto", *USED]
    lines += [f"drafter.model={folder}/draft", "prompts=jsonl", "prompts.limit=2"]
    return [*lines, f"prompts.path={tiny}/prompts.jsonl", f"hydra.run.dir={tmp_path}/here"]


@pytest.mark.slow
def test_rank_0_writes_and_the_others_leave_nothing(options, tmp_path):
    done = together("-m", "experiments.run", *options)
    assert done.returncode == 0, done.stderr
    found = result.read(tmp_path / "here" / "result.json")
    assert found.prompts == 2
    assert found.config.target.tp_plan == "auto"
    alone = [each for each in options if "tp_plan" not in each and "run.dir" not in each]
    single = subprocess.run(
        [sys.executable, "-m", "experiments.run", *alone, f"hydra.run.dir={tmp_path}/alone"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert single.returncode == 0, single.stderr
    whole = result.read(tmp_path / "alone" / "result.json")
    assert found.method.tau == whole.method.tau
    assert found.method.accepted_lengths == whole.method.accepted_lengths
    assert {path.name for path in tmp_path.iterdir()} == {"here", "alone"}


DIES = """
import os, signal
from experiments import run
from specdec import groups, outcome
agreed, rounds = outcome.agreed, []
def dies(found):
    rounds.append(found)
    if os.environ["RANK"] == "1" and len(rounds) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return agreed(found)
outcome.agreed = dies
run.program()
"""


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_run_with_its_name(options, tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    done = together(script, f"--config-dir={CONF}", *options)
    assert done.returncode != 0
    assert "rank      : 1 (local_rank: 1)" in done.stderr
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert not (tmp_path / "here" / "result.json").exists()


def test_processes_and_plan_go_together(monkeypatch, command):
    with pytest.raises(ValueError, match="is for several processes; start them with torchrun"):
        command("target.tp_plan=auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"each would do this whole run; set target\.tp_plan=auto"):
        command("drafter=ngram", "hydra.run.dir=there")
    with pytest.raises(ValueError, match="this command is a sweep; start one torchrun for each"):
        command("-m", "drafter=ngram")


def test_a_rank_that_does_not_write_has_a_folder_that_is_removed(monkeypatch):
    given = ["seed=1", "hydra.run.dir=here", "logger=wandb"]
    with processes.of_this_rank(given) as alone:
        assert alone == given
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with processes.of_this_rank(given) as arguments:
        (folder,) = (each for each in arguments if each.startswith("hydra.run.dir="))
        assert Path(folder.partition("=")[2]).is_dir()
        assert "logger=none" in arguments
        assert not {"logger=wandb", "hydra.run.dir=here"} & set(arguments)
        assert arguments[0] == "seed=1"
    assert not Path(folder.partition("=")[2]).exists()


def test_what_shards_cannot_do_is_refused_by_name():
    target = specdec.load(build("llama_gqa"))
    assert ranks_of(target) == 1
    refuse_own_clocks(target, "nothing")
    target.model._tp_size = 2
    assert ranks_of(target) == 2
    with pytest.raises(specdec.Refused, match="no_harm decides by the clock"):
        specdec.generate(target, [5], max_new_tokens=3, drafter="ngram", no_harm=True)
    with pytest.raises(specdec.Refused, match="portfolio decides by the clock"):
        specdec.generate(target, [5], max_new_tokens=3, drafter="portfolio")
    by_clock = {"name": "cascade", "first": "suffix", "then": "ngram"}
    with pytest.raises(specdec.Refused, match="cascade with threshold=auto decides by the clock"):
        specdec.generate(target, [5], max_new_tokens=3, drafter=by_clock)
    with pytest.raises(specdec.Refused, match="quantize packs whole layers"):
        specdec.load(target, quantize="int8")
    for key, value in {"compile": True, "extra_layers": 1, "quantize": "int8"}.items():
        with pytest.raises(ValueError, match=f"{key} and tp_plan were both given"):
            specdec.load("demo", tp_plan="auto", **{key: value})
