"""What masking drafts gains where the output has to be JSON: the same draft model with its drafts
under the grammar's mask and without, interleaved prompt by prompt in one process.

    python -m experiments.benchmark_grammar
    python -m experiments.benchmark_grammar limit=2 max_new_tokens=32        a trial

The target is masked in every way, so the law of the output is the same. "Valid" counts texts that
ended before `max_new_tokens` and are what the schema says.
"""

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from experiments.benchmarks.options import Line, Options, line
from experiments.terminal.options import start

if TYPE_CHECKING:  # these modules import torch, which --help does not need
    from experiments.benchmarks.bench import Bench, Compared
    from experiments.measuring.ways import Ours

STATES = ["new", "open", "closed"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 24},
        "state": {"enum": STATES},
        "count": {"type": "integer", "minimum": 0, "maximum": 9999},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        "public": {"type": "boolean"},
    },
    "required": ["name", "state", "count", "tags", "public"],
    "additionalProperties": False,
}


@dataclass
class Benchmark(Options):
    """python -m experiments.benchmark_grammar: measure drafts under a grammar's mask and without,
    print a table and write it to a folder."""

    deep_limit: int = 0
    draft: str = "demo-draft"
    depth: int = 4  # of its chains
    temperature: float = 0.6
    output: str = "outputs/benchmark_grammar"


def ways(bench: "Bench") -> "dict[str, Ours]":
    from drafters.small_model import SmallModel

    class Unmasked(SmallModel):
        """Knows nothing of the grammar."""

        def propose(self, state: Any, chance: Any) -> Any:
            return super().propose(replace(state, grammars=None), chance)

    wanted = bench.wanted
    assert isinstance(wanted, Benchmark)
    small = {"name": "small_model", "model": wanted.draft, "depth": wanted.depth}
    none, masked = (
        bench.ours(bench.target, wanted.temperature, drafter, grammar=SCHEMA)
        for drafter in ({"name": "none"}, small)
    )
    free = Unmasked(bench.draft(wanted.draft), depth=wanted.depth)
    return {"none": none, "masked": masked, "unmasked": replace(masked, drafter=free)}


def is_valid(text: str) -> bool:
    """Whether a text is what SCHEMA says, found without a grammar's help."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(found, dict)
        and set(found) == set(SCHEMA["required"])
        and isinstance(found["name"], str)
        and 1 <= len(found["name"]) <= 24
        and found["state"] in STATES
        and type(found["count"]) is int
        and 0 <= found["count"] <= 9999
        and isinstance(found["tags"], list)
        and len(found["tags"]) <= 4
        and all(isinstance(tag, str) and len(tag) <= 12 for tag in found["tags"])
        and isinstance(found["public"], bool)
    )


def valid(bench: "Bench", way: "Ours") -> Line:
    """All prompts in one batch."""
    prompts = [prompt.text for prompt in bench.prompts]
    run = way.run(prompts, range(len(prompts)), bench.wanted.max_new_tokens)
    run.finish()
    out = run.output()
    assert out.texts is not None
    ended = [text for text, why in zip(out.texts, out.finish_reasons, strict=True) if why == "eos"]
    good = sum(map(is_valid, ended))
    cut = len(out.texts) - len(ended)
    return line("valid outputs", f"{good} of {len(ended)}", f"{cut} more were cut by the length")


def lines(bench: "Bench", way: "Ours", found: "Compared") -> list[Line]:
    """way: the masked one."""
    masked, free = found.ours("masked"), found.ours("unmasked")
    report = bench.one(way)
    share = report.grammar_seconds / sum(step.decode_seconds for step in report.steps)
    each = 1e3 * report.grammar_seconds / len(report.steps)
    return [
        line(
            "tau, drafts masked / unmasked",
            f"{masked.tau / free.tau:.2f}",
            f"{masked.tau:.2f}, {free.tau:.2f}",
        ),
        line("time, drafts masked against unmasked", found.times("masked", "unmasked")),
        line("time, drafts masked against plain decoding", found.times("masked", "none")),
        line("host time of the masks, of a round", f"{share:.1%}", f"{each:.2f} ms a round"),
    ]


def main(wanted: Benchmark) -> None:
    import pandas as pd

    from experiments.benchmarks.bench import Bench

    bench = Bench(wanted)
    tried = ways(bench)
    found = bench.compare("a JSON schema", dict(tried), wanted.limit)
    told = [*lines(bench, tried["masked"], found), valid(bench, tried["masked"])]
    bench.publish("benchmark_grammar", [pd.DataFrame(told)], {"a JSON schema": found})


if __name__ == "__main__":
    start(main, Benchmark)
