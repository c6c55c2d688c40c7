"""Text to train on: documents in, two streams of token ids out. The held-out stream never meets an optimiser.

A document is held out by a hash of its name, so the split is the same on every machine and does not depend on the order
of files or on how many there are.
"""

import gzip
import json
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|end|>"


@dataclass(frozen=True)
class Document:
    """One text with the name that decides on which side of the split it falls."""

    name: str
    text: str

    def held_out(self, share: float) -> bool:
        return zlib.crc32(self.name.encode()) % 10_000 < share * 10_000


def clean(text: str, longest_line: int = 200) -> str:
    """Spaces for tabs, no trailing blanks, no overlong (generated) lines, at most two empty lines in a row."""
    lines = [line.rstrip() for line in text.expandtabs(4).splitlines()]
    kept = "\n".join(line for line in lines if len(line) <= longest_line)
    return re.sub(r"\n{4,}", "\n\n\n", kept).strip("\n") + "\n"


def documents(source: str, patterns: Iterable[str] = ("*.py",), exclude: Iterable[str] = ()) -> list[Document]:
    """Every readable document of `source`: "stdlib", a folder, one text file, or a JSONL file with a "text" field.

    Documents that are not UTF-8, or are for more than a tenth not ASCII, are left out.
    """
    if source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        exclude = [*exclude, "site-packages/*"]
    else:
        root = Path(source).expanduser()
    if not root.exists():
        raise ValueError(f"text source {source!r} does not exist; give 'stdlib', a folder, a text file or a JSONL file")
    found = list(_from_file(root) if root.is_file() else _from_folder(root, list(patterns), list(exclude)))
    if not found:
        raise ValueError(f"no usable document in {root} (patterns {list(patterns)}, exclude {list(exclude)})")
    return found


def _from_folder(root: Path, patterns: list[str], exclude: list[str]) -> Iterator[Document]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        wanted = any(fnmatch(path.name, pattern) for pattern in patterns)
        if not wanted or any(fnmatch(name, pattern) for pattern in exclude) or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text and sum(character > "\x7f" for character in text) <= len(text) / 10:
            yield Document(name, clean(text))


def _from_file(path: Path) -> Iterator[Document]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        if ".jsonl" not in path.suffixes:
            yield Document(path.name, clean(lines.read()))
            return
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)["text"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(f'{path}:{number}: expected a JSON object with a "text" field: {error!r}') from None
            yield Document(f"{path.name}:{number}", clean(text))


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2): any text goes in and comes back unchanged."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False, model_max_length=int(1e9)
    )


@dataclass(frozen=True)
class Stream:
    """Token ids of many documents in one row, each ended by the end token, and how many bytes of text they stand for."""

    ids: np.ndarray
    bytes: int

    @property
    def digest(self) -> int:
        """The same for the same tokens."""
        return zlib.crc32(self.ids.tobytes())

    def windows(self, length: int, count: int, seed: int, step: int) -> np.ndarray:
        """`count` windows (count, length) for training step `step`: a pure function of its arguments, so a resumed
        run reads what an uninterrupted one would. Each pass over the text is cut at another offset, in another order."""
        per_pass = (len(self.ids) - length) // length
        if per_pass < count:
            raise ValueError(f"{len(self.ids)} training tokens are too few for {count} windows of {length}")
        rows = []
        for number in range(step * count, (step + 1) * count):
            epoch, index = divmod(number, per_pass)
            random = np.random.default_rng((seed, epoch))
            offset = int(random.integers(length))
            start = offset + length * int(_order(seed, epoch, per_pass)[index])
            rows.append(self.ids[start : start + length])
        return np.stack(rows).astype(np.int64)


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    key = (seed, epoch, count)
    if key not in _orders:
        _orders.clear()
        _orders[key] = np.random.default_rng((seed, epoch, 1)).permutation(count)
    return _orders[key]


def encode(found: list[Document], tokenizer: "PreTrainedTokenizerFast", seed: int = 0) -> Stream:
    """Documents in shuffled order as one stream."""
    order = np.random.default_rng(seed).permutation(len(found))
    texts = [found[index].text for index in order]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    ids = np.concatenate([np.asarray([*row, end], dtype=np.int32) for row in encoded])
    return Stream(ids, sum(len(text.encode()) for text in texts))
