"""Compiled passes give what the model's own passes give, and nothing is compiled twice.

Most tests replace the compiler by the function itself: what is tested then is the fixed shape, with
its padding, buckets and sizes of memory. The last section compiles.
"""

import threading
import warnings

import pytest
import torch

import specdec
from drafters.small_model import SmallModel
from specdec import verdicts
from specdec.interfaces import KV
from specdec.models import capture, compiled, load
from specdec.models.compiled import NODES, OFTEN
from specdec.models.language_model import TransformersLM
from specdec.models.paged_session import PagedSession
from specdec.models.session import TransformersSession
from specdec.tree import Structure, TokenTree
from tests import models
from tests.golden import on_models, recorded
from tests.models import ARCHITECTURES
from tests.test_language_model import KEPT, LENGTHS, PARENTS, padded, tokens_of, worst


@pytest.fixture
def fixed(monkeypatch):
    """Passes of fixed shape, without a compiler."""
    monkeypatch.setattr(compiled, "built", lambda function, options: function)
    monkeypatch.setattr(compiled, "traced", lambda function, arguments: function)
    monkeypatch.setattr(verdicts, "_made", {})


@pytest.fixture
def always(fixed, monkeypatch):
    """Every model is compiled, unless it is opened otherwise."""

    def opened(self, rows, slots, compile=None):
        return TransformersSession(self, rows, slots, True if compile is None else compile)

    monkeypatch.setattr(TransformersLM, "open", opened)
    monkeypatch.setattr(TransformersLM, "compile", True, raising=False)


# ------------------------------------------------------------------------------------ fixed shapes


KVS = [KV(), KV("paged", page=5), KV("paged", page=3, pages=40)]


@pytest.mark.parametrize("kv", KVS, ids=["contiguous", "paged", "bounded"])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
@torch.inference_mode()
def test_every_architecture_scores_trees_in_fixed_shapes(name, kv, fixed):
    """Two rounds over a ragged batch; the second level of the first tree is scored on its own."""
    model = models.build(name)
    rows, counted = models.prompts(*LENGTHS), []
    with TransformersLM(model).open(3, 20, compile="require", kv=kv) as session:
        session.read(padded(rows), LENGTHS)
        for seed, parents in ((1, PARENTS), (2, PARENTS.flip(0))):
            tree = TokenTree(tokens_of(seed, 3, 7), parents)
            assert worst(model, tree, session.score(tree).logits, rows) < 1e-4
            counted.append(len(session.compiled))
            path, counts = KEPT
            if seed == 2:
                break
            session.keep(path, counts)
            session._memory.check_integrity()
            rows = [
                row + tree.tokens[i, [0, *path[i, : counts[i]].tolist()]].tolist()
                for i, row in enumerate(rows)
            ]
    assert counted == [1, 1]
    assert session.compiled[0][1:4] == (8, 3, 256)


@pytest.mark.parametrize("model", ["llama_gqa", "gemma3", "qwen3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_golden_record(model, temperature, always):
    """Every drafter, float64: tokens, trees and paths."""
    entries = [
        (case, expected)
        for case, expected in recorded("models")
        if case["model"] == model and case["temperature"] == temperature
    ]
    assert entries
    for case, expected in entries:
        assert on_models(case) == expected, case


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_golden_record_over_pages(temperature, fixed, monkeypatch):
    """Every drafter, float64; but for `sparse_self`, which does not copy from pages."""

    def opened(self, rows, slots, compile=None, kv=None):
        return PagedSession(self, rows, slots, True if compile is None else compile, kv or self.kv)

    monkeypatch.setattr(TransformersLM, "open", opened)
    monkeypatch.setattr(TransformersLM, "compile", True, raising=False)
    monkeypatch.setattr(TransformersLM, "kv", KV("paged", page=4))
    wanted = {"model": "llama_gqa", "temperature": temperature}
    for case, expected in recorded("models"):
        if wanted.items() <= case.items() and case["drafter"]["name"] != "sparse_self":
            assert on_models(case) == expected, case


@torch.inference_mode()
def test_padding_over_pages_goes_to_the_scratch_page(fixed):
    """Rows that are not live, and nodes that a pass is padded by."""
    lm = TransformersLM(models.build("llama_gqa", torch.float64))
    with lm.open(2, 20, compile="require", kv=KV("paged", page=4, pages=6)) as session:
        assert session.adopt(0, []) == 0
        session.read(torch.tensor(models.prompts(9)), [9], rows=[0])
        memory = session._memory
        before = [block.clone() for block in memory.blocks]
        session.score(TokenTree.chain(tokens_of(3, 2, 3), None))
        touched = set()
        for block, old in zip(memory.blocks, before, strict=True):
            changed = (block != old).any(-1).any(0).any(0)  # (pages, page)
            touched |= {tuple(place) for place in changed.nonzero().tolist()}
        own = {(memory.pages[0][slot // 4], slot % 4) for slot in (9, 10, 11)}
        assert {place for place in touched if place[0] != 0} == own
        session.check_integrity()


@torch.inference_mode()
def test_a_pool_that_grows_and_memory_in_8_bits_have_passes_of_their_own(fixed):
    model = models.build("llama_gqa", torch.float64)
    lm, tree = TransformersLM(model), TokenTree.chain(tokens_of(3, 1, 3), None)
    for kv in (KV(), KV(dtype="int8"), KV("paged", page=4), KV("paged", page=4, pages=9)):
        with lm.open(1, 20, compile="require", kv=kv) as session:
            session.read(torch.tensor(models.prompts(9)), [9])
            session.score(tree)
            assert len(session.compiled) == 1, kv
        with lm.open(1, 20, compile="require", kv=kv) as session:
            session.read(torch.tensor(models.prompts(9)), [9])
            session.score(tree)
            assert not session.compiled, kv


def test_an_engine_over_pages_gives_the_same_tokens(fixed):
    """A bounded pool: requests are set aside and come back."""
    model = models.build("llama_gqa", torch.float64)
    found = []
    for compile in (False, True):
        lm = TransformersLM(model, compile=compile, kv=KV("paged", page=4, pages=12))
        with specdec.Engine(lm, drafter="ngram", seats=3, record=True) as engine:
            handles = [
                engine.submit(text, max_new_tokens=12, temperature=1.0, ignore_eos=True)
                for text in models.prompts(9, 5, 14, 7)
            ]
            for _ in engine:
                engine.memory.check_integrity()
            found.append([handle.result().tokens for handle in handles])
            assert bool(engine.report.compiled) is compile
    assert found[0] == found[1]


@torch.inference_mode()
def test_nobody_reads_what_padding_writes(fixed):
    """The scratch slot, and every slot past the text, hold large numbers."""
    model = models.build("llama_gqa", torch.float64)
    lm = TransformersLM(model)
    tree = TokenTree.chain(tokens_of(3, 1, 3), None)
    text = models.prompts(9)
    with lm.open(1, 20, compile="require") as clean, lm.open(1, 20, compile="require") as dirty:
        for session in (clean, dirty):
            session.read(torch.tensor(text), [9])
        for block in dirty._memory.blocks:
            block[:, :, :, 9:] = 1e3
        assert torch.equal(clean.score(tree).logits, dirty.score(tree).logits)
        for block in dirty._memory.blocks:
            assert (block[:, :, :, 12:-1] == 1e3).all()  # untouched: padding went to the last slot
            assert (block[:, :, :, 9:12] != 1e3).any()


@torch.inference_mode()
def test_memory_moves_on_to_the_next_power_of_two(fixed):
    model = models.long_llama(1024).double()
    with TransformersLM(model).open(1, 252, compile="require") as session:
        assert session._memory.slots == 256
        text = models.prompts(251)
        session.read(torch.tensor(text), [251])
        for number in range(3):  # 251 + 4 tokens fit beside the scratch slot, 252 + 4 do not
            tree = TokenTree.chain(tokens_of(number, 1, 4), None)
            logits = session.score(tree).logits
            assert worst(model, tree, logits, text) < 1e-9
            session.keep(torch.tensor([[-1]]).numpy(), [0])
            text = [[*text[0], int(tree.tokens[0, 0])]]
            assert session._memory.slots == (256 if number == 0 else 512)
        assert [one.slots for one in session.compiled] == [256, 512]


def test_drafters_are_told_how_long_texts_get(fixed):
    """So that the draft model's passes are compiled for one size of memory."""
    target = specdec.load(models.long_llama(1024), compile=True)
    draft = specdec.load(models.long_llama(1024))
    out = specdec.generate(
        target,
        models.prompts(9, 30),
        drafter=SmallModel(draft, depth=3),
        max_new_tokens=300,
        ignore_eos=True,
    )
    assert {one.slots for one in out.report.compiled if one.model != "verdict"} == {512}
    assert {one.nodes for one in out.report.compiled} <= {1, 2, 4}


def test_a_larger_pass_serves_a_shape_that_is_rarely_needed(fixed):
    lm = TransformersLM(models.build("llama_gqa"), compile=True)
    with torch.inference_mode(), lm.open(1, 40) as session:
        session.read(torch.tensor(models.prompts(9)), [9])
        five, two = (TokenTree.chain(tokens_of(1, 1, n), None) for n in (5, 2))
        session.score(five)
        for _ in range(OFTEN - 1):
            session.score(two)
        assert [one.nodes for one in session.compiled] == [8]
        session.score(two)
        assert [one.nodes for one in session.compiled] == [8, 2]


def test_wider_trees_run_as_they_are(fixed):
    lm = TransformersLM(models.long_llama(256), compile=True)
    nodes = NODES[-1] + 1
    tree = TokenTree(
        tokens_of(1, 1, nodes), Structure.shared([-1, *[0] * (nodes - 1)], 1, lm.device)
    )
    with torch.inference_mode(), lm.open(1, 200) as one, lm.open(1, 200, compile=False) as other:
        for session in (one, other):
            session.read(torch.tensor(models.prompts(9)), [9])
        with pytest.warns(UserWarning, match=f"a tree of {nodes} nodes runs uncompiled"):
            logits = one.score(tree).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # said once
            one.score(tree)
        assert torch.equal(logits, other.score(tree).logits)
        assert not one.compiled


# -------------------------------------------------------------------------------- who is compiled


def names_compiled(target, drafter) -> set[str]:
    out = specdec.generate(
        target, models.prompts(9), drafter=drafter, max_new_tokens=6, ignore_eos=True
    )
    return {one.model for one in out.report.compiled} - {"verdict"}


def test_draft_models_follow_their_target(fixed):
    model = models.build("llama_gqa")

    def pair(of_target, of_draft):
        target = TransformersLM(model, name="target", compile=of_target)
        return target, SmallModel(TransformersLM(model, name="draft", compile=of_draft))

    assert names_compiled(*pair(True, None)) == {"target", "draft"}
    assert names_compiled(*pair(True, False)) == {"target"}
    assert names_compiled(*pair(None, True)) == {"draft"}
    assert names_compiled(*pair(None, None)) == set()
    assert names_compiled(*pair(False, None)) == set()


@pytest.mark.parametrize("kind", ["eagle", "eagle3", "dflash", "dspark"])
def test_heads_follow_their_target(kind, fixed):
    target = TransformersLM(models.build("llama_gqa"), name="target", compile=True)
    heads = specdec.plugins.find("drafter", kind).make(models.head(kind, target), depth=3)
    assert names_compiled(target, heads) == {"target", kind}
    assert names_compiled(target, heads) == set()  # a second run finds what the first compiled


def test_medusas_heads_follow_their_target(fixed):
    model = models.build("llama_gqa", torch.float64)
    target = TransformersLM(model, name="target", compile=True)
    heads = models.head("medusa", target)
    make = specdec.plugins.find("drafter", "medusa").make
    assert names_compiled(target, make(heads)) == {"target", "medusa"}
    assert names_compiled(target, make(heads)) == set()
    options = {"max_new_tokens": 8, "ignore_eos": True, "temperature": 1.0}
    one, other = (
        specdec.generate(each, models.prompts(9, 5), drafter=make(heads), **options)
        for each in (target, TransformersLM(model))
    )
    assert [row.tolist() for row in one.tokens] == [row.tolist() for row in other.tokens]


def test_settings():
    for wrong, hint in (("yes", ""), ("requires", "; did you mean 'require'?"), (1, "")):
        with pytest.raises(ValueError, match=f"compile must be True, False, .*{wrong!r}{hint}"):
            specdec.load("demo", compile=wrong)
    assert load.load("demo", compile="require").compile == "require"


# ------------------------------------------------------------------------------ when it fails


@pytest.fixture
def broken(monkeypatch):
    def built(function, options):
        raise RuntimeError("no compiler here\nand a long story")

    monkeypatch.setattr(compiled, "built", built)
    monkeypatch.setattr(verdicts, "_made", {})


def test_what_cannot_be_compiled_runs_as_it_is(broken):
    model = models.build("llama_gqa", torch.float64)
    prompts, options = models.prompts(9, 5), {"drafter": "ngram", "max_new_tokens": 8}
    expected = specdec.generate(model, prompts, **options)
    with pytest.warns(UserWarning, match=r"cannot be compiled \(RuntimeError: no compiler here\)"):
        out = specdec.generate(TransformersLM(model, compile=True), prompts, **options)
    assert [row.tolist() for row in out.tokens] == [row.tolist() for row in expected.tokens]
    assert out.report.compiled == []


def test_required_compiling_is_an_error_where_it_fails(broken):
    target = specdec.load(models.build("llama_gqa"), compile="require")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no compiler here\), and compile='require' asks"):
            specdec.generate(target, [[1, 2, 3]], drafter="ngram", max_new_tokens=4)


def test_an_error_of_a_compiled_pass_is_not_taken_for_a_compilers(monkeypatch):
    calls = []

    def built(function, options):
        def call(*arguments):
            calls.append(1)
            if len(calls) > 2:
                raise RuntimeError("out of memory")
            return function(*arguments)

        return call

    monkeypatch.setattr(compiled, "built", built)
    target = specdec.load(models.build("llama_gqa"), compile=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        specdec.generate(target, [[1, 2, 3]], drafter="none", max_new_tokens=9, ignore_eos=True)


# ------------------------------------------------------------------------------- captured as graphs


@pytest.fixture
def graphs(fixed, monkeypatch):
    """Captured passes, with a plain call in the place of a replayed one: it reads the buffers, and
    its results lie where the first ones were, as on a device."""
    made = []

    def record(function, arguments):
        kept = function(*arguments)

        def replay():
            flat, again = (
                torch.utils._pytree.tree_leaves(one) for one in (kept, function(*arguments))
            )
            for place, values in zip(flat, again, strict=True):
                place.copy_(values)

        made.append(arguments)
        return replay, kept

    monkeypatch.setattr(capture, "record", record)
    monkeypatch.setattr(compiled, "CAPTURES", {"cpu"})
    return made


def test_captured_passes_give_the_same_tokens(graphs, always):
    """Buffers are filled again for each pass, results are copied, and a memory that has grown has
    graphs of its own."""
    for case, expected in recorded("models"):
        if case["drafter"]["name"] in ("small_model", "eagle") and case["temperature"] == 1.0:
            assert on_models(case) == expected, case
    assert graphs


@torch.inference_mode()
def test_results_of_a_captured_pass_stay(graphs):
    lm = TransformersLM(models.build("llama_gqa", torch.float64), compile=True)
    with lm.open(1, 40) as session:
        session.read(torch.tensor(models.prompts(9)), [9])
        first, second = (TokenTree.chain(tokens_of(n, 1, 4), None) for n in (1, 2))
        logits = session.score(first).logits
        copy = logits.clone()
        session.score(second)
        assert torch.equal(logits, copy)


@torch.inference_mode()
def test_graphs_go_with_the_memory_that_they_write_to(graphs):
    model = models.long_llama(1024).double()
    lm = TransformersLM(model, compile=True)
    with lm.open(1, 252) as session:
        text = models.prompts(251)
        session.read(torch.tensor(text), [251])
        for number in range(2):
            tree = TokenTree.chain(tokens_of(number, 1, 4), None)
            assert worst(model, tree, session.score(tree).logits, text) < 1e-9
            session.keep(torch.tensor([[-1]]).numpy(), [0])
            text = [[*text[0], int(tree.tokens[0, 0])]]
        assert len(session._memory.graphs) == 1
    assert not session._memory.graphs


# ---------------------------------------------------------------------------- really compiled


@pytest.fixture(scope="module")
def pair():
    model = models.build("llama_gqa", torch.float64)
    return (
        specdec.load(model, compile="require"),
        specdec.load(model),
        specdec.load(models.similar(model)),
    )


def counters() -> tuple[int, int]:
    counted = torch._dynamo.utils.counters
    return counted["stats"]["unique_graphs"], sum(counted["recompiles"].values())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_compiled_tokens_are_the_same_in_float64(pair, temperature, capsys):
    """And a second decode compiles nothing."""
    target, plain, draft = pair
    drafter = SmallModel(draft, depth=3)
    options = {"drafter": drafter, "max_new_tokens": 40, "temperature": temperature, "seats": 2}
    prompts = models.prompts(9, 14, 5)
    expected = specdec.generate(plain, prompts, **options)
    first = specdec.generate(target, prompts, **options)
    before = counters()
    second = specdec.generate(target, prompts, **options)
    assert counters() == before
    assert second.report.compiled == []
    for out in (first, second):
        assert [row.tolist() for row in out.tokens] == [row.tolist() for row in expected.tokens]
    told = capsys.readouterr().err
    for one in first.report.compiled:
        assert f"compiling {one.model}: nodes={one.nodes} rows=2 slots={one.slots}" in told
        assert one.seconds > 0
    if temperature == 0.0:
        assert first.report.compiled
        assert first.report.compile_seconds == sum(one.seconds for one in first.report.compiled)
        assert first.report.as_dict()["compiled"][0]["rows"] == 2


def test_weights_are_packed_when_a_pass_is_compiled(monkeypatch):
    """The setting holds while the first call traces the pass; options of torch.compile come too
    late for it, since its backend reads them."""
    seen = []

    def compiler(function, **options):
        return lambda *arguments: seen.append(torch._inductor.config.freezing)

    monkeypatch.setattr(torch, "compile", compiler)
    call = compiled.built(len, {"freezing": True})
    call()
    call()
    assert seen == [True, False]


def test_compiled_tokens_over_pages_are_the_same_in_float64(pair):
    """Draft model and target; a second decode, of other lengths, compiles nothing."""
    target, plain, draft = pair
    paged = target.with_kv(KV("paged", page=8))
    options = {"drafter": SmallModel(draft, depth=3), "temperature": 1.0, "seats": 2}
    options |= {"max_new_tokens": 30, "ignore_eos": True}
    prompts = models.prompts(9, 14, 5)
    found = specdec.generate(paged, prompts, **options)
    made = {one.model for one in found.report.compiled}
    assert made - {"verdict"} == {target.name}  # both models have one name; verdicts may be there
    before = counters()
    others = models.prompts(12, 7, 6)
    again = specdec.generate(paged, others, **options)
    assert counters() == before
    assert again.report.compiled == []
    for out, texts in ((found, prompts), (again, others)):
        expected = specdec.generate(plain, texts, **options)
        assert [row.tolist() for row in out.tokens] == [row.tolist() for row in expected.tokens]


@pytest.mark.parametrize("kind", ["dflash", "dspark"])
@pytest.mark.slow
def test_block_heads_compile(kind, pair):
    """Whole drafts, and block by block, where a stop rule looks at values."""
    target, plain, _ = pair
    head, make = models.head(kind, plain), specdec.plugins.find("drafter", kind).make
    for shape in ({"draw": "wor"}, {"draw": "wor", "stop": {"threshold": 0.2}}):
        options = {"drafter": make(head, **shape), "max_new_tokens": 24, "temperature": 1.0}
        prompts = models.prompts(9, 5)
        out = specdec.generate(target, prompts, **options)
        assert kind in {one.model for one in out.report.compiled}
        again, expected = (specdec.generate(each, prompts, **options) for each in (target, plain))
        assert again.report.compiled == []
        for one in (out, again):
            assert [row.tolist() for row in one.tokens] == [row.tolist() for row in expected.tokens]


def test_threads_share_what_is_compiled(pair):
    target, plain, draft = pair
    drafter, found = SmallModel(draft, depth=2), {}
    prompts = models.prompts(9, 14)

    def decode(number):
        found[number] = specdec.generate(
            target, prompts, drafter=drafter, max_new_tokens=10, temperature=1.0, seed=number
        )

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, out in found.items():
        alone = specdec.generate(
            plain, prompts, drafter=drafter, max_new_tokens=10, temperature=1.0, seed=number
        )
        assert [row.tolist() for row in out.tokens] == [row.tolist() for row in alone.tokens]
    made = [one[:4] for out in found.values() for one in out.report.compiled]
    assert len(made) == len(set(made))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "gpt2", "qwen3_moe", "deepseek_v3"])
@torch.inference_mode()
def test_other_families_compile(name):
    """In float32: Gemma's norms compute in it, and PyTorch groups experts in nothing wider."""
    model = models.build(name)
    rows = models.prompts(*LENGTHS)
    with TransformersLM(model).open(3, 20, compile="require") as session:
        session.read(padded(rows), LENGTHS)
        tree = TokenTree(tokens_of(1, 3, 7), PARENTS)
        assert worst(model, tree, session.score(tree).logits, rows) < 1e-4


def test_a_model_that_was_cast_meanwhile(fixed):
    """What was compiled for another dtype is not used."""
    model = models.build("llama_gqa")
    target = TransformersLM(model, compile=True)
    options = {"drafter": "none", "max_new_tokens": 6, "ignore_eos": True}
    assert specdec.generate(target, [[1, 2, 3]], **options).report.compiled
    model.double()
    out = specdec.generate(target, [[1, 2, 3]], **options)
    assert out.report.compiled
    assert (
        out.tokens[0].tolist() == specdec.generate(model, [[1, 2, 3]], **options).tokens[0].tolist()
    )
