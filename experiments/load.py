"""What load does to speculation: requests arrive at an engine, with drafts and without.

python -m experiments.load target=demo drafter=small_model,ngram arrivals=poisson rate=1,2,4,8
python -m experiments.load drafter=eagle concurrency=1,2,4,8,16,32       closed loop
python -m experiments.load drafter=ngram arrivals=trace trace=times.txt
python -m experiments.load experiment=load               the options of conf/experiment/load.yaml

Every load is played with each drafter and with plain decoding, in turn, on the same requests. The
folder gets result.json, three parquet files and index.html (docs/load.md).
"""

import sys
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.terminal.options import start

if TYPE_CHECKING:  # --help does not need this module
    from experiments.load_study.study import Study


@dataclass
class LoadStudy:
    """python -m experiments.load drafter=NAME,argument=value,... rate=1,2,4: serve requests at
    several loads, with drafts and without, and find where speculation stops paying."""

    # a study of conf/experiment/, which sets other options; the command line has the last word
    experiment: str | None = None
    study: str = "load"  # the folder that results of one question share
    target: str = "demo"  # its name, folder or hub id
    drafter: str = "small_model"  # NAME,argument=value,... ; several one after the other
    verifier: str = "auto"
    arrivals: str = "poisson"  # | burst | trace: open loops, with times of their own
    rate: Any = None  # requests a second, one or several; null: 1,2,4,8, a trace's own
    burst: int = 8  # requests that arrive together (arrivals=burst)
    trace: str | None = None  # a file with a time in seconds a line (arrivals=trace)
    concurrency: Any = None  # closed loop: so many requests at once, one or several
    requests: int = 64  # of each load; at most as many as a trace has
    shortest: int = 16  # new tokens of a request, drawn from these
    longest: int = 128  # and its most
    prompts: str = "demo"  # or a file of JSON lines; they are drawn from it
    chat: bool | None = None  # through the chat template; null: where the tokenizer has one
    too_long: str = "refuse"  # | skip: leave out prompts that do not fit the target's context
    ignore_eos: bool = True  # texts are as long as was drawn
    warmup: float = 0.2  # the share of requests, the first ones, that is not counted
    first_token: float = 1.0  # limit of goodput: seconds to the first token
    gap: float = 0.1  # limit of goodput: seconds between tokens, a request's mean
    seats: int = 16  # requests that decode at the same time
    memory: str | None = None  # of the target, bytes or 2GiB; null: it grows
    kv: str | None = None  # paged | contiguous; null: paged with memory
    page: int = 16  # tokens of a page
    no_harm: bool = False  # leave drafts out of rounds where they lose
    temperature: float = 0.0
    repeats: int = 3
    device: str | None = None
    dtype: str | None = None  # null: the checkpoint's
    seed: int = 0
    threads: int | None = None
    allow_lossy: bool = False
    progress: bool = True
    output: str | None = None  # the folder that is written; null: outputs/STUDY/TIME


def study(wanted: LoadStudy) -> "Study":
    """Raises ValueError for what cannot be played, before a model is loaded where that is
    possible."""
    from experiments import prompts
    from experiments.certificates.kept import arguments_of
    from experiments.load_study import arrivals
    from experiments.load_study.measures import Limits
    from experiments.load_study.study import Load, Study, drawn, named
    from experiments.measuring.lineup import make_drafter
    from experiments.measuring.play import Play
    from experiments.measuring.ways import load
    from experiments.study.schema import Target, check_study
    from specdec.__main__ import drafter_choice
    from specdec.errors import integer

    check_study(wanted.study)
    arrivals.check(wanted.arrivals, wanted.trace, wanted.concurrency)
    if wanted.concurrency is not None and wanted.rate is not None:
        raise ValueError("rate and concurrency were both given; rate is an open loop: choose one")
    loads, count = [], wanted.requests
    for key, least in (
        ("requests", 2),
        ("burst", 1),
        ("shortest", 1),
        ("repeats", 1),
        ("seats", 1),
    ):
        integer(key, getattr(wanted, key), least)
    integer("longest", wanted.longest, wanted.shortest)
    if not 0 <= wanted.warmup < 1:
        raise ValueError(
            f"warmup is a share of the requests, from 0 to below 1; got {wanted.warmup}"
        )
    for key in ("first_token", "gap"):
        arrivals.numbers(key, getattr(wanted, key))
    recorded: list[float] = []
    if wanted.trace is not None:
        recorded = arrivals.read_trace(wanted.trace, count)
        count, own = len(recorded), arrivals.mean_rate(recorded)
        recorded = [time * own for time in recorded]
        loads = [Load(own)] if wanted.rate is None else []
    if wanted.concurrency is not None:
        together = arrivals.numbers("concurrency", wanted.concurrency, int)
        loads = [Load(each, concurrent=True) for each in together]
    elif not loads:
        given = "1,2,4,8" if wanted.rate is None else wanted.rate
        loads = [Load(each) for each in arrivals.numbers("rate", given)]

    def times(seed: int) -> list[float]:
        if recorded:
            return recorded
        if wanted.arrivals == "burst":
            return arrivals.bursts(count, wanted.burst)
        return arrivals.poisson(count, seed)

    choices = {
        name: arguments_of("drafter", drafter_choice(name)) for name in named(wanted.drafter)
    }
    texts = prompts.read("jsonl", wanted.prompts)
    where = Target(wanted.target, device=wanted.device, dtype=wanted.dtype)
    target = load(**asdict(where))
    asked = Play(texts, target, wanted.chat, 1, wanted.longest, wanted.too_long).all()
    ids = [row for rows, _ in asked for row in rows]
    found = Study(
        target,
        {name: make_drafter(choice, where) for name, choice in choices.items()},
        loads,
        times,
        lambda seed: drawn(ids, count, wanted.shortest, wanted.longest, seed),
        {
            "verifier": wanted.verifier,
            "seats": wanted.seats,
            "memory": wanted.memory,
            "kv": wanted.kv,
            "page": wanted.page,
            "no_harm": wanted.no_harm or None,
            "allow_lossy": wanted.allow_lossy,
        },
        {"temperature": wanted.temperature, "ignore_eos": wanted.ignore_eos, "seed": wanted.seed},
        Limits(wanted.first_token, wanted.gap),
        wanted.warmup,
        wanted.repeats,
        wanted.seed,
    )
    found.check()
    return found


def main(wanted: LoadStudy) -> None:
    from experiments.load_study import record
    from experiments.load_study.study import frames
    from experiments.study.folder import FAILED, claimed
    from experiments.study.result import Failure, Identity
    from experiments.study.result import write as write_failure
    from experiments.system.libraries import quiet_transformers, set_threads
    from experiments.terminal.progress import bar

    quiet_transformers()
    set_threads(wanted.threads)
    planned = study(wanted)
    set_threads(wanted.threads, planned.target)
    folder = Path(wanted.output) if wanted.output else record.new_folder(wanted.study)
    choices = {"experiment": wanted.experiment, "drafter": wanted.drafter}
    overrides = [each for each in sys.argv[1:] if "=" in each]
    identity = Identity(study=wanted.study, run=folder.name, overrides=overrides, choices=choices)
    unit = "requests at once" if wanted.concurrency is not None else "requests/s"
    how = (
        f"{planned.loads[0].arrivals(planned.times(0)).__class__.__name__} loop"
        f"{'' if wanted.concurrency is not None else ', ' + wanted.arrivals}; "
        f"{len(planned.draw(0))} requests of {wanted.shortest} to {wanted.longest} new tokens, the "
        f"first {wanted.warmup:.0%} not counted; target {wanted.target}, temperature "
        f"{wanted.temperature:g}, {wanted.seats} seats. In time: at most {wanted.first_token:g} s "
        f"to the first token and {wanted.gap:g} s between tokens."
    )
    with claimed(folder):
        try:
            tables = frames(list(planned(partial(bar, shown=wanted.progress))))
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            told = Failure(**vars(identity), error=said, traceback=traceback.format_exc())
            write_failure(folder / FAILED, told)
            raise
        crossings = record.write(folder, identity, asdict(wanted), unit, how, tables)
    print("\n".join([*crossings, str(record.draw(folder))]))


if __name__ == "__main__":
    start(main, LoadStudy)
