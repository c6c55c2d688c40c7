"""Samplers: what gives continuations of a prompt. A sampler knows nothing of the test.

Commands and Python classes are asked the same thing: a `Request`. A command reads it as one line of
JSON on standard input and answers with one line on standard output,

    {"prompt": [5, 0, 7], "max_new_tokens": 4, "temperature": 1.0, "top_k": null, "top_p": null,
     "seed": 1893, "samples": 64}
    {"tokens": [[3, 3, 1, 0], ...]}

(each on one line), until its input ends. `serve` is that loop for a `Sampler`.
"""

import contextlib
import json
import queue
import shlex
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from specdec.plugins import callable_named, construct

SHOWN = 200  # characters of an answer that is not understood
PATIENCE = 3.0  # seconds that a command has to end after its input did


@dataclass(frozen=True)
class Request:
    """What one call asks for: `samples` independent continuations of one prompt."""

    prompt: list[int]
    max_new_tokens: int
    temperature: float
    top_k: int | None  # None: off
    top_p: float | None  # None: off
    seed: int  # 0 <= seed < 2 ** 32; another one in every request
    samples: int


class Sampler(ABC):
    """Anybody's decoder. Derive from it for `callable=`; it is made without arguments."""

    @abstractmethod
    def sample(self, request: Request) -> list[list[int]]:
        """`request.samples` lists of new token ids, without the prompt. Each has `max_new_tokens`
        ids, or fewer where the last one ends the text. All are drawn independently."""

    def close(self) -> None:
        """The audit is over."""


def sampler_named(target: str) -> Sampler:
    """What `package.module:Name` makes: a class that is a `Sampler`, or a function whose return
    annotation is one. Raises ValueError for others, and for packages that are not allowed."""
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise ValueError(f"callable must be package.module:Name, got {target!r}")
    made: Sampler = construct(f"callable {target}", callable_named(f"{module}.{name}", Sampler), {})
    return made


def serve(sampler: Sampler, source: TextIO | None = None, sink: TextIO | None = None) -> None:
    """Answer requests, a line each, until the input ends: the other end of `Command`."""
    for line in source or sys.stdin:
        answer = {"tokens": sampler.sample(Request(**json.loads(line)))}
        print(json.dumps(answer), file=sink or sys.stdout, flush=True)


class Command(Sampler):
    """A command that is started once and answers line by line. Its standard error is ours.

    Raises ValueError where it cannot be started, ends, is silent for `timeout` seconds, or answers
    with something else.
    """

    def __init__(self, command: str, timeout: float) -> None:
        self.command, self.timeout, self.answered = command, timeout, 0
        words = shlex.split(command)
        if not words:
            raise ValueError("command is empty; give a program and its arguments")
        try:
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
            )
        except OSError as error:
            raise ValueError(
                f"command {command!r} cannot be started: {error.strerror}: {words[0]}"
            ) from error
        # a thread reads, so that a silent command can be given up on
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        try:
            with self.process.stdout as lines:
                for line in lines:
                    self.lines.put(line)
        except ValueError:  # bytes that are no UTF-8
            self.lines.put("bytes that are no UTF-8")
        self.lines.put(None)

    def sample(self, request: Request) -> list[list[int]]:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(asdict(request)) + "\n")
            self.process.stdin.flush()
            line = self.lines.get(timeout=self.timeout)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            raise ValueError(
                f"command {self.command!r} gave no line for {self.timeout:g} s after request "
                f"{self.answered + 1}; does it flush its output? A slow one needs timeout=..."
            ) from None
        if line is None:
            raise ValueError(
                f"command {self.command!r} ended{self._status()} after {self.answered} answers; it "
                "has to answer every line of its standard input until that ends"
            )
        self.answered += 1
        return self._tokens(line)

    def _status(self) -> str:
        try:
            return f" (exit status {self.process.wait(PATIENCE)})"
        except subprocess.TimeoutExpired:
            return ""

    def _tokens(self, line: str) -> list[list[int]]:
        try:
            answer: Any = json.loads(line)
            tokens: list[list[int]] = answer["tokens"]
            return tokens
        except (ValueError, KeyError, TypeError):
            shown = line.strip()
            shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
            raise ValueError(
                f"command {self.command!r} has to answer with one line of JSON, "
                f'{{"tokens": [[...], ...]}}, and to print nothing else on its standard output; '
                f"answer {self.answered} is {shown!r}"
            ) from None

    def close(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(PATIENCE)


def checked(
    answer: Any, request: Request, vocabulary: int, ends: frozenset[int]
) -> list[list[int]]:
    """The answer to a request. Raises ValueError for another number of samples, ids outside the
    vocabulary, and lengths that nothing explains."""
    if not isinstance(answer, list) or not all(isinstance(row, list) for row in answer):
        raise ValueError(f"samples are lists of token ids, got {str(answer)[:SHOWN]}")
    if len(answer) != request.samples:
        raise ValueError(
            f"the sampler gave {len(answer)} samples, {request.samples} were asked for; a smaller "
            "batch=... asks for fewer at once"
        )
    for number, row in enumerate(answer):
        for token in row:
            whole = isinstance(token, int) and not isinstance(token, bool)
            if not whole or not 0 <= token < vocabulary:
                raise ValueError(
                    f"sample {number} holds {token!r}, which is no id of the target's vocabulary "
                    f"of {vocabulary} tokens"
                )
        if len(row) > request.max_new_tokens:
            raise ValueError(
                f"sample {number} has {len(row)} tokens, at most {request.max_new_tokens} were "
                "asked for; the prompt is no part of a sample"
            )
        if len(row) < request.max_new_tokens and not ends & set(row):
            raise ValueError(
                f"sample {number} has {len(row)} of {request.max_new_tokens} tokens and does not "
                f"end with an end-of-sequence id of the target ({sorted(ends) or 'it has none'}); "
                "keep that id in the sample"
            )
    return answer
