"""Documents in, two streams of token ids out. The held-out stream never meets an optimiser.

A document is held out by a hash of its name, so the split is the same on every machine and does
not depend on the order of files or on how many there are.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from experiments.training.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|end|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """A byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2): any text goes in and comes
    back unchanged."""
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
        tokenizer_object=tokenizer,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=int(1e9),
    )


@dataclass(frozen=True)
class Stream:
    """Token ids of many documents in one row, each ended by the end token, and how many bytes of
    text they stand for."""

    ids: np.ndarray
    bytes: int

    @property
    def digest(self) -> int:
        """The same for the same tokens."""
        return zlib.crc32(self.ids.tobytes())

    def windows(self, length: int, count: int, seed: int, step: int) -> np.ndarray:
        """`count` windows (count, length) for training step `step`: a pure function of its
        arguments, so a resumed run reads what an uninterrupted one would. Each pass over the text
        is cut at another offset, in another order."""
        per_pass = (len(self.ids) - length) // length
        if per_pass < count:
            raise ValueError(
                f"{len(self.ids)} training tokens are too few for {count} windows of {length}"
            )
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
