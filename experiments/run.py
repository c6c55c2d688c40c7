"""One run: decode each prompt with a method and with its baselines, in turn, on the same weights
(conf/run.yaml).

python -m experiments.run drafter=ngram sampling=cool
python -m experiments.run -m experiment=demo
python -m experiments.run -m study=demo resume=true          go on in the study's latest sweep
python -m experiments.run -m resume=multirun/demo/FOLDER     go on in that sweep
python -m experiments.run drafter=ngram shards=8 launcher=joblib    eight jobs, one result
"""

import logging
import sys
import traceback
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from experiments.study import schema, sweeps
from experiments.study.folder import FAILED, OUTPUTS, RESULT, ROUNDS, claimed
from experiments.study.label import label
from experiments.system import ranks
from experiments.terminal import search_path
from experiments.terminal.options import check_experiment
from experiments.terminal.program import JobError, start

if TYPE_CHECKING:  # --help does not need these modules
    from experiments.study.result import Identity

log = logging.getLogger(__name__)
schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="run")
def main(config: DictConfig) -> float | None:
    """Returns the speed-up over the first baseline (or tau, if there is no baseline), for sweepers
    that optimise."""
    from experiments.study import result

    job = HydraConfig.get()
    folder, sweeping = Path(job.runtime.output_dir), job.mode is RunMode.MULTIRUN
    overrides, choices = (
        list(job.overrides.task),
        {str(group): choice for group, choice in job.runtime.choices.items()},
    )
    identity = result.Identity(
        study=config.study,
        run=str(job.job.num) if sweeping else folder.name,
        overrides=sweeps.of_the_job(overrides),
        choices={
            group: choice for group, choice in choices.items() if not group.startswith("hydra/")
        },
    )
    search_path.check(choices)
    again = bool(config.resume) or config.shard is not None  # Ray repeats jobs whose process died
    if again and (folder / RESULT).exists():
        log.info("job %s has a result", identity.run)
        return None
    with claimed(folder, again):
        try:
            settings = schema.settings_of(config)
            settings = replace(settings, label=label(settings, choices["drafter"], overrides))
            return execute(settings, identity, folder, config.keep_texts)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            failure = result.Failure(**vars(identity), error=said, traceback=traceback.format_exc())
            with suppress(OSError):  # on a full disk, failed.json cannot be written either
                (folder / ROUNDS).unlink(missing_ok=True)
                result.write(folder / FAILED, failure)
            if not sweeping:
                raise JobError from error
            log.error("job %s failed: %s", identity.run, said)
            return None  # the sweep goes on


def execute(
    settings: schema.Settings, identity: "Identity", folder: Path, keep_texts: bool = False
) -> float | None:
    """Decode, measure, write. `keep_texts`: also write what the method put
    out."""
    from experiments import prompts
    from experiments.certificates.kept import attached
    from experiments.measuring import flops, lineup, measures, shards
    from experiments.measuring.outputs import write_outputs
    from experiments.measuring.play import Play, Played
    from experiments.measuring.rounds import rounds, write_rounds
    from experiments.measuring.ways import Ours
    from experiments.report import logger
    from experiments.study import result
    from experiments.system.libraries import quiet_transformers, set_threads
    from experiments.system.surroundings import surroundings
    from experiments.terminal.progress import bar
    from specdec import Refused

    logger.check(settings.logger)
    ranks.check(settings.target.tp_plan)
    if settings.shards > 1 and settings.shard is None:
        raise ValueError(
            f"shards={settings.shards} is a sweep over its shards: say it on the command line, or "
            f"sweep shard=range({settings.shards}) too"
        )
    quiet_transformers()
    set_threads(settings.threads)
    asked, found = settings.prompts, prompts.read(**settings.prompts.source)
    ways = lineup.make(settings)
    method = ways["method"]
    assert isinstance(method, Ours)
    set_threads(settings.threads, method.target)
    play = Play(
        found,
        method.target,
        asked.chat,
        settings.batch_size,
        settings.max_new_tokens,
        asked.too_long,
        settings.shard or 0,
        settings.shards,
    )
    if play.skipped:
        numbers = ", ".join(str(one.prompt) for one in play.skipped)
        log.info(
            "skipped %d prompts, too long for the target's context: %s", len(play.skipped), numbers
        )
    record = {**vars(identity), **vars(surroundings()), "config": settings}
    played: list[Played] = []
    title = f"{identity.run}: {settings.label}, T = {settings.sampling.temperature:g}"
    try:
        with bar(title, play.turns, settings.progress) as advance:
            for one in play(ways, settings.warmup):
                played.append(one)
                advance()
    except Refused as reason:
        log.info("not applicable: %s", reason)
        result.write(folder / RESULT, result.NotApplicable(**record, reason=str(reason)))
        return None
    frame = rounds(identity.study, identity.run, str(settings.label), played)
    outcome = measures.outcome(played, ways, settings.sampling, frame)
    counted = replace(outcome.method, flops_per_token=flops.per_token(method, *play.first()))
    report = played[0].samples["method"].report
    assert report is not None
    measured = result.Result(
        **record,
        **{**vars(outcome), "ways": {**outcome.ways, "method": counted}},
        effective=lineup.in_effect(settings, method, report, play.chat),
        certificate=attached(settings.drafter, settings.verifier, report),
        skipped=play.skipped,
    )
    write_rounds(folder / ROUNDS, frame)
    if settings.shard is not None:
        shards.write(folder / shards.PLAYED, played)
    if keep_texts:
        name = OUTPUTS if settings.shard is None else shards.OUTPUTS_OF_SHARD
        write_outputs(folder / name, played, method.target)
    result.write(folder / RESULT, measured)
    if settings.logger:
        try:
            logger.log_result(settings.logger, folder, measured, frame)
        except Exception as error:  # the result is kept, even if copying it fails
            log.warning("%s was not logged: %s: %s", title, type(error).__name__, error)
    log.info("%s: tau %.2f, %s", title, counted.tau, measured.certificate)
    return next((ratio.median for ratio in counted.speedup.values()), counted.tau)


def program() -> None:
    def run() -> None:
        for argument in sys.argv[1:]:
            if argument.startswith("experiment="):
                check_experiment(argument.partition("=")[2], "experiments.run")
        with ranks.of_this_rank(sweeps.in_each_job(sys.argv[1:])) as arguments:
            sys.argv[1:] = arguments
            try:
                main()
            except BrokenExecutor as error:
                raise ValueError(sweeps.of_lost_worker(error)) from error

    try:
        start(run, schema.Command, sweeps.interrupted)
    finally:
        sweeps.forget_what_never_began()


if __name__ == "__main__":
    program()
