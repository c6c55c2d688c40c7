"""`specdec "def read_csv("`: streams the continuation with accepted draft tokens in colour, then
prints one line of numbers.

`specdec doctor ...` is `python -m experiments.doctor ...`."""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from specdec.quiet import quiet_imports
from specdec.registry import described, names
from specdec.threads import fit, settle

if TYPE_CHECKING:
    from specdec.grammar import Grammar


def drafter_choice(text: str) -> dict[str, Any]:
    """ "small_model,depth=5" as {"name": "small_model", "depth": 5}; values are read as YAML."""
    name, *settings = _split(text)
    choice: dict[str, Any] = {"name": name}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(
                f"--drafter takes NAME,argument=value,..., got {setting!r} in {text!r}"
            )
        try:
            choice[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            why = " ".join(str(error).split())
            raise ValueError(f"--drafter {text!r}: {key} is no plain YAML value ({why})") from None
    return choice


def _split(text: str) -> list[str]:
    """Split at commas that are not inside [...]."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def grammar_in(path: Path) -> "Grammar":
    """The grammar that a file holds. Raises ValueError for another kind of file and for JSON that
    is broken."""
    from specdec.grammar import Grammar

    if path.suffix == ".lark":
        return Grammar.lark(path.read_text(encoding="utf-8"))
    if path.suffix != ".json":
        raise ValueError(
            f"--grammar takes a JSON schema in FILE.json or a Lark grammar in FILE.lark, got {path}"
        )
    try:
        return Grammar.json_schema(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"--grammar {path}: {error}") from None


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="specdec",
        description="Decode a prompt speculatively and show which tokens were drafted.",
        epilog="`specdec doctor target=... drafter=...` checks a pair instead (specdec doctor "
        "--help); the prompt 'doctor' is written after --.",
    )
    options.add_argument("prompt")
    options.add_argument(
        "--target", default="demo", help='"demo", a local folder or a hub id (default: demo)'
    )
    options.add_argument(
        "--drafter",
        default="small_model",
        help=f"NAME,argument=value,... (default: small_model) of {', '.join(names('drafter'))}",
        metavar="NAME[,...]",
    )
    options.add_argument(
        "--verifier", default="auto", help=f"{', '.join(names('verifier'))} (default: auto)"
    )
    options.add_argument(
        "--device", help="cpu, cuda, cuda:1 ... (default: CUDA where there is one)"
    )
    options.add_argument("--dtype", help="float32, bfloat16 ... (default: the checkpoint's)")
    options.add_argument("--temperature", type=float, default=0.0)
    options.add_argument("--top-p", type=float)
    options.add_argument("--top-k", type=int)
    options.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end there; may be given again"
    )
    options.add_argument(
        "--grammar",
        metavar="FILE",
        help="what the text has to be: a JSON schema (FILE.json) or a Lark grammar (FILE.lark)",
    )
    options.add_argument("--max-new-tokens", type=int, default=128)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--compare",
        action="store_true",
        help="also decode without a drafter and print the speed-up",
    )
    options.add_argument(
        "--trace", metavar="FILE", help="write a page that shows every round: its tree, p, q, coins"
    )
    options.add_argument(
        "--allow-lossy", action="store_true", help="permit rules that do not keep the target's law"
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Returns the usual exit status: 0, 2 for bad input, 130 after Ctrl-C, 141 if the reader of the
    pipe has gone."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    quiet_imports()
    settle()
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["doctor"]:
        # By name: this package imports none of the programs that are built on it.
        doctor = importlib.import_module("experiments.doctor")
        doctor.start(doctor.main, doctor.Doctor, given[1:])
        return 0
    try:
        return show(parser().parse_args(given))
    except BrokenPipeError:
        # so that flushing at exit does not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"specdec: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"specdec: {error.strerror or error}{where}", file=sys.stderr)
        return 2


def show(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from specdec.generate import Run
    from specdec.models.load import load
    from specdec.requests import prepare

    class Printer(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with 1

    console = Printer(highlight=False, soft_wrap=True)
    drafter = drafter_choice(options.drafter)
    place = {"device": options.device, "dtype": options.dtype}
    target = load(options.target, **place)
    fit(target)
    draft = {**described("drafter", drafter["name"]), **drafter}.get("model")
    if isinstance(draft, str):  # on the target's device, in its dtype
        drafter["model"] = load(draft, **place)
    if options.trace is not None and options.compare:
        raise ValueError("--trace slows the rounds that --compare measures; give one of them")
    if options.trace is not None and not Path(options.trace).absolute().parent.is_dir():
        raise ValueError(f"--trace {options.trace}: there is no such folder; make it first")
    tokenizer = target.tokenizer
    if tokenizer is None:
        raise ValueError(f"{options.target} has no tokenizer, so it cannot take a text prompt")
    wanted = {
        "verifier": options.verifier,
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "stop": options.stop,
        "grammar": None if options.grammar is None else grammar_in(Path(options.grammar)),
        "seed": options.seed,
        "allow_lossy": options.allow_lossy,
    }

    def run(drafter: dict[str, Any], **changed: Any) -> Run:
        return Run(*prepare(target, options.prompt, drafter=drafter, **{**wanted, **changed}))

    # A warm-up, so that the numbers below are not those of a cold start.
    run(drafter, max_new_tokens=2).finish()
    speculative = run(drafter, trace=options.trace is not None)
    console.print(Text(options.prompt, style="dim"), end="")
    for step in speculative.rounds():
        for event in speculative.events(step):
            text = event.text or ""
            drafted = (
                len(tokenizer.decode(event.tokens[: event.num_accepted]))
                if event.num_accepted
                else 0
            )
            console.print(
                Text(text[:drafted], style="bold green").append(
                    text[drafted:], style="not bold default"
                ),
                end="",
            )
    report = speculative.report
    line = f"tau {report.tau:.2f}, {report.tokens_per_second:.0f} tokens/s"
    if options.compare:
        plain = run({"name": "none"}, verifier="auto")
        plain.finish()
        speedup = report.tokens_per_second / plain.report.tokens_per_second
        line += f", {speedup:.2f}x as fast as plain decoding"
    lossy = "" if report.lossless else " (lossy)"
    console.print(
        f"\n\n{line}  [{report.drafter} + {report.verifier}{lossy}, temperature "
        f"{options.temperature:g}]",
        markup=False,
    )
    if options.trace is not None:
        speculative.output().trace().save(options.trace)
        print(f"every round, as a page: {options.trace}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
