"""The tables of a report: full numbers for CSV, and the same as text for the page and for LaTeX."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.measuring.intervals import median_interval
from experiments.report import frames
from experiments.report.looks import called
from experiments.study.outcome import Interval
from experiments.study.result import Result


@dataclass(frozen=True)
class Told:
    """A table: `text` is what a reader sees, `raw` what it was made from, `caption` what it says
    and over how many."""

    title: str
    text: pd.DataFrame
    raw: pd.DataFrame
    caption: str


def number(form: str) -> Callable[[Any], str]:
    return lambda value: "–" if value is None or pd.isna(value) else form.format(value)


PLAIN, RATE, PERCENT, WHOLE = (
    number("{:.2f}"),
    number("{:.2f}"),
    number("{:.0%}"),
    number("{:,.0f}"),
)


def milliseconds(seconds: Any) -> str:
    return number("{:.1f}" if pd.isna(seconds) or seconds < 0.1 else "{:.0f}")(
        None if pd.isna(seconds) else 1000 * seconds
    )


def mebibytes(count: Any) -> str:
    return number("{:,.1f}")(None if pd.isna(count) else count / 2**20)


def signed(value: Any) -> str:
    return number("{:+.0%}")(value).replace("-", "−")


def with_interval(frame: pd.DataFrame, name: str, form: str = "{:.2f}") -> list[str]:
    """ "1.52 [1.40, 1.61]", from NAME, NAME_low, NAME_high."""
    shown = []
    for middle, low, high in frame[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False):
        found = Interval(middle, None if pd.isna(low) else low, high, 0)
        shown.append("–" if pd.isna(middle) else found.text(form))
    return shown


def who(frame: pd.DataFrame, always: tuple[str, ...] = ("temperature",)) -> dict[str, list[str]]:
    """The columns that tell runs apart: the method, and what else varies."""
    shown = {"method": list(frame["drafter"])}
    titles = {"target": "target", "verifier": "verifier", "temperature": "T", "batch": "batch"}
    for column, title in titles.items():
        if column in always or frame[column].nunique() > 1:
            shown[title] = [
                f"{value:g}" if isinstance(value, float) else str(value) for value in frame[column]
            ]
    return shown


def noise(results: Iterable[Result]) -> Interval | None:
    """The first baseline against itself, all runs pooled: how far a ratio strays with nothing
    changed."""
    ratios = [
        ratio for result in results for found in frames.noise(result) for ratio in found.per_batch
    ]
    return median_interval(ratios) if ratios else None


def headline(results: list[Result]) -> Told:
    """One row per run, then a row per baseline and the first baseline against itself."""
    table, baselines = frames.table(results), frames.baselines(results)
    shown: dict[str, list[str]] = who(table, ("temperature", "verifier"))
    shown["law"] = list(table["law"])
    shown["τ"] = with_interval(table, "tau")
    shown["accepted"] = table["acceptance_rate"].map(PERCENT).tolist()
    shown["tokens/s"] = table["tokens_per_second"].map(WHOLE).tolist()
    for name in baselines:
        shown[f"× {called(name)}"] = with_interval(table, f"speedup_{name}")
    shown["distinct"] = table["distinct_4grams"].map(PERCENT).tolist()
    shown["n"] = [str(n) for n in table["prompts"]]
    text = pd.DataFrame(shown)
    still = noise(results)
    if still is not None:
        row = {f"× {called(baselines[0])}": str(still), "n": str(still.n)}
        text.loc[len(text)] = {column: row.get(column, "") for column in text} | {
            "method": f"{called(baselines[0])} against itself"
        }
    ratios = (
        " ×: speed-up, seconds per token of the baseline / of the method, whole calls; the median "
        "over prompts."
        if baselines
        else ""
    )
    last = (
        " The last row is the machine's noise: a baseline decoded twice, all runs pooled."
        if still is not None
        else ""
    )
    return Told(
        "Results",
        text,
        table,
        "Each run decodes every prompt with its method and with its baselines in turn. τ: tokens "
        "kept per round, bonus included, with its interval over prompts. accepted: of the drafted "
        "tokens whose parent was accepted, the share that was accepted too. tokens/s: while "
        f"decoding, prompts pooled.{ratios} Brackets: 95% bootstrap intervals. distinct: share of "
        f"distinct 4-grams in the output. n: prompts.{last}",
    )


def definitions_of_tau(results: list[Result]) -> Told:
    table = frames.table(results)
    table = table[table["acceptance_rate"].notna()]
    shown = who(table)
    titles = ("τ (micro)", "τ (macro)", "τ with prefill", "accepted (micro)", "accepted (macro)")
    for name, title in zip(frames.DEFINITIONS, titles, strict=True):
        shown[title] = table[name].map(PLAIN).tolist()
    shown["distinct"] = table["distinct_4grams"].map(PERCENT).tolist()
    columns = ["run", "drafter", "temperature", *frames.DEFINITIONS, "distinct_4grams", "prompts"]
    return Told(
        "Accepted tokens, in all definitions",
        pd.DataFrame(shown),
        table[columns],
        "Tokens per round. What papers call τ, mean accepted length or block efficiency is one of "
        "these; the page ends with their definitions.",
    )


def latency(results: list[Result]) -> Told:
    table = frames.table(results).assign(way="method")
    plain = frames.plain(results)
    plain = (
        plain[plain["way"] == "none"].assign(drafter="plain decoding", verifier="")
        if len(plain)
        else plain
    )
    same = [column for column in ("target", "temperature", "batch") if column in plain]
    # one row per setting: that of its first run
    once = plain.drop_duplicates(same) if len(plain) else plain
    both = pd.concat([table, once], ignore_index=True)
    told = " Plain decoding as in the first run of its setting." if len(plain) else ""
    columns = ["first_token_seconds", "gap_p50", "gap_p95", "gap_p99"]
    shown = who(both)
    shown["tokens/s"] = both["tokens_per_second"].map(WHOLE).tolist()
    for column, title in zip(
        columns, ("first token (ms)", "gap p50 (ms)", "gap p95 (ms)", "gap p99 (ms)"), strict=True
    ):
        shown[title] = both[column].map(milliseconds).tolist()
    return Told(
        "Latency",
        pd.DataFrame(shown),
        both[["run", "drafter", "temperature", "batch", "tokens_per_second", *columns, "prompts"]],
        "first token: median over calls, prefill included. gap: between one token of a text and "
        "the next, as they reach the reader; the tokens of a round arrive together, so that gaps "
        f"within it are 0.{told}",
    )


def cost(results: list[Result]) -> Told:
    table = frames.table(results)
    shown = who(table)
    shown["target calls / token"] = table["target_calls_per_token"].map(PLAIN).tolist()
    shown["nodes / round"] = table["nodes_per_round"].map(number("{:.1f}")).tolist()
    shown["nodes / accepted"] = table["nodes_per_accepted"].map(number("{:.1f}")).tolist()
    for name in ("draft", "target"):
        shown[f"{name} MFLOP / token"] = (
            (table[f"{name}_flops"].astype(float) / 1e6).map(number("{:,.1f}")).tolist()
        )
    titles = {
        "target_weights": "target weights",
        "drafter_weights": "drafter weights",
        "target_cache": "target cache",
        "drafter_cache": "drafter cache",
        "peak": "peak",
    }
    for name, title in titles.items():
        shown[f"{title} (MiB)"] = table[name].map(mebibytes).tolist()
    columns = [
        "target_calls_per_token",
        "nodes_per_round",
        "nodes_per_accepted",
        "draft_flops",
        "target_flops",
        *titles,
    ]
    return Told(
        "Cost",
        pd.DataFrame(shown),
        table[["run", "drafter", "temperature", "batch", *columns]],
        "target calls / token: forward passes of the whole batch after the prefill. nodes: drafted "
        "and scored, the root not counted. FLOP: matrix products and attention, counted over a few "
        "rounds of the first batch. peak: the most memory of the process (or of the GPU) during "
        "the method's calls.",
    )


def prediction(table: pd.DataFrame) -> Told:
    shown = who(table)
    shown["α"] = table["alpha"].map(RATE).tolist()
    shown["τ"] = table["tau"].map(PLAIN).tolist()
    shown["τ, closed form"] = _and_error(table, "tau_formula")
    if "speedup" in table:
        shown["speed-up"] = table["speedup"].map(PLAIN).tolist()
        shown["closed form"] = _and_error(table, "speedup_formula")
    if "speedup_profile" in table:
        shown["from the profile"] = _and_error(table, "speedup_profile")
    words = {
        "speed-up": "over plain decoding while decoding, all prompts pooled",
        "closed form": "Leviathan et al., from the run's own α and drafting time",
        "from the profile": "measured τ and the machine's forward times",
    }
    said = [f"{column}: {word}. " for column, word in words.items() if column in shown]
    return Told(
        "Predicted and measured",
        pd.DataFrame(shown),
        table,
        "α: accepted / reached groups of siblings. τ, closed form: Leviathan et al., from α. "
        f"{''.join(said)}In parentheses: predicted / measured − 1.",
    )


def _and_error(table: pd.DataFrame, name: str) -> list[str]:
    pairs = table[[name, f"{name}_error"]].itertuples(index=False)
    return [
        "–" if pd.isna(value) else f"{PLAIN(value)} ({signed(error)})" for value, error in pairs
    ]


def category(results: list[Result]) -> Told:
    table, baselines = frames.by_category(results), frames.baselines(results)
    shown = {"category": list(table["category"]), **who(table)}
    shown["τ"] = table["tau"].map(PLAIN).tolist()
    shown["accepted"] = table["acceptance_rate"].map(PERCENT).tolist()
    for name in baselines[:1]:
        if f"speedup_{name}" in table:
            shown[f"× {called(name)}"] = with_interval(table, f"speedup_{name}")
    shown["n"] = [str(n) for n in table["prompts"]]
    return Told(
        "By category of prompts",
        pd.DataFrame(shown),
        table,
        "As in the results, over the prompts of each category. n: prompts.",
    )


def divergence(results: list[Result]) -> Told | None:
    """None where no run is greedy or nothing parts."""
    table = frames.divergences(results)
    if not len(table):
        return None
    shown = {**who(table, ()), "baseline": [called(name) for name in table["baseline"]]}
    shown |= {name: [str(value) for value in table[name]] for name in ("prompt", "index")}
    shown["tokens"] = [
        f"{ours} / {plain}" for ours, plain in zip(table["ours"], table["plain"], strict=True)
    ]
    shown["margin"] = table["margin"].astype(float).map(number("{:.2g}")).tolist()
    shown["kind"] = list(table["kind"])
    measured = [found.rounding for result in results for found in result.divergence.values()]
    rounding = [value for value in measured if value is not None]
    told = f" Measured rounding: at most {max(rounding):.2g}." if rounding else ""
    return Told(
        "Where greedy outputs differ",
        pd.DataFrame(shown),
        table,
        "The first token at which a prompt's output parts from the baseline's; what follows is "
        "not comparable. margin: between the two tokens' logits in float32. A tie: within twice "
        f"the rounding of the passes; anything else is a fault.{told}",
    )


def expected(results: list[Result]) -> Told:
    """Of drafters that decide by costs."""
    table = frames.expected(results)
    shown = {
        **who(table),
        "tokens expected": table["expected_tokens"].map(PLAIN).tolist(),
        "measured": table["tokens"].map(PLAIN).tolist(),
        "ms expected": (1000 * table["expected_seconds"]).map(PLAIN).tolist(),
        "measured ": (1000 * table["seconds"]).map(PLAIN).tolist(),
        "calibration error": table["calibration_error"].map("{:.3f}".format).tolist(),
    }
    return Told(
        "Expected and measured",
        pd.DataFrame(shown),
        table,
        "What a round was expected to keep and to take when its trees were made, by the cost table "
        "and by chances learnt so far, and what it did.",
    )


def banks(results: list[Result]) -> Told:
    """Of runs under a bank (no_harm)."""
    table = frames.banks(results)
    shown = {
        **who(table),
        "rounds": table["rounds"].tolist(),
        "of these plain": table["plain_rounds"].tolist(),
        "trials": table["trials"].tolist(),
        "s gained": table["gained"].map(PLAIN).tolist(),
        "at the lowest": table["lowest"].map(PLAIN).tolist(),
    }
    return Told(
        "The bank",
        pd.DataFrame(shown),
        table,
        "Under no_harm: rounds, how many of them the bank kept plain, how often it asked the "
        "drafter again, and the seconds that drafts have gained over plain decoding.",
    )


def warmth(results: list[Result]) -> Told | None:
    """None where no drafter learns across prompts."""
    table, baselines = frames.warmth(results), frames.baselines(results)
    if not len(table):
        return None
    shown = {**who(table), "state": list(table["state"]), "τ": table["tau"].map(PLAIN).tolist()}
    for name in baselines[:1]:
        shown[f"× {called(name)}"] = with_interval(table, f"speedup_{name}")
    return Told(
        "Cold and warm",
        pd.DataFrame(shown),
        table,
        "Drafters that learn from earlier prompts: warm as the prompts came, in their order; cold "
        "with everything forgotten before each.",
    )
