"""Lookup drafters on recorded outputs, without a model: the tau that they would have had. A part of
`experiments.replay`:

python -m experiments.replay records=multirun/first ngram_tree suffix suffix_store
python -m experiments.replay edits=specdec ngram_chain suffix

Names are options of the group `method` whose drafters look text up (ngram, suffix). records: the
folder of a run, or a folder above several runs; the runs need keep_texts=true and one sampling.
edits: a folder of Python files. Each file becomes a request to rename one of its identifiers,
answered by the whole file with the new name: agent-like text that is mostly in its prompt.

Columns: tau pooled over all outputs, with a 95% bootstrap interval over them; nodes per round; the
same cold, if the drafter learns from earlier outputs, in their order; the share of distinct 4-grams
in the outputs, because loops flatter every lookup.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import OmegaConf

if TYPE_CHECKING:  # --help does not need this module
    from specdec import Drafter

LONGEST = 1500  # tokens of a file that is edited


@dataclass
class Replay:
    """python -m experiments.replay records=FOLDER METHOD ...: tau of lookup drafters on recorded
    outputs, or (edits=FOLDER) on edits of files."""

    # options of the group `method` whose drafters look text up
    names: list[str] = field(default_factory=lambda: ["ngram_chain", "ngram_tree", "suffix"])
    records: str | None = None  # the folder of a run, or of several, made with keep_texts=true
    edits: str | None = None  # a folder of Python files, each of which becomes a request
    store: str | None = None  # for drafters that take one: none | memory | FILE
    tokenizer: str = "demo"  # for edits
    limit: int | None = None  # at most so many outputs


class Recorded(NamedTuple):
    given: list[int]
    tokens: list[int]


def edited(folder: str, tokenizer: Any) -> list[Recorded]:
    """Every Python file below a folder, with its most frequent long name changed."""
    found = []
    for path in sorted(Path(folder).expanduser().rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        names = Counter(re.findall(r"\b[a-z_]{5,}\b", text))
        if not names:
            continue
        name = names.most_common(1)[0][0]
        answer = re.sub(rf"\b{name}\b", f"{name}_new", text)
        request = f"{text}\n# Rename {name} to {name}_new in this file.\n"
        given, tokens = (tokenizer(each)["input_ids"] for each in (request, answer))
        if len(tokens) <= LONGEST:
            found.append(Recorded(given, tokens))
    return found


def recorded(wanted: Replay) -> list[Recorded]:
    from experiments.measuring.outputs import read_outputs
    from specdec.models.load import load_tokenizer

    if (wanted.records is None) == (wanted.edits is None):
        raise ValueError("give one of records=FOLDER and edits=FOLDER")
    if wanted.edits is not None:
        found = edited(wanted.edits, load_tokenizer(wanted.tokenizer))
    else:
        outputs = read_outputs(str(wanted.records))
        found = [Recorded(one.given, one.tokens) for one in outputs if one.tokens]
    if not found:
        raise ValueError(f"there is nothing to replay in {wanted.records or wanted.edits}")
    return found[: wanted.limit]


def drafter_of(method: str, store: str | None) -> "Drafter":
    """The drafter of conf/method/METHOD.yaml."""
    from specdec.plugins import build
    from specdec.registry import CONF

    path = CONF / "method" / f"{method}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
        raise ValueError(f"there is no method {method!r}; there are: {known}")
    read: Any = OmegaConf.to_container(OmegaConf.load(path))
    (name,) = [entry["override /drafter"] for entry in read["defaults"] if len(entry) == 1]
    given = {"name": name, **read.get("drafter", {})}
    if store is not None and name == "suffix":
        given["store"] = store
    found: Drafter = build("drafter", given)
    if found.runners_up or found.best_tokens or found.taps:
        raise ValueError(
            f"method {method!r} looks at the target's laws or states, which outputs do not hold; "
            "run it with python -m experiments.run"
        )
    return found


class Played(NamedTuple):
    """What was measured, per output."""

    tokens: list[int]
    rounds: list[int]
    nodes: list[int]


def played(found: Sequence[Recorded], drafter: "Drafter", vocabulary: int, cold: bool) -> Played:
    import specdec
    from experiments.measuring.replay import Replayed

    rounds, nodes = [], []
    for one in found:
        if cold:
            drafter.forget()
        out = specdec.generate(
            Replayed([*one.given, *one.tokens], vocabulary),
            [one.given],
            drafter=drafter,
            max_new_tokens=len(one.tokens),
        )
        assert out.tokens[0].tolist() == one.tokens
        rounds.append(len(out.steps))
        nodes.append(int(sum((step.parents >= 0).sum() for step in out.steps)))
    return Played([len(one.tokens) for one in found], rounds, nodes)


def main(wanted: Replay) -> None:
    import numpy as np
    import pandas as pd

    from experiments.terminal.progress import bar
    from experiments.terminal.tables import markdown
    from specdec.measuring.report import distinct_ngrams

    found = recorded(wanted)
    vocabulary = 1 + max(token for one in found for token in (*one.given, *one.tokens))
    random = np.random.default_rng(0)

    def interval(one: Played) -> str:
        tokens, rounds = np.array(one.tokens), np.array(one.rounds)
        drawn = random.integers(len(tokens), size=(2000, len(tokens)))
        low, high = np.percentile(tokens[drawn].sum(1) / rounds[drawn].sum(1), (2.5, 97.5))
        return f"{tokens.sum() / rounds.sum():.2f} [{low:.2f}, {high:.2f}]"

    rows = []
    with bar("replay", len(wanted.names)) as advance:
        for name in wanted.names:
            drafter = drafter_of(name, wanted.store)
            warm = played(found, drafter, vocabulary, cold=False)
            cold = played(found, drafter, vocabulary, cold=True) if drafter.learns else None
            row = {"method": name, "tau": interval(warm)}
            row["nodes"] = f"{sum(warm.nodes) / sum(warm.rounds):.1f}"
            row["tau, cold"] = interval(cold) if cold else "-"
            rows.append(row)
            advance()
    share = distinct_ngrams([one.tokens for one in found])
    said = "none as long" if share is None else f"{share:.0%}"
    print(markdown(pd.DataFrame(rows)))
    tokens = sum(len(one.tokens) for one in found)
    print(f"{len(found)} outputs, {tokens} tokens; distinct 4-grams: {said}")
