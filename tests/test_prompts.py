"""Prompts in the formats that people have, and conversations: what each turn is given."""

import gzip
import json
import sys

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.measuring import measures, ways
from experiments.measuring.play import Play
from experiments.prompts import Prompt, read
from experiments.prompts.conversation import Conversation, uses_chat
from experiments.study.result import Skipped
from specdec.models.load import load
from specdec.plugins import build

SPEC_BENCH = [
    {
        "question_id": 1,
        "category": "writing",
        "turns": ["Describe a sunrise over the sea.", "Make it a limerick."],
    },
    {
        "question_id": 2,
        "category": "qa",
        "turns": ["Who wrote the first published algorithm?"],
        "reference": ["Ada"],
    },
]
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def largest(a, b):\n    """The larger."""\n',
    "entry_point": "largest",
}
GSM8K = {
    "question": "A robe takes 2 bolts of blue fiber. How many do 3 robes take?",
    "answer": "2*3=<<2*3=6>>6\n#### 6",
}


def jsonl(path, *entries):
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["file.jsonl", "file.jsonl.gz"])
def test_json_lines_that_people_have(tmp_path, name):
    path = jsonl(
        tmp_path / name,
        *SPEC_BENCH,
        HUMANEVAL,
        GSM8K,
        {"prompt": "Once\u2028upon", "category": "story"},
    )
    found = read("jsonl", path, category="category")
    assert [prompt.turns for prompt in found] == [
        ("Describe a sunrise over the sea.", "Make it a limerick."),
        ("Who wrote the first published algorithm?",),
        (HUMANEVAL["prompt"],),
        (GSM8K["question"],),
        ("Once\u2028upon",),
    ]
    assert [prompt.category for prompt in found] == ["writing", "qa", "all", "all", "story"]
    assert [prompt.index for prompt in found] == [0, 1, 2, 3, 4]
    assert [
        prompt.text for prompt in read("jsonl", jsonl(tmp_path / name, GSM8K), field="answer")
    ] == [GSM8K["answer"]]


def test_line_ends_inside_a_text_are_no_ends_of_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '\ufeff{"prompt": "one\u2028two\x85three"}\r\n', encoding="utf-8"
    )
    (found,) = read("jsonl", str(tmp_path / "a.jsonl"))
    assert found.text == "one\u2028two\x85three"


@pytest.mark.parametrize("name", ["prompts.json", "prompts.json.gz"])
def test_a_json_list_is_a_file_of_prompts(tmp_path, name):
    """Of texts, of objects, or of both; and a line of JSON may be a text."""
    entries = ["one\ntwo", {"prompt": "three", "category": "story"}]
    for content in (
        json.dumps(entries, indent=1),
        "\ufeff " + json.dumps(entries),
        "\n".join(map(json.dumps, entries)),
    ):
        data = content.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        found = read("jsonl", str(tmp_path / name), category="category")
        assert [(prompt.text, prompt.category) for prompt in found] == [
            ("one\ntwo", "all"),
            ("three", "story"),
        ]
    (tmp_path / "bad.json").write_text('["fine", 7]')
    with pytest.raises(
        ValueError, match=r"bad\.json, entry 2: expected an object .* or a text, got 7"
    ):
        read("jsonl", str(tmp_path / "bad.json"))


def test_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\n")
    assert [prompt.text for prompt in read("text", str(tmp_path / "a.txt"))] == [
        "one\ntwo",
        "three",
    ]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\r\n\r\ntwo"))
    assert [prompt.text for prompt in read("text", str(tmp_path / "a.txt.gz"))] == ["one", "two"]


def test_folder(tmp_path):
    (tmp_path / "poems").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("no prompt")
    (tmp_path / "poems" / "b.txt").write_text("roses\n\nviolets\n")
    (tmp_path / "z.md").write_text("# Title\n")
    (tmp_path / "empty.txt").write_text("\n")
    jsonl(tmp_path / "math.jsonl.gz", GSM8K, {**GSM8K, "category": "robes"})
    found = read("folder", str(tmp_path), category="category")
    assert [(prompt.category, prompt.text) for prompt in found] == [
        ("math", GSM8K["question"]),
        ("robes", GSM8K["question"]),
        ("poems", "roses\n\nviolets"),
        ("text", "# Title"),
    ]


def test_limit_takes_from_each_category_and_a_seed_shuffles(tmp_path):
    kinds = ["code"] * 6 + ["prose"] * 6
    path = jsonl(
        tmp_path / "a.jsonl",
        *({"prompt": str(n), "category": kind} for n, kind in enumerate(kinds)),
    )
    found = read("jsonl", path, category="category", limit=2)
    assert [(prompt.index, prompt.category) for prompt in found] == [(0, "code"), (6, "prose")]
    shuffled = [read("jsonl", path, category="category", seed=seed, limit=6) for seed in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert [prompt.text for prompt in shuffled[0]] == [str(prompt.index) for prompt in shuffled[0]]
    assert sorted(prompt.category for prompt in shuffled[0]) == ["code"] * 3 + ["prose"] * 3


# ---------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"promt": "b"}',
            r"line 3: none of turns, prompt, question \(found: promt\); set prompts.field",
        ),
        ('{"prompt": ""}', "line 3: 'prompt' must hold a text that is not empty.*got ''"),
        ('{"turns": []}', "line 3: 'turns' must hold"),
        ('{"turns": ["a", 1]}', "line 3: 'turns' must hold"),
        ('["a"]', r"line 3: expected an object .* or a text, got \['a'\]"),
        ('{"prompt": ', "line 3: not JSON"),
        ('"\udcff"', "line 3: not UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n' + line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(ValueError, match=rf"prompts\.jsonl, {message}"):
        read("jsonl", str(path))


def test_fields_and_files_that_are_not_there(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", GSM8K)
    with pytest.raises(
        ValueError, match=r"line 1: 'text' is not there \(found: question, answer\)"
    ):
        read("jsonl", path, field="text")
    with pytest.raises(ValueError, match="no file of prompts at"):
        read("jsonl", str(tmp_path / "b.jsonl"))
    with pytest.raises(ValueError, match=r"is a folder.*prompts=folder"):
        read("text", str(tmp_path))
    with pytest.raises(ValueError, match="no folder of prompts at"):
        read("folder", path)
    with pytest.raises(ValueError, match="holds no prompts"):
        read("jsonl", jsonl(tmp_path / "empty.jsonl"))
    with pytest.raises(
        ValueError, match="one of jsonl, text, folder, datasets, deepspec, speed_bench, got 'json'"
    ):
        read("json", path)
    with pytest.raises(ValueError, match="limit must be >= 1"):
        read("jsonl", path, limit=0)


def test_files_that_are_broken(tmp_path):
    whole = gzip.compress(json.dumps(GSM8K).encode() * 50)
    for content in (whole[:-12], b"plain text"):
        (tmp_path / "a.jsonl.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz is no whole gzip file"):
            read("jsonl", str(tmp_path / "a.jsonl.gz"))
    (tmp_path / "a.txt").write_bytes(b"fine\n\nna\xefve\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 3: not UTF-8"):
        read("text", str(tmp_path / "a.txt"))


def test_data_sets_are_said_to_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'pip install "specdec\[datasets\]"'):
        read("datasets", "openai/gsm8k", subset="main")


@pytest.mark.slow
def test_data_sets(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "test.jsonl", *({**GSM8K, "category": kind} for kind in ("a", "b")))
    found = read("datasets", str(tmp_path / "set"), category="category", split="test")
    assert [(prompt.text, prompt.category) for prompt in found] == [
        (GSM8K["question"], "a"),
        (GSM8K["question"], "b"),
    ]
    with pytest.raises(ValueError, match="row 0: 'text' is not there"):
        read("datasets", str(tmp_path / "set"), field="text")
    with pytest.raises(ValueError, match=r"datasets cannot load .*nowhere"):
        read("datasets", str(tmp_path / "nowhere"))


# ------------------------------------------------------------------------------------ conversations

WORDS = ["<end>", "<user>", "<model>", *"abcdefgh"]
TEMPLATE = (
    "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<model> ' }}{{ m.content }} {% "
    "endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)


@pytest.fixture(scope="module")
def target():
    tokenizer = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<end>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=None,
        initializer_range=0.5,
    )
    return load(
        (
            LlamaForCausalLM(config).eval(),
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"),
        )
    )


def ids(text):
    return [WORDS.index(word) for word in text.split()]


def test_a_conversation_without_a_template_grows_by_the_tokens(target):
    talk = Conversation(
        Prompt(0, "a b", "all", ("c", "d")), target.tokenizer, False, target.eos_ids
    )
    assert talk.ids == ids("a b")
    talk.answer(ids("e f <end>"))
    assert talk.ids == ids("a b e f c")
    assert not talk.over
    talk.answer(ids("g"))
    assert talk.ids == ids("a b e f c g d")
    assert talk.over


def test_a_conversation_through_the_template(target, monkeypatch):
    monkeypatch.setattr(target.tokenizer, "chat_template", TEMPLATE)
    talk = Conversation(Prompt(0, "a b", "all", ("c",)), target.tokenizer, True, target.eos_ids)
    assert talk.ids == ids("<user> a b <model>")
    talk.answer(ids("e f <end>"))
    assert talk.ids == ids("<user> a b <model> e f <user> c <model>")


def test_who_uses_a_template(target, monkeypatch):
    assert [uses_chat(target.tokenizer, chat) for chat in (None, False)] == [False, False]
    with pytest.raises(ValueError, match=r"no chat template; set prompts\.chat=false"):
        uses_chat(target.tokenizer, True)
    monkeypatch.setattr(target.tokenizer, "chat_template", TEMPLATE)
    assert [uses_chat(target.tokenizer, chat) for chat in (None, True, False)] == [
        True,
        True,
        False,
    ]


PROMPTS = [Prompt(0, "a b", "x", ("c", "d")), Prompt(1, "e", "y"), Prompt(2, "f g", "x", ("h",))]


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_turns_are_played_in_sequence_with_each_ways_own_answers(target, batch_size, temperature):
    available = {
        name: ways.Ours(
            target,
            build("drafter", drafter),
            {"temperature": temperature, "ignore_eos": name == "method"},
        )
        for name, drafter in (("method", "ngram"), ("none", "none"))
    }
    play = Play(PROMPTS, target, None, batch_size, 5)
    played = list(play(available, warmup=1))
    assert len(played) == play.turns
    said = {}
    for one in played:
        for row, prompt in enumerate(one.prompts):
            for way, sample in one.samples.items():
                before = said.get((way, prompt.index), [])
                assert one.given[way][row] == before + ids(prompt.turns[one.turn])
                answer = sample.tokens[row]
                said[way, prompt.index] = one.given[way][row] + (
                    answer[:-1] if answer[-1] == 0 else answer
                )
    turns = {(prompt.index, one.turn) for one in played for prompt in one.prompts}
    assert turns == {(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)}
    measured = measures.way_result(played, "method", available["method"])
    assert measured.tokens == 6 * 5


def test_a_conversation_that_cannot_fit_is_refused_before_anything_runs(target):
    Play(PROMPTS, target, None, 1, 19)  # 4 + 3 * 19 tokens in a context of 64
    with pytest.raises(
        ValueError, match=r"prompt 0 has 3 turns; .*max_new_tokens=21 .* 67 tokens, over .* 64"
    ):
        Play(PROMPTS, target, None, 1, 21)
    with pytest.raises(ValueError, match="prompt 1 has 70 tokens"):
        Play([PROMPTS[1], Prompt(1, "a " * 70, "x")], target, None, 1, 2)


def test_prompts_of_a_length_keep_their_ending(target, tmp_path):
    """Longer ones lose their beginning, shorter ones stand behind the source's other texts, each of
    which is there at most once."""
    path = tmp_path / "four.txt"
    path.write_text("a b c\n\nd\n\ne f\n\ng h a b c d")
    found = read("text", str(path), limit=2, tokens=4)
    openings = [
        Conversation(prompt, target.tokenizer, False, target.eos_ids).ids for prompt in found
    ]
    assert openings == [ids("d a b c"), ids("a b c d")]
    (longest,) = read("text", str(path), limit=1, tokens=12)
    assert Conversation(longest, target.tokenizer, False, ()).ids == ids("d e f g h a b c d a b c")
    with pytest.raises(ValueError, match="all texts of the source together are 12 tokens"):
        Conversation(read("text", str(path), limit=1, tokens=13)[0], target.tokenizer, False, ())
    with pytest.raises(ValueError, match=r"prompts\.tokens must be >= 1, or null"):
        read("text", str(path), tokens=0)


def test_prompts_of_a_length_are_refused_with_a_template(target, monkeypatch):
    monkeypatch.setattr(target.tokenizer, "chat_template", TEMPLATE)
    with pytest.raises(ValueError, match=r"cuts through a chat template; set prompts\.chat=false"):
        Conversation(Prompt(0, "a b", "all", tokens=1), target.tokenizer, True, ())


def test_prompts_that_do_not_fit_can_be_skipped(target):
    prompts = [
        Prompt(0, "a", "all"),
        Prompt(1, "a " * 61, "all"),
        Prompt(2, "b", "all", ("c " * 56,)),
        Prompt(3, "c d", "all"),
    ]
    play = Play(prompts, target, False, 2, 4, too_long="skip")
    assert play.skipped == [Skipped(prompt=1, tokens=65), Skipped(prompt=2, tokens=65)]
    assert [prompt.index for batch in play.batches for prompt in batch] == [0, 3]
    with pytest.raises(
        ValueError, match=r"none of 1 prompts fits the target's context of 64 .* takes 65"
    ):
        Play(prompts[1:2], target, False, 1, 4, too_long="skip")
    with pytest.raises(ValueError, match="must be refuse or skip, got 'drop'"):
        Play(prompts, target, False, 1, 4, too_long="drop")


# --------------------------------------------------------------------------- published benchmarks


def test_data_sets_of_deepspec(tmp_path):
    """First turns, a category per file; all of them, or one."""
    jsonl(tmp_path / "gsm8k.jsonl", {"turns": ["two bolts"], "question_id": 1})
    jsonl(tmp_path / "mt-bench.jsonl", *SPEC_BENCH)
    found = read("deepspec", str(tmp_path), category="category", thinking=False)
    assert [(prompt.category, prompt.turns) for prompt in found] == [
        ("gsm8k", ("two bolts",)),
        ("mt-bench", ("Describe a sunrise over the sea.",)),
        ("mt-bench", ("Who wrote the first published algorithm?",)),
    ]
    assert all(prompt.thinking is False for prompt in found)
    (one,) = read("deepspec", str(tmp_path), subset="gsm8k")
    assert one.category == "gsm8k"
    with pytest.raises(ValueError, match=r"no alpaca.jsonl in .*data sets there: gsm8k, mt-bench"):
        read("deepspec", str(tmp_path), subset="alpaca")
    jsonl(tmp_path / "gsm8k.jsonl", {"question": "two bolts"})
    with pytest.raises(ValueError, match=r"gsm8k.jsonl, line 1: 'turns' is not there"):
        read("deepspec", str(tmp_path))


SPEED_BENCH = [
    {"question_id": "a", "category": "coding", "turns": ["Sort it.", "Faster."], "multiturn": True},
    {"question_id": "b", "category": "math", "turns": ["Add them."], "multiturn": False},
]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_speed_bench(kind, tmp_path):
    inner = tmp_path / "qualitative"
    inner.mkdir()
    file = inner / f"test-00000-of-00001.{kind}"

    def write(*rows: dict) -> None:
        if kind == "parquet":
            pd.DataFrame(list(rows)).to_parquet(file)
        else:
            jsonl(file, *rows)

    write(*SPEED_BENCH)
    for path, subset in ((tmp_path, "qualitative"), (tmp_path, None), (file, None)):
        found = read("speed_bench", str(path), category="category", subset=subset)
        assert [(prompt.category, prompt.turns) for prompt in found] == [
            ("coding", ("Sort it.", "Faster.")),
            ("math", ("Add them.",)),
        ]
    with pytest.raises(ValueError, match=r"no parquet files and no JSON lines below .*mixed"):
        read("speed_bench", str(tmp_path), subset="mixed")
    hidden = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
    write(SPEED_BENCH[0], {**SPEED_BENCH[1], "turns": [hidden]})
    with pytest.raises(ValueError, match=r"row 2: its text has yet to be fetched .*prepare_data"):
        read("speed_bench", str(tmp_path))


def test_what_is_no_parquet_file_is_named(tmp_path):
    (tmp_path / "half.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"half.parquet is no whole parquet file"):
        read("speed_bench", str(tmp_path))


@pytest.mark.parametrize(("thinking", "said"), [(None, "on"), (True, "on"), (False, "off")])
def test_templates_are_told_whether_to_think(thinking, said):
    class Thinks:
        chat_template = "there is one"

        def apply_chat_template(self, turns, tokenize, add_generation_prompt, enable_thinking=True):
            return "on" if enable_thinking else "off"

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [{"on": 1, "off": 0}[text]]}

    talk = Conversation(Prompt(0, "why", "all", thinking=thinking), Thinks(), True, ())
    assert talk.ids == [{"on": 1, "off": 0}[said]]
