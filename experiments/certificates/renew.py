"""Renews the certificates of a folder with their own settings: several pairs at once, in separate
processes. Each certificate is written as soon as it is done."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from experiments.certificates import code
from experiments.certificates.certificate import Bar, Pair, Plan, certify
from experiments.certificates.kept import (
    SCHEMA_VERSION,
    checks_of,
    law_of,
    path_of,
    read_certificates,
    write,
)
from experiments.certificates.law import NOT_APPLICABLE
from experiments.system.libraries import quiet_transformers, set_threads
from experiments.system.surroundings import Surroundings

KEPT = ("outcomes", "size", "strength", "seed", "target", "prompts", "max_new_tokens")
Certificate = dict[str, Any]


@dataclass(frozen=True)
class Renewal:
    """One certificate to be made anew."""

    old: Path
    pair: Pair
    plan: Plan
    seconds: float  # that the old one took


def plan_of(certificate: Mapping[str, Any], checks: Sequence[str]) -> Plan:
    """The plan of a certificate: its seed, its samples and its limits."""
    said = certificate.get("plan") or {}
    return Plan(checks=checks, **{name: said[name] for name in KEPT if name in said})


def wanted(
    folder: str, into: str, checks: Sequence[str], where: Surroundings
) -> tuple[list[Renewal], list[Certificate]]:
    """The certificates to renew, and those in `into` that are up to date: made with this code, with
    the same versions and with all `checks` that the pair takes. The latter stay, so a renewal that
    was killed can continue. Raises ValueError for a plug-in that is not here."""
    renewals, current = [], []
    there = {path.name: content for path, content in read_certificates(into)}
    for path, content in read_certificates(folder):
        drafter, verifier = content["drafter"], content["verifier"]
        done = there.get(path_of(content, into).name)
        if done is not None and _is_current(done, checks, where):
            current.append(done)
        else:
            plan = plan_of(content, checks)
            seconds = float(content.get("seconds") or 0)
            renewals.append(Renewal(path, Pair(drafter, verifier), plan, seconds))
    longest_first = sorted(renewals, key=lambda one: -one.seconds)  # so that none is last alone
    return longest_first, current


def _is_current(certificate: Certificate, checks: Sequence[str], where: Surroundings) -> bool:
    git, ours = certificate.get("git"), where.git
    asked = set((certificate.get("plan") or {}).get("checks", ()))
    return (
        certificate.get("schema_version") == SCHEMA_VERSION
        and not code.changed(certificate)
        and certificate.get("versions") == where.versions
        and asked >= set(checks)
        and bool(checks_of(certificate))
        and not (git and git["dirty"] and ours and not ours.dirty)
    )


def renew(
    renewals: Sequence[Renewal],
    into: str,
    workers: int,
    threads: int,
    where: Surroundings,
    bar: Bar,
    say: Callable[[str], None],
) -> list[Certificate]:
    """Certify each pair and write its certificate. If the contract now refuses a pair, its old file
    stays; the same if it fails, which raises an error at the end. After Ctrl-C or a kill all files
    are complete."""
    found: list[Certificate] = []
    errors: list[str] = []
    with bar("certificates", len(renewals)) as advance, _pool(workers, threads) as pool:
        running = {pool.submit(_one, each, into, where): each for each in renewals}
        for done in as_completed(running):
            name = running[done].old.name
            try:
                certificate = done.result()
            except Exception as error:  # of one pair: the others go on
                errors.append(f"{name}: {type(error).__name__}: {error}")
                say(errors[-1])
            else:
                found.append(certificate)
                for reason in certificate["reasons"]:
                    say(f"{name}: {reason}")
                pair, seconds = " + ".join(certificate["pair"]), certificate["seconds"]
                say(f"{pair}: {law_of(certificate)}, {seconds:.0f} s, {name}")
            advance()
    if errors:
        raise ValueError("not renewed:\n" + "\n".join(errors))
    return found


def _one(renewal: Renewal, into: str, where: Surroundings) -> Certificate:
    """In a process of the pool."""
    certificate = certify(renewal.pair, renewal.plan, _no_bar, where=where)
    if certificate["verdict"] != NOT_APPLICABLE:
        path = write(certificate, into)
        # its settings have other names, or more of them, by now
        if renewal.old.parent.resolve() == path.parent.resolve() and renewal.old != path:
            renewal.old.unlink(missing_ok=True)
    return certificate


@contextmanager
def _no_bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextmanager
def _pool(workers: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that know nothing of one another; they end with this one, whatever ends it."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (threads,))
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    quiet_transformers()
    set_threads(threads)
