"""One run: decode each prompt with a method and with its baselines, in turn, on the same weights (conf/run.yaml).

python -m experiments.run drafter=ngram sampling=cool
python -m experiments.run -m experiment=demo
python -m experiments.run -m experiment=demo resume=true     only the jobs that left no result
"""

import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments import schema, search_path
from experiments.program import start
from experiments.sweeps import of_the_job
from specdec.registry import described

log = logging.getLogger(__name__)
schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="run")
def main(config: DictConfig) -> float | None:
    """The speed-up over the first baseline (tau where there is none), for sweepers that optimise."""
    from experiments.records import FAILED, RESULT, ROUNDS, abandon, claim, write_json

    hydra_config = HydraConfig.get()
    folder, sweeping = Path(hydra_config.runtime.output_dir), hydra_config.mode is RunMode.MULTIRUN
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    search_path.check(hydra_config.runtime.choices)
    settings["label"] = _label(settings, hydra_config.runtime.choices["drafter"], hydra_config.overrides.task)
    identity = {
        "study": settings["study"],
        "run": str(hydra_config.job.num) if sweeping else folder.name,
        "overrides": of_the_job(list(hydra_config.overrides.task)),
        "choices": {str(k): v for k, v in hydra_config.runtime.choices.items() if not str(k).startswith("hydra/")},
    }
    if settings.pop("resume"):
        if not sweeping:
            raise ValueError("resume=true goes on with a sweep: give it with -m and the sweep's own overrides")
        if (folder / RESULT).exists():
            log.info("job %s has a result", identity["run"])
            return None
        abandon(folder)
    claim(folder)
    try:
        return execute(settings, identity, folder)
    except Exception as error:
        (folder / ROUNDS).unlink(missing_ok=True)
        write_json(
            folder / FAILED,
            {**identity, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()},
        )
        if not sweeping:
            raise
        log.error("job %s failed: %s: %s", identity["run"], type(error).__name__, error)
        return None  # the sweep goes on


def execute(settings: dict[str, Any], identity: dict[str, Any], folder: Path) -> float | None:
    """Decode, measure, write. `settings`: a resolved configuration of conf/run.yaml as plain values."""
    import torch
    from transformers.utils import logging as transformers_logging

    from experiments import flops, logger, measures, records, ways
    from experiments import prompts as prompt_files
    from experiments.certificates.kept import attached
    from experiments.play import Play
    from experiments.progress import bar
    from specdec import Refused

    logger.check(settings["logger"])
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    if settings["batch_size"] < 1:
        raise ValueError(f"batch_size must be >= 1, got {settings['batch_size']}")
    source = dict(settings["prompts"])
    chat, too_long = source.pop("chat", None), source.pop("too_long", "refuse")
    prompts = prompt_files.read(**source)
    available = ways.make(settings)
    play = Play(prompts, available["method"].target, chat, settings["batch_size"], settings["max_new_tokens"], too_long)
    if play.skipped:
        log.info(
            "skipped %d of %d prompts, too long for the target's context: %s",
            len(play.skipped),
            len(prompts),
            ", ".join(str(one["prompt"]) for one in play.skipped),
        )
    head = {"schema_version": records.SCHEMA_VERSION, **identity, "config": settings, **records.surroundings()}
    played: list[measures.Played] = []
    title = f"{identity['run']}: {settings['label']}, T = {settings['sampling']['temperature']:g}"
    try:
        with bar(title, play.turns, settings["progress"]) as advance:
            for one in play(available, settings["warmup"]):
                played.append(one)
                advance()
    except Refused as reason:
        log.info("not applicable: %s", reason)
        records.write_json(folder / records.RESULT, {**head, "status": "not_applicable", "reason": str(reason)})
        return None
    report = played[0].samples["method"].report
    assert report
    frame = measures.rounds(identity["study"], identity["run"], settings["label"], played)
    certificate = attached(settings["drafter"], settings["verifier"], report)
    result = {
        **head,
        "status": "ok",
        "certificate": certificate,
        "skipped": play.skipped,
        **measures.measured(played, available, settings["sampling"], frame),
    }
    result["ways"]["method"]["flops_per_token"] = flops.per_token(available["method"], *play.first())
    records.write_rounds(folder / records.ROUNDS, frame)
    records.write_json(folder / records.RESULT, result)
    if settings["logger"]:
        try:
            logger.log_result(settings["logger"], folder, result, frame)
        except Exception as error:  # the result stands, whatever becomes of its copy
            log.warning("%s was not logged: %s: %s", title, type(error).__name__, error)
    method = result["ways"]["method"]
    log.info("%s: tau %.2f, %s", title, method["tau"], certificate["verdict"])
    return next((ratio["median"] for ratio in method["speedup"].values()), method["tau"])


def _label(settings: dict[str, Any], name: str, overrides: Sequence[str]) -> str:
    """What tables call the method: its label (conf/method/) and what the command line changed of the drafter; without a
    label, the drafter's name and what differs from its YAML, e.g. "ngram length=16 tree=true"."""
    drafter = settings["drafter"]
    paths = [override.partition("=")[0].lstrip("+") for override in overrides]
    changed = {path.split(".")[1] for path in paths if path.startswith("drafter.")}
    if settings["label"] is None:
        usual = described("drafter", name)
        changed = {key for key, value in drafter.items() if usual.get(key) != value}
    own = [f"{key}={_short(value)}" for key, value in drafter.items() if key in changed]
    return " ".join([settings["label"] or name, *own])


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_short, value))
    return str(value).lower() if isinstance(value, bool) else str(value).rstrip("/").rpartition("/")[2]


if __name__ == "__main__":
    start(main)
