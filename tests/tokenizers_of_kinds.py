"""Tiny tokenizers of every kind, and models for them."""

from collections.abc import Iterable, Sequence
from functools import cache

import tokenizers as parts
import torch
import transformers as hf
from transformers import PreTrainedTokenizerFast

import specdec
from specdec.models.language_model import TransformersLM

CORPUS = [
    "def read(path): return open(path).read()",
    "the reader reads the reading room, and the café is near: naïve façade, übel",
    "a cat and a dog read the paper; 東京 is a town, 京都 too",
    "for each in range(10): print(each, end=' ')",
] * 4
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def fast(inner: parts.Tokenizer, **special: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@cache
def byte_level(size: int, *markers: str) -> PreTrainedTokenizerFast:
    """A BPE of bytes, as GPT-2's; `</s>` is its first token."""
    inner = parts.Tokenizer(parts.models.BPE())
    inner.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = parts.decoders.ByteLevel()
    trainer = parts.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["</s>", *markers],
        initial_alphabet=parts.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    return fast(inner, eos_token="</s>", additional_special_tokens=list(markers))


@cache
def unigram(size: int) -> PreTrainedTokenizerFast:
    """SentencePiece's way: spaces are part of a word, bytes stand in for rare characters, and a
    text begins with `<s>` and a space."""
    trained = parts.Tokenizer(parts.models.Unigram())
    trained.pre_tokenizer = parts.pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = parts.trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator([line.replace("é", "") for line in CORPUS], trainer)
    learnt = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [
        (token, -float(place)) for place, (token, _) in enumerate(learnt) if token != "<unk>"
    ]
    inner = parts.Tokenizer(parts.models.Unigram(pieces, unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = parts.pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = parts.decoders.Sequence(
        [
            parts.decoders.Replace("▁", " "),
            parts.decoders.ByteFallback(),
            parts.decoders.Fuse(),
            parts.decoders.Strip(" ", 1, 0),
        ]
    )
    inner.post_processor = parts.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return fast(inner, **SPECIAL)


def words(known: Sequence[str], **special: str) -> PreTrainedTokenizerFast:
    """Words between spaces, with these ids."""
    ids = {word: number for number, word in enumerate(dict.fromkeys(known))}
    inner = parts.Tokenizer(parts.models.WordLevel(ids, unk_token=known[0]))
    inner.pre_tokenizer = parts.pre_tokenizers.WhitespaceSplit()
    return fast(inner, **special)


def word_pieces(known: Iterable[str]) -> PreTrainedTokenizerFast:
    ids = {word: number for number, word in enumerate(["[UNK]", *known])}
    inner = parts.Tokenizer(parts.models.WordPiece(ids, unk_token="[UNK]"))
    inner.pre_tokenizer = parts.pre_tokenizers.Whitespace()
    inner.decoder = parts.decoders.WordPiece()
    return fast(inner, unk_token="[UNK]")


def model(
    tokenizer: PreTrainedTokenizerFast | None,
    size: int | None = None,
    seed: int = 0,
    context: int = 256,
    eos: int | None = None,
) -> TransformersLM:
    """A tiny Llama with sharpened laws; size: its vocabulary, by default the tokenizer's."""
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=size or len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=None,
    )
    made = hf.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(8)
    return specdec.load((made, tokenizer))


def relabelled(
    lm: TransformersLM, order: Sequence[int], tokenizer: object, others: float
) -> TransformersLM:
    """The same model in other ids: its token i is `order[i]` of the new one, which has more tokens,
    with random weights of this size."""
    config = hf.LlamaConfig(**{**lm.model.config.to_dict(), "vocab_size": max(order) + 1 + 3})
    made = hf.LlamaForCausalLM(config).double().eval()
    state = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        wide = torch.randn(config.vocab_size, state[name].shape[1], dtype=torch.float64)
        wide *= others
        wide[list(order)] = state[name]
        state[name] = wide
    made.load_state_dict(state)
    return specdec.load((made, tokenizer))
