"""What came of decoding: the numbers of each way, what they are counted from, and what they are
called in result.json.

Rates are formed from sums over prompts (micro means) unless they are called macro. Seconds are
seconds, memory is in bytes.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

BIN = 32  # output tokens of a bin of positions
STRICT: dict[str, Any] = {"extra": "forbid"}  # for pydantic, which checks what is read


@dataclass(frozen=True)
class Interval:
    """A median (or another statistic) and its 95% interval; no interval below three values."""

    median: float
    low: float | None
    high: float | None
    n: int  # values

    def text(self, form: str = "{:.2f}", unit: str = "") -> str:
        """ "1.52x [1.40, 1.61]", for the unit x."""
        ends = "" if self.low is None else f" [{form.format(self.low)}, {form.format(self.high)}]"
        return f"{form.format(self.median)}{unit}{ends}"

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True)
class Speedup(Interval):
    """Seconds per token of a baseline / those of a way, over batches."""

    per_batch: list[float]


# ------------------------------------------------------------------------- what rounds were counted


def tau(kept: float, rounds: float) -> float:
    """Block efficiency: tokens that rows kept / rounds in which they were live, the bonus
    included."""
    return kept / max(1, rounds)


def acceptance_rate(accepted: int, reached: int) -> float | None:
    """Accepted / offered drafted nodes, of those that were reached. None where none was."""
    return accepted / reached if reached else None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the method's rounds: how many, and sums over them."""

    rounds: int
    kept: int
    reached: int
    accepted: int

    @property
    def tau(self) -> float:
        return tau(self.kept, self.rounds)

    @property
    def acceptance_rate(self) -> float | None:
        return acceptance_rate(self.accepted, self.reached)


@dataclass(frozen=True, kw_only=True)
class OfCategory(Part):
    category: str


@dataclass(frozen=True, kw_only=True)
class OfPosition(Part):
    first: int  # output token at which the bin of BIN tokens begins


@dataclass(frozen=True, kw_only=True)
class OfDepth(Part):
    depth: int  # of the tree that was offered


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Drafted nodes at one depth (from 1) and sibling rank (from 0)."""

    depth: int
    rank: int
    offered: int
    reached: int  # of these, whose parent was accepted
    accepted: int


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of siblings at one depth: reached, and of which one was accepted."""

    depth: int
    reached: int
    accepted: int


# ----------------------------------------------------------------------------------- ways to decode


@dataclass(frozen=True, kw_only=True)
class PromptResult:
    """One prompt in one turn. Its seconds are those of its batch."""

    __pydantic_config__: ClassVar[Any] = STRICT
    prompt: int
    category: str
    turn: int
    batch: int
    prompt_tokens: int
    tokens: int
    distinct_4grams: float | None
    wall_seconds: float  # the whole call


@dataclass(frozen=True, kw_only=True)
class OurPromptResult(PromptResult):
    """Of a way whose rounds are counted."""

    rounds: int
    tau: float
    accepted_per_round: float
    decode_seconds: float  # without the prefill
    first_token_seconds: float
    target_seconds: float  # inside the target's forward passes
    draft_seconds: float  # inside the draft model's

    @property
    def decoding(self) -> float:
        """Seconds per token without the prefill."""
        return self.decode_seconds / max(1, self.tokens)

    @property
    def outside_models(self) -> float:
        """The share of the call that is spent outside the models' forward passes."""
        return 1 - (self.target_seconds + self.draft_seconds) / self.wall_seconds


@dataclass(frozen=True, kw_only=True)
class Memory:
    target_weights: int
    drafter_weights: int  # that the drafter adds
    # of the process, or of the GPU's memory, during a call; None where the system does not tell
    peak: int | None
    before: int | None  # the same before that call


@dataclass(frozen=True, kw_only=True)
class Operations:
    """Floating-point operations per kept token: matrix products and attention."""

    draft: float
    target: float


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Seconds between one token of a row and the next: percentiles."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class WayResult:
    """What any way of decoding took over all prompts."""

    __pydantic_config__: ClassVar[Any] = STRICT
    tokens: int
    wall_seconds: float  # whole calls, prefill and all
    wall_tokens_per_second: float
    distinct_4grams: float | None  # loops flatter every drafter
    per_prompt: Sequence[PromptResult]
    speedup: dict[str, Speedup] = field(default_factory=dict)  # by baseline
    memory: Memory

    @property
    def seconds_per_token(self) -> list[float]:
        """Of each batch over all its turns, whole calls."""
        seconds: dict[int, dict[int, float]] = defaultdict(dict)
        tokens: Counter[int] = Counter()
        for entry in self.per_prompt:
            seconds[entry.batch][entry.turn] = entry.wall_seconds
            tokens[entry.batch] += entry.tokens
        return [
            sum(turns.values()) / max(1, tokens[batch]) for batch, turns in sorted(seconds.items())
        ]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a drafter that decides by costs expected of its rounds, against what they brought."""

    rounds: int
    expected_tokens: float  # of a round, the mean
    tokens: float
    expected_seconds: float
    seconds: float
    token_ratio: float  # measured / expected
    time_ratio: float  # likewise, the median round
    calibration_error: float  # |chance - share accepted|, the mean over drafted nodes
    count: list[int]  # nodes by their chance of acceptance, in bins of equal width
    chance: list[float]  # their mean
    accepted: list[float]  # the share of them that was accepted


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What drafts under a bank have gained over plain decoding, over all calls one after
    another."""

    rounds: int
    plain_rounds: int
    trials: int  # how often the drafter was asked again
    at: list[int]  # rounds so far
    seconds: list[float]  # gained by then


@dataclass(frozen=True, kw_only=True)
class OurResult(WayResult):
    """A way that goes through `specdec.generate`, whose rounds are counted."""

    per_prompt: Sequence[OurPromptResult]
    drafter: str
    verifier: str
    lossless: bool
    extra_layers: int
    tau_interval: Interval  # over prompts
    rounds: int  # forward passes of the target after the prefill
    row_rounds: int  # rounds x live rows
    tau: float
    tau_macro: float | None  # the mean of the prompts' own
    tau_with_prefill: float  # the prefill counted as a round that keeps nothing
    accepted_per_round: float  # drafted tokens, before cuts
    accepted_per_round_macro: float | None
    acceptance_rate: float | None
    nodes_per_round: float
    nodes_per_accepted: float | None
    target_calls_per_token: float
    tokens_per_second: float | None  # while decoding
    decode_seconds: float
    first_token_seconds: float
    gaps: Gaps | None
    seconds: dict[str, float]  # by phase
    cache_bytes: dict[str, int]
    accepted_lengths: dict[int, int]  # accepted drafted tokens -> rounds
    acceptance: list[Cell]
    per_depth: list[Groups]
    counts: dict[str, float]  # the verifier's diagnostics
    flops_per_token: Operations | None = None  # of the method alone
    compile_seconds: float = 0.0  # not in decode_seconds
    expected: Expected | None = None  # None: the drafter decides by no costs
    balance: Balance | None = None  # None: no bank


@dataclass(frozen=True, kw_only=True)
class Diverging:
    """Where a greedy output first parts from a baseline's."""

    prompt: int
    turn: int
    index: int
    ours: int | None  # None: the output ended there
    plain: int | None
    margin: float | None  # between the two tokens' logits, in float32
    kind: str  # tie | fault | unjudged


@dataclass(frozen=True, kw_only=True)
class Divergences:
    compared: int
    diverging: int
    ties: int
    faults: int
    rounding: float | None  # of the target's passes; None where nothing had to be judged
    found: list[Diverging]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Several ways over the same prompts, in turn."""

    prompts: int
    batches: list[list[int]]  # prompts by number
    learns: bool  # the drafter, across prompts
    # method, the baselines, again (the first baseline), cold (the method)
    ways: dict[str, OurResult | WayResult]
    by_category: list[OfCategory]
    by_position: list[OfPosition]
    offered_depths: list[OfDepth]
    divergence: dict[str, Divergences]  # by baseline, at temperature 0

    @property
    def method(self) -> OurResult:
        return self.ours("method")

    def ours(self, name: str) -> OurResult:
        """A way whose rounds are counted."""
        found = self.ways[name]
        assert isinstance(found, OurResult)
        return found

    @property
    def plain(self) -> OurResult | None:
        """Plain decoding in our loop, where it is a baseline of this run."""
        return self.ours("none") if "none" in self.ways else None

    @property
    def draft_cost(self) -> float | None:
        """Seconds of drafting per round of the method / seconds of a pass in plain decoding. None
        without plain decoding."""
        if self.plain is None:
            return None
        drafting = self.method.seconds["draft"] / max(1, self.method.rounds)
        return drafting / (self.plain.seconds["score"] / self.plain.rounds)
