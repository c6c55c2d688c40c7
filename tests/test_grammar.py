"""Structured output: texts are what their grammar describes, drafts are allowed ones, and the law
is that of plain sampling under the same mask."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch

import specdec
from experiments.certificates import suite
from specdec import Grammar, Sampling, State, TokenTree
from specdec.grammar import Grammars
from specdec.models.grammars import tokens_of
from specdec.models.table import TableModel
from specdec.probs import DraftLaws
from tests.exact import Toy, exact, make, table, title
from tests.models import shared
from tests.tokenizers_of_kinds import byte_level, model, unigram, word_pieces, words

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
COLOURS = "(red|green|blue)( (red|green|blue)){1,3}"


# -------------------------------------------------------------------------------------- the law


A, B, C, END = range(4)
LETTERS = Grammar.regex("( a( b| c)| c)*")


class Spelled(TableModel):
    """A table whose tokens are letters, each a word."""

    tokenizer = words(["a", "b", "c", "</s>"], eos_token="</s>")
    eos_ids = frozenset({END})


def allowed(prefix):
    """What may follow, without the help of a grammar. The end has weight 0 in all tables here."""
    waiting = False
    for token in prefix:
        waiting = token == A and not waiting
    return (B, C) if waiting else (A, C)


class Bound(Toy):
    """Tables of letters; plain sampling is under the mask."""

    @property
    def target(self):
        return Spelled(self.p, prompt=len(self.prompt))

    @property
    def draft(self):
        return Spelled(self.q, prompt=len(self.prompt))

    def completions(self, prefix, probability, tokens):
        if len(prefix) == tokens:
            yield prefix, probability
            return
        row = self.p.get(prefix, self.p[()])
        whole = sum(row[token] for token in allowed(prefix))
        for token in allowed(prefix):
            share = probability * row[token] / whole
            yield from self.completions((*prefix, token), share, tokens)


def dense(seed):
    """Weights from 1 to 9, but for the end's."""
    return {
        prefix: [*(1 + (7 * weight + 5 * place) % 9 for place, weight in enumerate(row[:3])), 0]
        for prefix, row in table(4, 3, seed).items()
    }


BOUND = Bound(dense(1), dense(2), (A, C, A, B, A, C, A))
DRAFTERS = ("none", "ngram", "small_model", "suffix", "recycle")
JUDGED = [
    (drafter, rule, temperature)
    for temperature in (1.0, 0.0)
    for drafter, rule in suite.pairs(temperature)
    if rule in ("naive", "token", "block", "rrs_wor", "traversal", "greedy")
    and drafter["name"] in DRAFTERS
    and drafter.get("vocabulary", "same") == "same"
]


@pytest.mark.parametrize(("drafter", "rule", "temperature"), JUDGED, ids=title)
def test_the_law_is_that_of_plain_sampling_under_the_same_mask(drafter, rule, temperature):
    made = make(drafter, BOUND)
    found = exact(BOUND, made, rule, 3, temperature=temperature, grammar=LETTERS)
    if temperature:
        assert found.distance(BOUND.plain(3)) < 1e-12
        return
    expected = []
    for _ in range(3):
        row = BOUND.p.get(tuple(expected), BOUND.p[()])
        expected.append(max(allowed(expected), key=lambda token: (row[token], -token)))
    first = next(iter(found.law))
    assert first[0] == expected[0]
    assert found.outcomes == 1


@pytest.mark.parametrize("rule", ["token", "block"])
def test_drafts_are_allowed_ones(rule):
    """A draft model that is the target, under the same grammar, is always accepted."""
    twin = Bound(BOUND.p, BOUND.p, BOUND.prompt)
    made = make({"name": "small_model", "depth": 2}, twin)
    found = exact(twin, made, rule, 3, grammar=LETTERS)
    assert found.accepted == pytest.approx(2, abs=1e-12)


def test_greedy_rounds_go_on_from_what_was_committed():
    target = Bound(BOUND.p, BOUND.p, BOUND.prompt).target
    draft = {"name": "small_model", "model": target, "depth": 3, "branching": 2}
    options = {"grammar": LETTERS, "max_new_tokens": 12}
    plain = specdec.generate(target, list(BOUND.prompt), drafter="none", **options)
    text = plain.tokens[0].tolist()
    assert len(text) == 12
    assert all(token in allowed(text[:place]) for place, token in enumerate(text))
    found = specdec.generate(target, list(BOUND.prompt), drafter=draft, **options)
    assert found.tokens[0].tolist() == text
    assert found.report.tau == 4  # nothing that was drafted is rejected


def test_a_drafter_that_knows_no_allowed_token_keeps_its_law():
    grammars = Grammars(tokens_of(BOUND.target))
    grammars.enter(0, [C], LETTERS)
    state = replace(State.of([[C, A]], Sampling(1.0)), grammars=grammars)
    knows_only_a = torch.tensor([[[0.0, -torch.inf, -torch.inf, -torch.inf]]])
    law = DraftLaws(state)(knows_only_a, TokenTree.root(torch.tensor([A])), 0)
    assert law.tolist() == [[[1.0, 0.0, 0.0, 0.0]]]


# ------------------------------------------------------------------------------------ the texts


KINDS = {
    "bytes": byte_level(400),
    "unigram": unigram(330),
    "words": words(["<unk>", "red", "green", "blue", "a", "</s>"], eos_token="</s>"),
    "word pieces": word_pieces(["red", "gr", "##een", "blue", "a", "</s>"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_match_whatever_the_tokenizer(kind, temperature):
    """Words begin with a space where a tokenizer has them so."""
    tokenizer = KINDS[kind]
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    target = model(tokenizer, eos=tokenizer.eos_token_id)
    out = specdec.generate(
        target,
        [[4, 4, 4], [4], [4, 4]],
        drafter={"name": "small_model", "model": target, "branching": 2, "depth": 3},
        grammar=Grammar.regex(f" ?{COLOURS}"),
        temperature=temperature,
        max_new_tokens=100,
    )
    assert out.finish_reasons == ["eos"] * 3
    for text in out.texts:
        assert re.fullmatch(COLOURS, text.strip()), text
    assert out.report.grammar_seconds > 0


@pytest.mark.parametrize(
    "drafter",
    [
        *("none", "ngram", "suffix", "recycle", "medusa", "eagle", "eagle3"),
        *("layer_skip", "early_exit", "cascade"),
        {"name": "small_model", "draw": "ranked", "nodes": 12},
    ],
    ids=title,
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_drafter_writes_json(drafter, temperature):
    out = specdec.generate(
        specdec.load("demo"),
        ["person = json.loads('", "x = "],
        drafter=drafter,
        grammar=[PERSON, None],
        temperature=temperature,
        max_new_tokens=60,
    )
    assert out.finish_reasons[0] == "eos"
    person = json.loads(out.texts[0])
    assert set(person) == {"name", "age", "tags"}
    assert 0 <= person["age"] <= 120
    assert out.texts[0].startswith('{"name": "')  # on one line, as json.dumps writes it
    assert "\n" not in out.texts[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_is_what_it_is_alone(temperature):
    """Seats are given on; a row without a grammar is not touched by its neighbours'."""
    target = model(byte_level(400), eos=0)
    target.model.double()
    target = specdec.load((target.model, target.tokenizer))
    prompts = [[7, 8, 9], [7, 8], [30, 31, 32, 33], [7, 8, 9]]
    kinds = [Grammar.regex(COLOURS), None, PERSON, Grammar.lark('start: "<" /[ab]+/ ">"')]
    options = {
        "drafter": {"name": "small_model", "model": target, "branching": 2, "depth": 3},
        "temperature": temperature,
        "max_new_tokens": 24,
    }
    alone = [
        specdec.generate(target, prompt, grammar=kind, request_ids=[number], **options).tokens[0]
        for number, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True))
    ]
    free = specdec.generate(target, prompts[1], request_ids=[1], **options).tokens[0]
    assert alone[1].tolist() == free.tolist()
    for seats in (1, 2, 4):
        found = specdec.generate(target, prompts, grammar=kinds, seats=seats, **options)
        assert [row.tolist() for row in found.tokens] == [row.tolist() for row in alone]
    # The drafter keeps as much of a token as the target.
    drafter, memory = options.pop("drafter"), 4 * 15 * 2 * target.bytes_per_token()
    with specdec.Engine(target, drafter=drafter, seats=4, memory=memory, page=4) as engine:
        asked = [
            engine.submit(prompt, grammar=kind, **options)
            for prompt, kind in zip(prompts, kinds, strict=True)
        ]
        assert [one.result().tokens for one in asked] == [row.tolist() for row in alone]
        assert sum(one.set_aside for one in asked) > 0


NO_WAY_ON = Grammar.regex(" a d")  # nothing writes " d"
DRAFTED = ("none", "ngram", {"name": "small_model", "depth": 2, "model": BOUND.draft})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", DRAFTED, ids=["none", "ngram", "small_model"])
@pytest.mark.parametrize("stuck", [NO_WAY_ON, "an error of the matcher"])
def test_a_grammar_that_cannot_go_on_ends_its_own_request(stuck, drafter, temperature, monkeypatch):
    target, given = BOUND.target, {"max_new_tokens": 8, "temperature": temperature}
    prompt = list(BOUND.prompt)
    alone = [
        specdec.generate(
            target, prompt, drafter=drafter, request_ids=[number], grammar=kind, **given
        )
        for number, kind in ((1, LETTERS), (2, None))
    ]
    if stuck is not NO_WAY_ON:
        stuck, behind = LETTERS, Grammars._behind

        def broken(grammars, row, *more):
            if row == 0:
                raise ValueError("the grammar cannot go on: it is too complex")
            return behind(grammars, row, *more)

        monkeypatch.setattr(Grammars, "_behind", broken)
    with specdec.Engine(target, drafter=drafter, seats=3) as engine:
        bad = engine.submit(prompt, grammar=stuck, **given)
        fine = [engine.submit(prompt, grammar=kind, **given) for kind in (LETTERS, None)]
        events = list(engine)
        assert bad.result().finish_reason == "failed"
        said = str(bad.result().error)
        assert "cannot go on" in said or "leave no token possible" in said
        assert [event.finish_reason for event in events if event.row == bad.number][-1] == "failed"
        found = [handle.result().tokens for handle in fine]
        assert found == [out.tokens[0].tolist() for out in alone]
    with pytest.raises(ValueError, match=r"cannot go on|leave no token possible"):
        specdec.generate(target, prompt, drafter=drafter, grammar=stuck, **given)


def test_a_cut_text_is_the_beginning_of_one_that_matches():
    target = model(byte_level(400), eos=0)
    out = specdec.generate(target, [5, 6], grammar=Grammar.regex("(ab){40}"), max_new_tokens=5)
    assert out.finish_reasons == ["length"]
    assert ("ab" * 40).startswith(out.texts[0])
    stopped = specdec.generate(target, [5, 6], grammar=Grammar.regex("(ab){40}"), stop="bab")
    assert (stopped.finish_reasons, stopped.texts) == (["stop"], ["a"])


def test_a_trace_shows_laws_under_the_mask():
    target = model(byte_level(400), eos=0)
    draft = {"name": "small_model", "model": target}
    out = specdec.generate(
        target, [5, 6], drafter=draft, grammar=Grammar.regex("x{9}"), temperature=1.0, trace=True
    )
    assert out.texts == ["x" * 9]
    for step in out.steps:
        p, used = step.nodes.p[step.live], step.parents[step.live] >= 0
        assert (p[used] > 0).all()  # every drafted token is allowed


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("[0-9]+", r"a JSON schema \(a dictionary\), Grammar.regex.*got '\[0-9\]\+'"),
        (5, "grammar is a JSON schema"),
        ([{}, {}], "one entry per prompt: 1 prompts, 2 entries"),
        (
            Grammar.regex("(a"),
            "no grammar can be made of this regular expression: .*unclosed group",
        ),
        (Grammar.lark("begin: x"), "no grammar can be made of this Lark grammar: no start"),
        ({"type": "objct"}, "no grammar can be made of this JSON schema: .*objct"),
    ],
    ids=str,
)
def test_grammars_that_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        specdec.generate(model(byte_level(400), eos=0), [5, 6], grammar=given)


def test_grammars_that_cannot_be_written():
    with pytest.raises(ValueError, match=r"cannot be written as JSON: .*set"):
        Grammar.json_schema({"enum": {1, 2}})
    with pytest.raises(ValueError, match="is a dictionary, or True for any JSON; got 'object'"):
        Grammar.json_schema("object")
    for make_one in (Grammar.regex, Grammar.lark):
        with pytest.raises(ValueError, match="is a string that is not empty; got ''"):
            make_one("")


def test_targets_that_cannot_have_a_grammar():
    target = model(byte_level(400), eos=0)
    with pytest.raises(ValueError, match="ends by EOS, so ignore_eos=True is not for it"):
        specdec.generate(target, [5, 6], grammar={}, ignore_eos=True)
    few = {"max_new_tokens": 8, "grammar": {}}
    with pytest.raises(ValueError, match="has no tokenizer"):
        specdec.generate(shared("llama_gqa"), [5, 6], **few)
    with pytest.raises(ValueError, match=r"ends by EOS, and .* has none; set eos_token_id"):
        specdec.generate(model(byte_level(400)), [5, 6], **few)


def test_without_llguidance_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    target = model(byte_level(410), eos=0)
    with pytest.raises(ValueError, match=r"pip install 'specdec\[grammar\]'"):
        specdec.generate(target, [5, 6], grammar={})
