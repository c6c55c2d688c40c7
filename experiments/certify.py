"""Certify that a drafter and a verifier keep the target's law, or put cases from a file through the
rules (conf/certify.yaml).

python -m experiments.certify drafter=small_model verifier=traversal drafter.branching=2
python -m experiments.certify -m drafter=none,ngram,small_model verifier=naive,block,traversal
python -m experiments.certify cases=FILE.json
python -m experiments.certify summary=FOLDER     verdicts of a folder, its tests as one family
python -m experiments.certify again=FOLDER       renew a folder, as many pairs at once as cores
python -m experiments.certify again=FOLDER folder=OTHER     the same, written to another folder

A certificate is valid for the code it was made with: when specdec/, the drafter's or the rule's
file or their YAML change, it is shown as stale. again= renews each with its own seed, samples and
limits and with the checks of this command. Each is written when it is done; after Ctrl-C or a kill
the same command continues and leaves up-to-date certificates alone. Commit first: files that differ
from the commit mark a certificate as "dirty" (files of its own folder do not).
"""

import json
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from experiments.terminal import search_path
from experiments.terminal.program import register_help, start


@dataclass
class Greedy:
    """Settings of the greedy check on a real model."""

    target: str = "demo"  # if it cannot be loaded, a tiny random model is used instead
    prompts: int = 12
    max_new_tokens: int = 48


@dataclass
class Certify:
    cases: str | None = None  # a case file; each case names its own drafter and verifier
    # a folder of certificates: run nothing; test all their sampled results as one family
    summary: str | None = None
    # a folder of certificates: renew those that are out of date or lack one of `checks`, in place
    # or into `folder`; then report as `summary` does
    again: str | None = None
    workers: int | None = None  # processes of `again`; null: one per core
    folder: str = "certificates"
    # which kinds of evidence; see `Certificates`
    checks: list[str] = field(default_factory=lambda: ["exact", "sampled", "greedy"])
    outcomes: int = 200_000  # an enumeration gives up after this many
    # a table is taken one level deeper if that is estimated to have at most this many outcomes
    size: int = 4000
    # samples of the sampled check; 1 finds a total variation of 0.02 with power 0.99 at size 1e-6
    strength: float = 1.0
    seed: int = 0
    greedy: Greedy = field(default_factory=Greedy)
    threads: int | None = None  # of torch; null leaves its default
    progress: bool = True
    drafter: dict[str, Any] = MISSING
    verifier: dict[str, Any] = MISSING


ConfigStore.instance().store(name="certify_schema", node=Certify)
register_help("certify", ("drafter", "verifier"), __doc__)
search_path.register()
failures: list[str] = []
certificates: list[dict[str, Any]] = []


@hydra.main(version_base="1.3", config_path="../conf", config_name="certify")
def main(config: DictConfig) -> None:
    from experiments.system.libraries import quiet_transformers, set_threads

    quiet_transformers()
    set_threads(config.threads)
    try:
        if config.cases is not None:
            failures.extend(run_cases(config.cases, config.outcomes, config.progress))
        elif config.summary is not None:
            failures.extend(summarise(read_folder(config.summary)))
        elif config.again is not None:
            failures.extend(certify_again(config))
        else:
            choices = HydraConfig.get().runtime.choices
            search_path.check(choices)
            chosen: Any = OmegaConf.to_container(config, resolve=True)
            pair = [{"name": choices[group], **chosen[group]} for group in ("drafter", "verifier")]
            certify_pair(config, *pair)
    except ValueError as error:
        failures.append(str(error))
        print(error, file=sys.stderr)


def plan_of(config: DictConfig) -> Any:
    from experiments.certificates.certificate import Plan

    names = ("checks", "outcomes", "size", "strength", "seed")
    settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return Plan(**{name: settings[name] for name in names}, **settings["greedy"])


def certify_pair(config: DictConfig, drafter: Any, verifier: Any) -> None:
    """Certify one pair, with the other settings of the config."""
    from experiments.certificates.certificate import Pair, certify
    from experiments.certificates.kept import law_of, write
    from experiments.certificates.law import NOT_APPLICABLE, NOT_CERTIFIED
    from experiments.system.surroundings import surroundings
    from experiments.terminal.progress import bar

    shown, where = partial(bar, shown=config.progress), surroundings(Path(config.folder))
    certificate = certify(Pair(drafter, verifier), plan_of(config), shown, _say, where)
    certificates.append(certificate)
    title = " + ".join(certificate["pair"])
    for reason in certificate["reasons"]:
        _say(f"{title}: {reason}")
    if certificate["verdict"] == NOT_APPLICABLE:  # nothing was tested, so nothing is written
        _say(f"{title}: {NOT_APPLICABLE}")
        return
    path = write(certificate, config.folder)
    _say(f"{title}: {law_of(certificate)}, {certificate['seconds']:.0f} s, {path}")
    if certificate["verdict"] == NOT_CERTIFIED:
        failures.append(title)


def certify_again(config: DictConfig) -> list[str]:
    """Renew a folder. Returns the reasons why the result is not certified."""
    from experiments.certificates import renew
    from experiments.certificates.certificate import Plan
    from experiments.certificates.kept import FOLDER
    from experiments.system.surroundings import cores, surroundings
    from experiments.terminal.progress import bar

    plan = plan_of(config)
    if replace(plan, checks=Plan().checks) != Plan():
        raise ValueError(
            f"again= keeps {', '.join(renew.KEPT)} of each certificate; leave them out, or certify "
            "a pair by its name"
        )
    if config.workers is not None and config.workers < 1:
        raise ValueError(f"workers must be >= 1, or null for one per core, got {config.workers}")
    into = config.again if config.folder == FOLDER else config.folder
    most = config.workers or cores()
    read_folder(config.again)
    threads = config.threads or max(1, cores() // most)
    where = replace(surroundings(Path(into)), threads=threads)
    renewals, current = renew.wanted(config.again, into, plan.checks, where)
    if current:
        _say(f"{len(current)} of {len(current) + len(renewals)} are of this code already and stay")
    workers = max(1, min(most, len(renewals)))
    shown = partial(bar, shown=config.progress)
    found = renew.renew(renewals, into, workers, threads, where, shown, _say)
    return summarise([*current, *found])


def run_cases(path: str, outcomes: int, progress: bool) -> list[str]:
    """Print one line of JSON per case on standard output. Cases that could not be run are reported
    on standard error and returned."""
    from experiments.certificates.exact import exact
    from experiments.certificates.tables import DRAWS, Tables, read_cases
    from experiments.terminal.progress import bar
    from specdec.plugins import build
    from specdec.tree import SiblingLaw

    refused: list[str] = []

    def complain(line: str) -> None:
        refused.append(line)
        print(line, file=sys.stderr)

    found = list(read_cases(path))
    with bar("cases", len(found), progress) as advance:
        for case in found:
            advance()
            if isinstance(case, ValueError):
                complain(str(case))
                continue
            where = f"{path}, case {case.name!r}"
            try:
                rule = build("verifier", case.verifier)
                one_child = (
                    case.draft == "chain"
                    and SiblingLaw.WOR not in rule.laws
                    and SiblingLaw.WR in rule.laws
                )
                shape = {"depth": len(case.branching), "branching": case.branching}
                # with one child the two laws are the same
                shape["draw"] = "wr" if one_child else DRAWS[case.draft]

                def drafter(tables: Tables, shape: dict[str, Any] = shape) -> Any:
                    return build(
                        "drafter", {"name": "small_model", "model": tables.draft(), **shape}
                    )

                result = exact(case.tables, drafter, rule, len(case.branching) + 1, limit=outcomes)
            except ValueError as error:
                complain(f"{where}: {error}")
                continue
            if not result.complete:
                complain(f"{where}: {result}")
            line = {
                "name": case.name,
                "expected_accepted": result.accepted,
                "tv_joint": result.tv,
                "lossless": result.lossless,
            }
            print(json.dumps(line), flush=True)
    return refused


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def read_folder(folder: str) -> list[dict[str, Any]]:
    """The certificates of a folder. Raises ValueError where there are none."""
    from experiments.certificates.kept import read_certificates

    found = [content for _, content in read_certificates(folder)]
    if not found:
        raise ValueError(
            f"no certificates in {folder}; expected a folder that `python -m experiments.certify` "
            "wrote to"
        )
    return found


def summarise(suite: list[dict[str, Any]]) -> list[str]:
    """Print every pair's verdict, and which sampled tests are rejected when the whole suite is
    tested as one family (Holm). Returns the reasons why the suite is not certified."""
    from experiments.certificates.kept import law_of
    from experiments.certificates.law import NOT_CERTIFIED, STALE, Law
    from experiments.certificates.statistics import holm

    bad: list[str] = []
    for one in suite:
        try:
            law = law_of(one)
        except ValueError as error:
            law = Law(verdict=f"{STALE}: {error}")
        _say(f"{one['pair'][0]:16} {one['pair'][1]:16} {law}")
        if law.verdict.startswith((STALE, NOT_CERTIFIED)):
            bad.append(" + ".join(one["pair"]))
    tests = [
        (one["pair"], test) for one in suite for test in (one.get("sampled") or {}).get("tests", [])
    ]
    stands = holm([test["fit"]["p_value"] for _, test in tests])
    fallen = [
        f"{' + '.join(pair)}: {test['setting']}"
        for (pair, test), good in zip(tests, stands, strict=True)
        if not good
    ]
    _say(
        f"{len(tests)} sampled tests as one family; those that fall: {', '.join(fallen) or 'none'}"
    )
    return [*fallen, *bad]


if __name__ == "__main__":
    start(main, Certify)
    if len(certificates) > 1:
        failures += summarise(certificates)
    if failures:
        sys.exit(1)
