"""The loop end to end on real (tiny) models: greedy output is transformers' own, chance is coupled,
rows end where they should."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import specdec
from experiments.certificates import suite
from experiments.certificates.suite import pairs
from specdec import Coupled
from specdec.models.load import BUNDLED
from specdec.models.session import TransformersSession
from specdec.models.table import TableModel
from specdec.output import TextStream
from specdec.plugins import names
from tests.exact import KNOWN, make, title
from tests.models import ARCHITECTURES, CONTEXT, VOCABULARY, build, prompts, shared, similar
from tests.tokenizers_of_kinds import unigram

SHAPES: dict[str, list[dict[str, Any]]] = {
    "ngram": [{}, {"tree": True}],
    "small_model": [
        {"depth": 4},
        {"depth": 3, "branching": [3, 2, 1]},
        {"depth": 4, "branching": 3, "draw": "ranked", "nodes": 9},
        {"depth": 3, "draw": "adaptive", "nodes": 7},
    ],
    "cascade": [{"threshold": 1.0}],  # by threshold=auto it decides for all rows
}
DRAFTERS = [
    {"name": name, **shape}
    for name in names("drafter")
    if name not in ("portfolio", "auto")  # they decide for all rows, auto by the clock
    for shape in SHAPES.get(name, [{}])
]


# families that some drafters refuse (test_heads, test_self_speculation)
NOT_EVERYWHERE = ("gpt2", "opt", "gpt_neox", "phi", "deepseek_v3", "afmoe", "cohere2")


def with_draft(drafter: dict[str, Any], draft: Any, target: Any = None) -> Any:
    """The drafter with small weights that fit the target."""
    if drafter["name"] == "small_model":
        return {**drafter, "model": draft}
    return (
        drafter
        if target is None
        else suite.make(drafter, specdec.load(target), specdec.load(draft))
    )


@contextmanager
def unless_refused(name: str) -> Iterator[None]:
    """Skips where a family that is known to be refused by some drafters is."""
    try:
        yield
    except ValueError as reason:
        if name not in NOT_EVERYWHERE:
            raise
        pytest.skip(str(reason))


def greedy(model, row: list[int], count: int) -> list[int]:
    """transformers' own greedy tokens of one unpadded prompt."""
    ids = torch.tensor([row])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            pad_token_id=0,
        )
    return out[0, len(row) :].tolist()


def tokens_of(out: specdec.Output) -> list[list[int]]:
    return [row.tolist() for row in out.tokens]


# ------------------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize("drafter", DRAFTERS, ids=title)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_tokens_are_those_of_transformers(name, drafter):
    model, rows = shared(name), prompts(9, 14, 7)
    with unless_refused(name):
        out = specdec.generate(
            model, rows, drafter=with_draft(drafter, similar(model), model), max_new_tokens=24
        )
    assert tokens_of(out) == [greedy(model, row, 24) for row in rows]
    assert out.finish_reasons == ["length"] * 3
    if drafter["name"] == "none":
        assert out.report.tau == 1
    if drafter["name"] == "small_model":
        assert 1 < out.report.tau < 1 + drafter["depth"]  # some drafts are accepted, some are not


def test_rows_that_end_early_leave_the_others_alone():
    model, rows = build("llama_gqa"), prompts(9, 14, 7)
    plain = [greedy(model, row, 24) for row in rows]
    model.generation_config.eos_token_id = [plain[0][3], plain[1][11]]
    out = specdec.generate(
        model,
        rows,
        drafter={"name": "small_model", "model": similar(model), "depth": 4},
        max_new_tokens=24,
    )
    ends = frozenset(model.generation_config.eos_token_id)
    assert tokens_of(out) == [until(row, ends) for row in plain]
    assert out.finish_reasons == ["eos" if ends & set(row) else "length" for row in plain]
    assert (
        tokens_of(
            specdec.generate(model, rows, drafter="ngram", max_new_tokens=24, ignore_eos=True)
        )
        == plain
    )


def until(row: list[int], ends: frozenset[int]) -> list[int]:
    """Up to the first end, which is kept."""
    place = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[: place + 1]


@pytest.mark.parametrize("drafter", DRAFTERS[1:], ids=title)
def test_in_bfloat16_every_first_divergence_is_a_near_tie(drafter):
    """Kernels depend on shapes, so a tree pass may flip an argmax where two logits nearly agree;
    nowhere else."""
    model, exactly, rows = (
        build("llama_gqa", torch.bfloat16),
        build("llama_gqa", torch.float64),
        prompts(*range(6, 22)),
    )
    with torch.inference_mode():
        probe = torch.tensor(prompts(*[20] * 8, seed=5))
        rounding = float((model(probe).logits.double() - exactly(probe).logits).abs().max())
    out = specdec.generate(
        model, rows, drafter=with_draft(drafter, similar(model), model), max_new_tokens=24
    )
    for row, tokens in zip(rows, tokens_of(out), strict=True):
        plain = greedy(model, row, 24)
        split = next(
            (
                i
                for i, (ours, theirs) in enumerate(zip(tokens, plain, strict=True))
                if ours != theirs
            ),
            None,
        )
        if split is not None:
            with torch.inference_mode():
                logits = exactly(torch.tensor([[*row, *plain[:split]]])).logits[0, -1]
            assert abs(float(logits[tokens[split]] - logits[plain[split]])) <= 2 * rounding
            assert float(logits.max() - logits[tokens[split]]) <= 2 * rounding


@pytest.mark.skipif(
    not all(folder.is_dir() for folder in BUNDLED.values()),
    reason="the bundled models are not trained yet",
)
@pytest.mark.parametrize("drafter", DRAFTERS, ids=title)
def test_greedy_tokens_of_a_trained_model(drafter):
    """The bundled family, in float32: fluent text, long accepted paths."""
    lm = specdec.load("demo", dtype="float32", device="cpu")
    rows = [
        lm.tokenizer(text)["input_ids"]
        for text in ("def read_csv(", "class Stack:\n    def push(self", "import os\n\n")
    ]
    draft = specdec.load("demo-draft", dtype="float32", device="cpu")
    # those without bundled weights get random ones
    bundled = drafter["name"] not in ("hydra_heads", "dflash", "pard", "mtp")
    made = with_draft(drafter, draft, None if bundled else lm)
    out = specdec.generate(lm, rows, drafter=made, max_new_tokens=40, ignore_eos=True)
    for row, tokens in zip(rows, tokens_of(out), strict=True):
        plain = greedy(lm.model, row, 40)
        assert tokens[: len(plain)] == plain


# ------------------------------------------------------------------------------------------ coupled


@pytest.fixture(scope="module")
def coupled_plain() -> list[list[int]]:
    model = shared("llama_gqa", torch.float64)
    out = specdec.generate(
        model,
        prompts(9, 14, 7),
        drafter="none",
        temperature=1.0,
        top_p=0.9,
        max_new_tokens=24,
        chance=Coupled(4),
    )
    return tokens_of(out)


@pytest.mark.parametrize("drafter", DRAFTERS, ids=title)
def test_coupled_output_is_the_same_for_every_drafter_and_batch(drafter, coupled_plain):
    model, rows = shared("llama_gqa", torch.float64), prompts(9, 14, 7)

    def run(*requests: int) -> list[list[int]]:
        out = specdec.generate(
            model,
            [rows[request] for request in requests],
            drafter=with_draft(drafter, similar(model), model),
            temperature=1.0,
            top_p=0.9,
            max_new_tokens=24,
            request_ids=requests,
            chance=Coupled(4),
        )
        return tokens_of(out)

    assert run(0, 1, 2) == coupled_plain
    assert run(2, 0) == [coupled_plain[2], coupled_plain[0]]
    assert run(1) == [coupled_plain[1]]
    assert len({tuple(row) for row in coupled_plain}) == 3


# --------------------------------------------------------------------------------------- neighbours


ALONE = [drafter for drafter in DRAFTERS if drafter["name"] != "priced"]  # one price for all rows


@pytest.mark.parametrize("drafter", ALONE, ids=title)
def test_float64_tokens_do_not_depend_on_neighbours(drafter):
    model, rows = shared("llama_gqa", torch.float64), prompts(9, 14, 7)

    def run(*requests: int) -> list[list[int]]:
        out = specdec.generate(
            model,
            [rows[request] for request in requests],
            drafter=with_draft(drafter, similar(model), model),
            temperature=1.0,
            max_new_tokens=20,
            request_ids=requests,
            seed=6,
        )
        return tokens_of(out)

    together = run(0, 1, 2)
    assert run(1, 0) == [together[1], together[0]]
    assert run(2) == [together[2]]


@pytest.mark.parametrize(("drafter", "rule"), pairs(), ids=title)
def test_same_seed_same_tokens_and_another_seed_others(drafter, rule):
    options = {"verifier": rule, "temperature": 1.0, "max_new_tokens": 60, "allow_lossy": True}

    def run(seed: int) -> list[list[int]]:
        return tokens_of(
            specdec.generate(
                KNOWN.target, [[0]], drafter=make(drafter, KNOWN)(), seed=seed, **options
            )
        )

    assert run(1) == run(1)
    assert run(1) != run(2)


GOLDEN = {  # changes that compute nothing differently leave every token as it is
    ("none", "naive"): "010002121101120120100101",
    ("chain", "token"): "022000000001001001200000",
    ("chain", "block"): "022000000101001001200000",
    ("tree", "rrs_wor"): "020020002121000001122102",
}


@pytest.mark.parametrize(("shape", "rule"), GOLDEN)
def test_golden_tokens(shape, rule):
    drafter = {"none": {"name": "none"}, "chain": {"name": "small_model", "depth": 3}}.get(
        shape, {"name": "small_model", "depth": 2, "branching": 2}
    )
    out = specdec.generate(
        KNOWN.target,
        [[0]],
        drafter=make(drafter, KNOWN)(),
        verifier=rule,
        temperature=1.0,
        max_new_tokens=24,
        seed=2026,
    )
    assert "".join(map(str, out.tokens[0].tolist())) == GOLDEN[shape, rule]


# ------------------------------------------------------------------------------------ the last slot


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", DRAFTERS, ids=title)
@pytest.mark.parametrize("name", ["gpt2", "opt", "llama_gqa"])
def test_what_just_fits_the_context_works(name, drafter, temperature):
    """Learned positions have no row to spare: one position too many would be an index error."""
    model = shared(name)
    with unless_refused(name):
        out = specdec.generate(
            model,
            prompts(CONTEXT - 12, 5),
            drafter=with_draft(drafter, similar(model), model),
            max_new_tokens=12,
            temperature=temperature,
        )
    assert [len(row) for row in out.tokens] == [12, 12]
    with pytest.raises(ValueError, match=f"over the target's context of {CONTEXT}"):
        specdec.generate(model, prompts(CONTEXT - 12), drafter="none", max_new_tokens=13)


def test_a_draft_model_past_its_own_context_drafts_nothing():
    model = shared("llama_gqa")
    draft = similar(model)
    draft.config.max_position_embeddings = 20
    out = specdec.generate(
        model,
        prompts(10),
        drafter={"name": "small_model", "model": draft, "depth": 3},
        max_new_tokens=30,
    )
    assert tokens_of(out) == [greedy(model, prompts(10)[0], 30)]
    length = 10
    for step in out.steps:  # three levels behind a text of 17 end at the last of 20 positions
        if length < 37:  # and there is room
            assert step.num_nodes[0] == (3 if length <= 17 else 0)
        length += int(step.kept[0])
    assert length == 40


def test_a_row_past_the_draft_models_context_leaves_the_others_their_drafts():
    """Learned positions: one past the last would be an index error, and so would padding there."""
    target, small = (
        build("gpt2", torch.float64),
        {"name": "small_model", "depth": 3, "branching": 2},
    )
    draft = GPT2LMHeadModel(GPT2Config(**{**target.config.to_dict(), "n_positions": 24}))
    weights = target.state_dict()
    draft.load_state_dict(
        {**weights, "transformer.wpe.weight": weights["transformer.wpe.weight"][:24]}
    )
    rows, options = prompts(9, 40, 20, 17), {"max_new_tokens": 20, "temperature": 1.0}
    drafter = {**small, "model": draft.double().eval()}
    together = specdec.generate(target, rows, drafter=drafter, **options)
    offered = np.stack([step.num_nodes for step in together.steps[:2]])
    assert (offered[0] == [14, 0, 14, 14]).all()
    assert offered[1, 0] == 14
    for row, prompt in enumerate(rows):
        alone = specdec.generate(target, prompt, drafter=drafter, request_ids=[row], **options)
        assert torch.equal(alone.tokens[0], together.tokens[row])


def test_a_draft_model_that_is_the_target_itself():
    """One object, two memories."""
    lm = specdec.load(shared("llama_gqa"))
    for model in (lm, lm.model):
        drafter = {"name": "small_model", "model": model}
        assert specdec.generate(lm, prompts(5), drafter=drafter, max_new_tokens=10).report.tau == 5


def test_one_token_and_one_token_prompts():
    model = shared("llama_gqa")
    for drafter in DRAFTERS:
        out = specdec.generate(
            model,
            [[5], [6, 7]],
            drafter=with_draft(drafter, similar(model), model),
            max_new_tokens=1,
        )
        assert tokens_of(out) == [greedy(model, row, 1) for row in ([5], [6, 7])]


# --------------------------------------------------------------------- ends inside an accepted path


def byte_level() -> PreTrainedTokenizerFast:
    """256 bytes and an end: every character beyond ASCII takes several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(
            vocab={letter: number for number, letter in enumerate([*alphabet, "<end>"])}, merges=[]
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


class Speller(TableModel):
    """A target that spells one text, byte by byte, and then ends."""

    def __init__(self, text: str, prompt: str = "x") -> None:
        tokenizer = byte_level()
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        rows = {tuple(ids[:place]): self.one(token) for place, token in enumerate(ids)}
        super().__init__(rows, prompt=len(tokenizer(prompt)["input_ids"]))
        self.tokenizer, self.eos_ids = tokenizer, frozenset({tokenizer.eos_token_id})

    @staticmethod
    def one(token: int) -> list[int]:
        return [int(other == token) for other in range(257)]


TEXT = "naïve café — 𝄞 \N{PILE OF POO}! STOP and go on"


def spell(text: str = TEXT, depth: int = 5, stream: bool = False, prompt: str = "x", **options):
    """The draft model spells the same text, so that every draft is accepted."""
    run = specdec.stream if stream else specdec.generate
    drafter = {"name": "small_model", "model": Speller(text, prompt), "depth": depth}
    return run(Speller(text, prompt), prompt, drafter=drafter, **{"max_new_tokens": 200, **options})


@pytest.mark.parametrize("depth", [1, 2, 5, 9])
def test_eos_inside_an_accepted_path(depth):
    out = spell(depth=depth)
    length = len(TEXT.encode()) + 1  # EOS is kept as the last token, and is no text
    assert (out.texts, out.finish_reasons, len(out.tokens[0])) == ([TEXT], ["eos"], length)
    assert out.report.num_tokens == length
    assert int(out.tokens[0][-1]) == 256


@pytest.mark.parametrize("depth", [1, 4, 9])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9])
def test_length_inside_an_accepted_path(depth, length):
    out = spell("abcdefghijklmnopqrst", depth=depth, max_new_tokens=length)
    assert (out.texts, out.finish_reasons) == (["abcdefghijklmnopqrst"[:length]], ["length"])
    assert out.report.num_tokens == length


STOPS = [
    ("STOP", "naïve café — 𝄞 \N{PILE OF POO}! "),
    (["zzz", "é —", "—"], "naïve caf"),
    ("n", ""),
    ("\N{PILE OF POO}!", "naïve café — 𝄞 "),
]


@pytest.mark.parametrize("depth", [1, 3, 9])
@pytest.mark.parametrize(("stop", "expected"), STOPS)
def test_stop_strings_inside_an_accepted_path(depth, stop, expected):
    out = spell(depth=depth, stop=stop)
    assert (out.texts, out.finish_reasons) == ([expected], ["stop"])
    stops = [stop] if isinstance(stop, str) else stop
    through = byte_level().decode(out.tokens[0])
    # tokens end with the one that completes the stop string
    assert any(through == expected + text for text in stops)


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "options",
    [{}, {"stop": "STOP"}, {"stop": "STOPPED"}, {"max_new_tokens": 3}, {"max_new_tokens": 19}],
    ids=str,
)
@pytest.mark.parametrize("prompt", ["x", "é", "the "])
def test_streamed_text_is_whole_characters_and_adds_up(depth, options, prompt):
    whole = spell(depth=depth, prompt=prompt, **options)
    events = list(spell(depth=depth, prompt=prompt, stream=True, **options))
    parts = [event.text for event in events]
    assert "".join(parts) == whole.texts[0]
    # at a length the last character may be half
    assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts[:-1])
    assert [token for event in events for token in event.tokens] == whole.tokens[0].tolist()
    assert [event.finish_reason for event in events] == [None] * (
        len(events) - 1
    ) + whole.finish_reasons
    assert all(0 <= event.num_accepted <= min(depth, len(event.tokens)) for event in events)


class Pieces:
    """A tokenizer that tokenizers does not know: each token is some bytes."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def decode(self, ids, **_):
        return b"".join(self.pieces[number] for number in ids).decode(errors="replace")


def shown(pieces, *stop):
    """What a stream shows after each piece, and in all."""
    stream = TextStream(Pieces(*pieces), [], stop)
    parts = []
    for number in range(len(pieces)):
        over = stream.push([number])
        parts.append(stream.take(final=over))
    return parts


def test_what_may_begin_a_stop_string_is_held_back():
    assert shown([b"xaa", b"c"], "aab") == ["x", "aac"]
    assert shown([b"xaa", b"b"], "aab") == ["x", ""]
    assert shown([b"xa", b"a", b"ab"], "aab") == ["x", "", "a"]
    assert shown([b"x", b"abc"], "bc", "ab") == ["x", ""]
    assert shown([b"x", b"abcd"], "cd", "b") == ["x", "a"]


class Words(Pieces):
    """Drops a space at the beginning, as tokenizers of sentences do."""

    def decode(self, ids, **_):
        return super().decode(ids).removeprefix(" ")


def test_the_first_word_comes_out_as_in_running_text():
    stream = TextStream(Words(b" the", b" end"), [0])
    stream.push([1])
    assert stream.take(final=True) == " end"


def test_bytes_that_read_otherwise_with_those_after_them():
    """A tokenizer with byte tokens takes back what it said of them; a stream says it once."""
    tokenizer = unigram(400)
    for seed in range(20):
        ids = torch.randint(3, 259, (30,), generator=torch.Generator().manual_seed(seed)).tolist()
        stream = TextStream(tokenizer, ids[:3])
        stream.push(ids[3:])
        assert stream.take(final=True)


def test_half_a_character_is_held_back():
    assert shown([b"x\xc3", b"\xa9y"]) == ["", "x\u00e9y"]


def test_events_come_per_live_row_and_add_up():
    model, rows = shared("llama_gqa"), prompts(9, 14, 7)
    options = {
        "drafter": {"name": "small_model", "model": similar(model), "depth": 3},
        "max_new_tokens": 15,
    }
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for event in specdec.stream(model, rows, **options):
        found[event.row] += event.tokens
        assert event.text is None
    assert list(found.values()) == tokens_of(specdec.generate(model, rows, **options))


# ------------------------------------------------------------------------------- prompts and report


def test_prompts_in_every_form():
    model, row = shared("llama_gqa"), prompts(6)[0]
    expected = greedy(model, row, 5)
    for form in (
        row,
        [row],
        torch.tensor(row),
        torch.tensor([row]),
        [torch.tensor(row)],
        tuple(row),
    ):
        assert tokens_of(specdec.generate(model, form, max_new_tokens=5)) == [expected]


def test_texts_need_a_tokenizer():
    out = specdec.generate(shared("llama_gqa"), prompts(6), max_new_tokens=3)
    assert out.texts is None
    assert spell("hello").texts == ["hello"]


def test_the_report_adds_up():
    model = shared("llama_gqa")
    out = specdec.generate(
        model,
        prompts(9, 14, 7),
        drafter={"name": "small_model", "model": similar(model), "depth": 3},
        max_new_tokens=20,
    )
    report = out.report
    assert report.num_tokens == sum(map(len, out.tokens)) == 60
    live = sum(int(step.live.sum()) for step in out.steps)
    assert report.tau == 60 / live
    assert report.target_calls == len(out.steps)
    assert sum(
        length * count for length, count in report.accepted_lengths.items()
    ) == pytest.approx(report.accepted_per_round * live)
    offered, accepted = (
        sum(getattr(cell, name) for cell in report.acceptance.values())
        for name in ("reached", "accepted")
    )
    assert report.acceptance_rate == accepted / offered
    assert (report.drafter, report.verifier, report.lossless) == ("small_model", "greedy", True)
    assert {"prefill", "draft", "score", "verify", "commit", "other"} == set(report.seconds)


def test_one_forward_pass_of_the_target_a_round(monkeypatch):
    target, passes = specdec.load(shared("llama_gqa")), []
    forward = TransformersSession._forward
    monkeypatch.setattr(
        TransformersSession,
        "_forward",
        lambda *given, **named: passes.append(0) or forward(*given, **named),
    )
    out = specdec.generate(target, prompts(9), drafter="ngram", max_new_tokens=20)
    assert len(passes) == 1 + len(out.steps)  # the prefill is one more


def test_random_tokens_are_in_the_vocabulary():
    out = specdec.generate(shared("llama_gqa"), prompts(9, 3), temperature=2.0, max_new_tokens=30)
    assert all(0 <= token < VOCABULARY for row in tokens_of(out) for token in row)
