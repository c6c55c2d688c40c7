"""What the benchmarks are told, and the lines they print. Nothing heavy is imported here: `--help`
reads it."""

from dataclasses import dataclass


@dataclass
class Options:
    target: str = "demo"
    prompts: str = "demo"  # or a file of JSON lines
    limit: int = 16
    deep_limit: int = 8  # prompts on the deepened target; 0 leaves it out
    max_new_tokens: int = 128
    dtype: str = "bfloat16"
    extra_layers: int = 42  # of the deepened target
    seed: int = 0
    threads: int | None = None
    output: str = "outputs/benchmark"


Line = dict[str, str]  # of a benchmark's table: what, measured, how


def line(what: str, measured: str, how: str = "") -> Line:
    return {"what": what, "measured": measured, "how": how}
