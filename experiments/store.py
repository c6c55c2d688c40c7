"""A store for the drafter `suffix`, out of texts and of the outputs of runs.

python -m experiments.store text=src output=store.safetensors tokenizer=demo
python -m experiments.store records=multirun/first output=store.safetensors tokenizer=demo
python -m experiments.run drafter=suffix drafter.store=store.safetensors

text: a file, or a folder in which every file is a text (.jsonl: every entry is a text). records:
the folder of a run, or a folder above several runs; the runs need keep_texts=true. Both may be
given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from experiments.terminal.options import start


@dataclass
class Store:
    """python -m experiments.store text=FILE_OR_FOLDER records=FOLDER output=FILE: write a store of
    texts that the drafter `suffix` looks up (drafter=suffix drafter.store=FILE)."""

    output: str = MISSING
    text: str | None = None  # a file, or a folder in which every file is a text
    records: str | None = None  # the folder of a run, or of several, made with keep_texts=true
    tokenizer: str = "demo"  # the target's: its name, folder or hub id
    store_tokens: int = 1_000_000  # the store's size; beyond it the oldest texts are left out


def texts(place: str) -> Iterator[str]:
    """The texts of a file or folder."""
    from experiments.prompts.sources import SOURCES, text_of

    path = Path(place).expanduser()
    if not path.exists():
        raise ValueError(f"there is no text at {path}")
    if path.is_dir() or path.name.endswith((".jsonl", ".jsonl.gz")):
        kind = "folder" if path.is_dir() else "jsonl"
        for turns, _ in SOURCES[kind](str(path), None, None):
            yield "\n".join(turns)
    else:
        yield text_of(path)


def build(wanted: Store) -> str:
    """Write the store and return a line that says what it holds. Raises ValueError if it would be
    empty."""
    from experiments.measuring.outputs import read_outputs
    from specdec.drafting.suffix_store import SuffixStore
    from specdec.models.load import load_tokenizer
    from specdec.models.vocabulary import digest_of

    if wanted.text is None and wanted.records is None:
        raise ValueError("nothing to build a store from: give text=... or records=..., or both")
    tokenizer = load_tokenizer(wanted.tokenizer)
    store = SuffixStore(wanted.store_tokens, digest_of(tokenizer))
    for text in texts(wanted.text) if wanted.text is not None else ():
        store.add(tokenizer(text, add_special_tokens=False)["input_ids"])
    for entry in read_outputs(wanted.records) if wanted.records is not None else ():
        if entry.tokenizer != store.tokenizer:
            raise ValueError(
                f"the outputs in {wanted.records} are tokens of another tokenizer "
                f"({entry.tokenizer}) than {wanted.tokenizer} ({store.tokenizer})"
            )
        store.add(entry.tokens)
    if not store.tokens:
        raise ValueError(
            f"there are no tokens in {wanted.text or wanted.records}, or each text is longer than "
            f"store_tokens={wanted.store_tokens}"
        )
    store.save(wanted.output)
    return f"{wanted.output}: {len(store)} texts, {store.tokens} tokens"


def main(wanted: Store) -> None:
    from experiments.system.libraries import quiet_transformers

    quiet_transformers()
    print(build(wanted))


if __name__ == "__main__":
    start(main, Store)
