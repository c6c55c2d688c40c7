"""One prompt set that several jobs decode (shards=8): what each leaves, and one result of all.

Every number of that result is computed from what was played, by the code that an undivided run has;
only what needs the models is taken from the jobs. A job is whole or not there: one that was killed
has left no result, and resuming decodes its prompts again from the first.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.measuring import measures
from experiments.measuring.memory import Peak
from experiments.measuring.play import Played
from experiments.measuring.rounds import rounds, write_rounds
from experiments.measuring.ways import METHOD, Sample
from experiments.prompts import Prompt
from experiments.study import result as results
from experiments.study.folder import OUTPUTS, RESULT, ROUNDS, claimed
from experiments.study.outcome import Divergences, Memory
from experiments.study.result import NotApplicable, Result
from experiments.system.files import read_json, write_text
from specdec.interfaces import CompiledPass
from specdec.measuring.chosen import Chosen
from specdec.measuring.clock import Times
from specdec.measuring.report import Report, Served, Step
from specdec.pricing.decision import Decision

PLAYED, OUTPUTS_OF_SHARD = "played.json", "shard_outputs.jsonl"


def merge(sweep: Path) -> list[Path]:
    """One folder, with one result, for all shards of each setting of a sweep. Returns those that
    are new. Settings of which a shard is missing are left as they are. Raises ValueError for files
    that are broken."""
    found: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for path in sorted(sweep.glob(f"*/{PLAYED}"), key=lambda path: int(path.parent.name)):
        own = results.read(path.parent / RESULT) if (path.parent / RESULT).exists() else None
        if own is not None:
            found[_setting(own)].append(path.parent)
    return [folder for jobs in found.values() if (folder := _merged(jobs)) is not None]


def _setting(own: Result | NotApplicable) -> tuple[str, ...]:
    return tuple(each for each in own.overrides if not each.startswith("shard="))


def _merged(jobs: Sequence[Path]) -> Path | None:
    """None: there is one already, or a shard is missing."""
    folder = jobs[0].with_name(f"{jobs[0].name}-{jobs[-1].name}")
    parts = [results.read(job / RESULT) for job in jobs]
    whole = [part for part in parts if isinstance(part, Result)]
    shards = [part.config.shard for part in whole]
    if (folder / RESULT).exists() or shards != [*range(parts[0].config.shards)]:
        return None
    played = [one for job in jobs for one in read(job / PLAYED)]
    played.sort(key=lambda one: (one.batch, one.turn))
    with claimed(folder, again=True):
        _write(folder, whole, jobs, played)
    return folder


def _write(
    folder: Path, parts: Sequence[Result], jobs: Sequence[Path], played: Sequence[Played]
) -> None:
    first = parts[0]  # it has the first batch
    frame = rounds(first.study, folder.name, str(first.config.label), played)
    ways = {
        name: measures.summed(played, name, _memory([part.ways[name].memory for part in parts]))
        for name in first.ways
    }
    apart = {
        name: _divergence([part.divergence[name] for part in parts]) for name in first.divergence
    }
    outcome = measures.combined(ways, played, apart, frame)
    method = replace(outcome.method, flops_per_token=first.method.flops_per_token)
    merged = replace(
        first,
        **{**vars(outcome), "ways": {**outcome.ways, METHOD: method}},
        run=folder.name,
        overrides=list(_setting(first)),
        config=replace(first.config, shard=None),
        effective=replace(first.effective, shard=None),
    )
    write_rounds(folder / ROUNDS, frame)
    _write_outputs(folder / OUTPUTS, [job / OUTPUTS_OF_SHARD for job in jobs], played)
    results.write(folder / RESULT, merged)


def _memory(parts: Sequence[Memory]) -> Memory:
    return max(parts, key=lambda part: part.peak or 0)


def _divergence(parts: Sequence[Divergences]) -> Divergences:
    return Divergences(
        compared=sum(part.compared for part in parts),
        diverging=sum(part.diverging for part in parts),
        ties=sum(part.ties for part in parts),
        faults=sum(part.faults for part in parts),
        rounding=max((part.rounding for part in parts if part.rounding is not None), default=None),
        found=sorted(
            (one for part in parts for one in part.found), key=lambda one: (one.prompt, one.turn)
        ),
    )


def _write_outputs(path: Path, parts: Sequence[Path], played: Sequence[Played]) -> None:
    """The lines of all shards, in the order of the prompts; nothing where texts were not kept."""
    if not all(part.exists() for part in parts):
        return
    order = [(prompt.index, one.turn) for one in played for prompt in one.prompts]
    places = {place: number for number, place in enumerate(order)}
    lines = [line for part in parts for line in part.read_text(encoding="utf-8").splitlines()]

    def place(line: str) -> int:
        entry = json.loads(line)
        return places[entry["prompt"], entry["turn"]]

    write_text(path, "".join(f"{line}\n" for line in sorted(lines, key=place)))


# ------------------------------------------------------------------------------- what was played


def write(path: Path, played: Iterable[Played]) -> None:
    """All that results are computed from, but for the texts of the prompts."""
    write_text(path, json.dumps([_plain(one) for one in played], allow_nan=False))


def read(path: Path) -> list[Played]:
    return [_played(entry) for entry in read_json(path)]


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Prompt):
        return {"index": value.index, "category": value.category}
    if isinstance(value, Times):
        return value.seconds
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value


def _played(entry: dict[str, Any]) -> Played:
    prompts = [Prompt(one["index"], "", one["category"]) for one in entry["prompts"]]
    samples = {name: _sample(one) for name, one in entry["samples"].items()}
    return Played(**{**entry, "prompts": prompts, "samples": samples})


def _sample(entry: dict[str, Any]) -> Sample:
    report, peak = entry["report"], entry["peak"]
    read = {"report": report and _report(report), "peak": peak and Peak(**peak)}
    return Sample(**{**entry, **read})


def _report(entry: dict[str, Any]) -> Report:
    read = {
        "steps": [_step(one) for one in entry["steps"]],
        "served": [Served(**one) for one in entry["served"]],
        "compiled": [CompiledPass(**one) for one in entry["compiled"]],
    }
    return Report(**{**entry, **read})


def _step(entry: dict[str, Any]) -> Step:
    decision, chosen = entry["decision"], entry["chosen"]
    if decision is not None and decision["survivals"] is not None:
        decision["survivals"] = np.array(decision["survivals"])
    return Step(
        number=entry["number"],
        live=np.array(entry["live"], dtype=bool),
        parents=np.array(entry["parents"], dtype=np.int16),
        path=np.array(entry["path"], dtype=np.int16),
        num_accepted=np.array(entry["num_accepted"]),
        kept=np.array(entry["kept"]),
        times=Times.of(entry["times"]),
        counts={name: np.array(values) for name, values in entry["counts"].items()},
        prompts=np.array(entry["prompts"]),
        decision=decision and Decision(**decision),
        chosen=chosen and Chosen(**chosen),
    )
