"""The engine: requests that come, wait, share, lose their memory, fail or are cancelled are what
they are alone."""

import asyncio
import copy
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import specdec
from experiments.certificates import suite
from specdec.budget import beside_of, size
from specdec.handles import Handle
from specdec.models.paged import PagedMemory
from specdec.models.session import TransformersSession
from tests.exact import TOY, title
from tests.models import prompts, shared, similar
from tests.paged_table import PagedTable, Session
from tests.test_sessions import ALONE, DRAFTERS
from tests.tokenizers_of_kinds import byte_level, model

ROWS = prompts(9, 1, 14, 7, 4, 20)
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0, "seed": 3, "max_new_tokens": 12},
    {"max_new_tokens": 7},
    {"temperature": 0.6, "top_k": 20, "seed": 1, "max_new_tokens": 9},
    {"temperature": 1.0, "seed": 4, "max_new_tokens": 5},
    {"max_new_tokens": 10, "repetition_penalty": 1.3},
    {"temperature": 1.0, "seed": 3, "max_new_tokens": 8},
]


@pytest.fixture(scope="module")
def target() -> Any:
    return specdec.load(shared("llama_gqa", torch.float64))


@pytest.fixture(scope="module")
def draft() -> Any:
    return specdec.load(similar(shared("llama_gqa", torch.float64)))


def alone(target: Any, drafter: Any, number: int, row: Any, **options: Any) -> list[int]:
    found = specdec.generate(target, [row], drafter=drafter, request_ids=[number], **options)
    return found.tokens[0].tolist()


def session_of(engine: specdec.Engine) -> Any:
    return engine._seats.target


# ------------------------------------------------------------------------------------- in company


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("drafter", ALONE, ids=title)
def test_requests_of_unlike_sampling_are_what_they_are_alone(
    drafter, chunk, target, draft, monkeypatch
):
    """One pass of the target per round, whatever is asked for."""
    made = suite.make(drafter, target, draft)
    expected = [
        alone(target, made, number, row, **options)
        for number, (row, options) in enumerate(zip(ROWS, OPTIONS, strict=True))
    ]
    passes: list[Any] = []
    score = TransformersSession.score
    with specdec.Engine(target, drafter=made, seats=4, prefill_chunk=chunk) as engine:
        memory = session_of(engine)
        monkeypatch.setattr(
            TransformersSession,
            "score",
            lambda one, *more, **named: passes.append(one) or score(one, *more, **named),
        )
        handles, rounds = [], 0
        for row, options in zip(ROWS, OPTIONS, strict=True):
            handles.append(engine.submit(row, **options))
            rounds += bool(engine.step())
        while engine.busy:
            rounds += bool(engine.step())
        assert [handle.result().tokens for handle in handles] == expected
        assert sum(one is memory for one in passes) == rounds


def test_an_engine_with_everything_submitted_at_once_is_generate(target, draft):
    drafter = {"name": "small_model", "model": draft, "depth": 3}
    out = specdec.generate(target, ROWS, drafter=drafter, temperature=1.0, max_new_tokens=8)
    with specdec.Engine(target, drafter=drafter, seats=6, record=True) as engine:
        handles = [engine.submit(row, temperature=1.0, max_new_tokens=8) for row in ROWS]
        events = list(engine)
        report = engine.report
    assert [one.result().tokens for one in handles] == [row.tolist() for row in out.tokens]
    assert report.target_calls == out.report.target_calls
    assert report.tau_per_row == out.report.tau_per_row
    assert (report.drafter, report.verifier) == ("small_model", "block")
    stream = specdec.stream(target, ROWS, drafter=drafter, temperature=1.0, max_new_tokens=8)
    assert events == list(stream)


def test_a_chance_of_its_own_and_samples(target):
    chance = specdec.Coupled(5)
    expected = alone(target, "none", 7, ROWS[0], temperature=1.0, max_new_tokens=6, chance=chance)
    copies = specdec.generate(
        target, [ROWS[0]] * 3, drafter="none", temperature=1.0, max_new_tokens=6, seed=2
    )
    with specdec.Engine(target, drafter="none", seats=2) as engine:
        one = engine.submit(ROWS[0], temperature=1.0, max_new_tokens=6, chance=chance, request_id=7)
        three = engine.submit(
            ROWS[0], temperature=1.0, max_new_tokens=6, seed=2, request_id=0, samples=3
        )
        assert one.result().tokens == expected
        assert [each.result().tokens for each in three] == [row.tolist() for row in copies.tokens]


# ------------------------------------------------------------------------------- coming and going


def test_priority_then_arrival(target):
    with specdec.Engine(target, drafter="none", seats=1) as engine:
        first, second = (engine.submit([5], max_new_tokens=2) for _ in range(2))
        urgent = engine.submit([5], max_new_tokens=2, priority=1)
        order = list(dict.fromkeys(event.row for event in engine))
    assert order == [urgent.number, first.number, second.number]


def test_cancelling(target):
    with specdec.Engine(target, drafter="none", seats=1) as engine:
        live, waiting, last = (engine.submit([n], max_new_tokens=4) for n in (5, 6, 7))
        engine.step()
        assert (engine.seats_in_use, engine.waiting) == (1, 2)
        assert live.cancel()
        assert waiting.cancel()
        assert not live.cancel()  # it is over already
        assert (engine.seats_in_use, engine.waiting) == (0, 1)
        assert last.result().finish_reason == "length"
        assert not last.cancel()
        assert last.result().finish_reason == "length"
        assert not engine.busy
    assert live.result().finish_reason == waiting.result().finish_reason == "cancelled"
    assert (len(live.result().tokens), waiting.result().tokens) == (1, [])
    assert live.events[-1].finish_reason == "cancelled"
    assert waiting.times.admitted is None
    times = last.times
    assert times.submitted < times.admitted < times.first_token < times.finished


def test_closing_cancels_what_is_not_over(target):
    with specdec.Engine(target, drafter="none", seats=1) as engine:
        handles = [engine.submit([5], max_new_tokens=4) for _ in range(2)]
        engine.step()
        memory = session_of(engine)
    assert [handle.finish_reason for handle in handles] == ["cancelled"] * 2
    assert memory.nbytes == 0
    engine.close()
    assert engine.step() == []
    with pytest.raises(ValueError, match="closed"):
        engine.submit([5])


def test_iterating_sees_rounds_that_others_run(target):
    with specdec.Engine(target, drafter="none", seats=2) as engine:
        first, second = (engine.submit([n], max_new_tokens=4) for n in (5, 6))
        found: dict[int, list[int]] = {0: [], 1: []}
        for event in engine:
            found[event.row] += event.tokens
            first.result()
        assert found == {0: first.result().tokens, 1: second.result().tokens}
        assert not engine._listeners
        assert not engine._handles


def test_tasks_decode_side_by_side(target):
    async def read(handle: Handle, order: list[int]) -> list[int]:
        tokens = []
        async for event in handle:
            tokens += event.tokens
            order.append(handle.number)
        return tokens

    async def all_of(engine: specdec.Engine) -> Any:
        order: list[int] = []
        handles = [engine.submit([n], max_new_tokens=5) for n in (5, 6, 7)]
        return await asyncio.gather(*(read(one, order) for one in handles)), order, handles

    with specdec.Engine(target, drafter="none", seats=3) as engine:
        texts, order, handles = asyncio.run(all_of(engine))
    assert texts == [handle.result().tokens for handle in handles]
    assert set(order[:6]) == {0, 1, 2}  # nobody waits for others to end


def test_long_prompts_are_read_beside_rows_that_decode(target):
    with specdec.Engine(target, drafter="none", seats=2, prefill_chunk=4) as engine:
        short, long = (
            engine.submit([5], max_new_tokens=20),
            engine.submit(ROWS[5], max_new_tokens=9),
        )
        reads = []
        read = session_of(engine).read
        session_of(engine).read = lambda tokens, counts, *more, **named: (
            reads.append(counts) or read(tokens, counts, *more, **named)
        )
        rows = [[event.row for event in engine.step()] for _ in range(6)]
        assert rows == [[0]] * 4 + [[0, 1]] * 2
        assert [sum(counts) for counts in reads] == [4, 4, 4, 4, 3]
        assert (short.cancel(), long.cancel()) == (True, True)


# -------------------------------------------------------------------------------------- failures


class Fails:
    """A processor that raises once a text has so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] >= self.length:
            raise RuntimeError("out of words")
        return scores


def test_a_processor_that_raises_ends_its_own_request(target, draft):
    """Requests with the same processor and the same sampling go on."""
    drafter = {"name": "small_model", "model": draft, "depth": 3}
    processor = Fails(19)
    wanted = {"temperature": 1.0, "max_new_tokens": 8, "seed": 3}
    expected = [
        alone(target, drafter, number, ROWS[number], **wanted, logits_processors=[processor])
        for number in (0, 1)
    ]
    with specdec.Engine(target, drafter=drafter, seats=4) as engine:
        fine = [engine.submit(row, **wanted, logits_processors=[processor]) for row in ROWS[:2]]
        bad = engine.submit(ROWS[2], **wanted, logits_processors=[processor])
        other = engine.submit(ROWS[3], max_new_tokens=8)
        events = list(engine)
        assert bad.result().finish_reason == "failed"
        assert isinstance(bad.result().error, RuntimeError)
        assert "out of words" in str(bad.result().error)
        assert len(ROWS[2]) + len(bad.result().tokens) < 19
        assert [event.finish_reason for event in events if event.row == bad.number][-1] == "failed"
        assert [handle.result().tokens for handle in fine] == expected
        assert other.result().tokens == alone(target, drafter, 3, ROWS[3], max_new_tokens=8)
    with pytest.raises(RuntimeError, match="out of words"):
        specdec.generate(target, ROWS[2], drafter=drafter, **wanted, logits_processors=[processor])


def test_a_processor_that_leaves_no_token_ends_its_own_request(target):
    def nothing(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf)

    with specdec.Engine(target, drafter="none", seats=2) as engine:
        bad = engine.submit([5], max_new_tokens=3, temperature=1.0, logits_processors=[nothing])
        fine = engine.submit([5], max_new_tokens=3)
        assert "leave no token possible" in str(bad.result().error)
        assert fine.result().finish_reason == "length"


def test_a_drafter_that_breaks_its_contract_closes_the_engine(target):
    class Broken(specdec.Drafter):
        def propose(self, state: Any, chance: Any) -> Any:
            return None

    with specdec.Engine(target, drafter=Broken(), seats=2) as engine:
        handle = engine.submit([5], max_new_tokens=3)
        with pytest.raises(ValueError, match=r"expected a specdec.TokenTree"):
            handle.result()
        assert handle.finish_reason == "cancelled"
        with pytest.raises(ValueError, match="closed"):
            engine.submit([5])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 60}, "over the target's context of 64"),
        ({"samples": 0}, "samples must be an integer >= 1"),
        ({"priority": "high"}, "priority must be an integer"),
        ({"request_id": 1.5}, "request_id must be an integer"),
        ({"seed": 1, "chance": specdec.Keyed(2)}, "both given"),
        ({"stop": "x"}, "tokenizer"),
        ({"temperature": -1}, "temperature must be"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_when_submitted(options, says, target):
    with specdec.Engine(target, drafter="none", seats=2) as engine:
        with pytest.raises(ValueError, match=says):
            engine.submit(ROWS[0], **{"max_new_tokens": 3, **options})
        assert not engine.busy
        assert engine.submit([5], max_new_tokens=1).result().finish_reason == "length"


def test_what_an_engine_refuses(target):
    for options, says in [
        ({"seats": 0}, "seats must be an integer >= 1"),
        ({"prefill_chunk": 0}, "prefill_chunk"),
        ({"memory": "two gigabytes"}, "memory is a number of bytes"),
        ({"memory": 0}, "memory must be an integer >= 1"),
        ({"kv": "pages"}, "kv must be 'paged' or 'contiguous'"),
        ({"seat": 3}, "did you mean 'seats'"),
    ]:
        with pytest.raises((ValueError, TypeError), match=says):
            specdec.Engine(target, **options)
    plain = TOY.target
    with pytest.raises(ValueError, match="neither bounded nor paged"):
        specdec.Engine(plain, memory=100)
    with pytest.raises(ValueError, match="too small for one page of 16 tokens"):
        specdec.Engine(PagedTable(TOY.p), memory=15)
    with pytest.raises(ValueError, match="too small for one token in each of 16 seats"):
        specdec.Engine(PagedTable(TOY.p), memory=15, kv="contiguous")
    with specdec.Engine(PagedTable(TOY.p), memory=64, drafter="none") as engine:
        engine.submit([0], max_new_tokens=64)
        with pytest.raises(ValueError, match=r"takes 5 pages of 16 tokens, this .* memory has 4"):
            engine.submit([0], max_new_tokens=65)
    with specdec.Engine(
        PagedTable(TOY.p), memory=64, drafter="none", kv="contiguous", seats=2
    ) as engine:
        engine.submit([0], max_new_tokens=32)
        with pytest.raises(ValueError, match=r"takes 33 slots, this .* memory has 32 in each"):
            engine.submit([0], max_new_tokens=33)
        with pytest.raises(ValueError, match="keeps no rounds"):
            _ = engine.report
        with pytest.raises(ValueError, match="one prompt"):
            engine.submit([[0], [1]])
    assert [size(text) for text in ("2GiB", "1.5 MiB", "7", "1KB")] == [1 << 31, 3 << 19, 7, 1000]


# ---------------------------------------------------------------------------------------- memory

# Drafts of these depend on earlier rounds of a text, which are not repeated when it is set aside.
REMEMBERS = ("recycle", "priced")
MEMORYLESS = [one for one in DRAFTERS if one["name"] not in REMEMBERS and "stop" not in one]


def pages_for(drafter: Any, target: Any, tokens: int) -> int:
    """Of 4 tokens: for a text with a tree behind it, and a few more."""
    begun = copy.copy(drafter)
    begun.begin(target, 1, specdec.Sampling(1.0))
    for memory in begun.opened:
        memory.close()
    return -(-(tokens + begun.max_nodes) // 4) + 4


def check_pools(engine: specdec.Engine) -> None:
    """Of drafters: the memories of all groups have one between them."""
    opened = [getattr(one, "memory", one) for one in engine._run.groups.opened]
    memories = [one for one in opened if isinstance(one, PagedMemory)]
    for pool in {one.pool for one in memories}:
        held = [pages for one in memories if one.pool is pool for pages in one.pages]
        pool.check_integrity(held)


@pytest.mark.parametrize("drafter", MEMORYLESS, ids=title)
def test_requests_that_are_set_aside_go_on_as_if_nothing_had_happened(drafter):
    table = PagedTable(TOY.p, prompt=len(TOY.prompt))
    made = suite.make(drafter, table, TOY.draft)
    wanted = {"temperature": 1.0, "max_new_tokens": 24, "seed": 3}
    texts = [[0, 1, 2, 0, 1][: 2 + number % 4] for number in range(6)]
    expected = [alone(table, made, n, text, **wanted) for n, text in enumerate(texts)]
    beside = beside_of(made, table.with_kv(specdec.KV("paged", 4)), 4)
    memory = 4 * pages_for(made, table, 27) * (1 + beside)
    with specdec.Engine(table, drafter=made, seats=4, memory=memory, page=4) as engine:
        handles = [engine.submit(text, **wanted) for text in texts]
        while engine.busy:
            engine.step()
            session_of(engine).check_integrity()
        assert [handle.result().tokens for handle in handles] == expected
        assert sum(handle.result().set_aside for handle in handles) > 0
        assert handles[0].result().set_aside == 0  # the oldest
        assert engine.pages_in_use == 0


def test_samples_share_their_prompt():
    table, prompt = PagedTable(TOY.p, prompt=1), [0, 1, 2] * 14
    with specdec.Engine(
        table, drafter="none", seats=8, memory=4 * 40, page=4, prefill_chunk=None
    ) as engine:
        handles = engine.submit(prompt, samples=8, temperature=1.0, max_new_tokens=8)
        engine.step()
        assert engine.seats_in_use == 8
        assert session_of(engine).reads == [41, 7]
        list(engine)
        assert session_of(engine).most <= 10 + 8 * 3
        copies = specdec.generate(
            table, [prompt] * 8, drafter="none", temperature=1.0, max_new_tokens=8
        )
        assert [one.result().tokens for one in handles] == [row.tolist() for row in copies.tokens]
        assert not sum(handle.set_aside for handle in handles)


# ---------------------------------------------------------------------------- random schedules

ENGINES = st.fixed_dictionaries(
    {
        "seats": st.integers(1, 4),
        "prefill_chunk": st.sampled_from([None, 1, 3, 8]),
        "page": st.integers(1, 3),
        "memory": st.one_of(st.none(), st.integers(36, 50)),
        "drafter": st.sampled_from(["none", "ngram"]),
    }
)
SUBMISSIONS = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 2), min_size=1, max_size=9),
        "max_new_tokens": st.integers(1, 16),
        "temperature": st.sampled_from([0.0, 1.0]),
        "seed": st.integers(0, 2),
        "priority": st.integers(0, 2),
    }
)
ACTIONS = st.one_of(
    SUBMISSIONS, SUBMISSIONS, st.integers(0, 9), st.just("step"), st.just("samples")
)


@settings(max_examples=40, deadline=None)
@given(ENGINES, st.lists(ACTIONS, min_size=8, max_size=25))
def test_any_schedule_gives_what_each_request_is_alone(shape, actions):
    """A number cancels the request of that number."""
    table = PagedTable(TOY.p, prompt=1)
    asked: list[tuple[Handle, dict[str, Any]]] = []
    kv = "paged" if shape["memory"] is None else None
    with specdec.Engine(table, **shape, kv=kv) as engine:
        session = session_of(engine)
        assert isinstance(session, Session)
        for action in [*actions, *["step"] * 400]:
            if isinstance(action, dict):
                asked.append((engine.submit(**action), action))
            elif action == "samples":
                options = {"prompt": [0, 1, 2, 0, 1, 2, 1], "temperature": 1.0, "seed": 1}
                options["max_new_tokens"] = 3
                asked += [(one, options) for one in engine.submit(**options, samples=3)]
            elif action == "step":
                if not engine.busy:
                    continue
                engine.step()
            elif action < len(asked):
                handle = asked[action][0]
                over = handle.finish_reason is not None
                assert handle.cancel() != over
            session.check_integrity()
        assert not engine.busy
        assert session.in_use == 0
    for handle, options in asked:
        row = {name: value for name, value in options.items() if name not in ("prompt", "priority")}
        expected = alone(table, shape["drafter"], handle.number, options["prompt"], **row)
        tokens = handle.result().tokens
        assert tokens == expected[: len(tokens)]
        assert handle.finish_reason == "cancelled" or tokens == expected


WITH_PAGES = ("none", "ngram", "small_model", "eagle", "early_exit", "medusa")


@pytest.mark.parametrize(
    "drafter", [one for one in MEMORYLESS if one["name"] in WITH_PAGES], ids=title
)
def test_pages_that_are_shared_taken_away_and_given_back_change_no_token(drafter, target, draft):
    """The same on keys and values of a transformers model."""
    made, rows = suite.make(drafter, target, draft), [*ROWS, ROWS[0], ROWS[5]]
    wanted = [{**OPTIONS[number % 3], "max_new_tokens": 20} for number in range(len(rows))]
    expected = [
        alone(target, made, number, row, **options)
        for number, (row, options) in enumerate(zip(rows, wanted, strict=True))
    ]
    paged = target.with_kv(specdec.KV("paged", 4))
    token = target.bytes_per_token() + beside_of(made, paged, 3)
    memory = 4 * pages_for(made, target, 38) * token
    with specdec.Engine(
        target, drafter=made, seats=3, memory=memory, page=4, prefill_chunk=6
    ) as engine:
        handles = [engine.submit(row, **more) for row, more in zip(rows, wanted, strict=True)]
        while engine.busy:
            engine.step()
            engine.memory.check_integrity()
            check_pools(engine)
            held = [engine.memory, *engine._run.groups.opened]
            assert sum(one.nbytes for one in held) <= memory + 4 * token  # and the scratch pages
        assert [handle.result().tokens for handle in handles] == expected
        assert sum(handle.set_aside for handle in handles) > 0
        assert engine.pages_in_use == 0
        pools = [one.memory.pool for one in held if hasattr(one, "memory")]
        assert all(pool.free == pool.pages for pool in pools)


def test_a_draft_model_reads_a_common_prefix_once(target, draft):
    """Samples, a later request that begins alike, and one of another sampling, which is another
    group: its draft model's memory is in the same pages. No token changes."""
    drafter = {"name": "small_model", "model": draft, "depth": 3}
    system, wanted = prompts(21)[0], {"temperature": 1.0, "max_new_tokens": 9}
    rows, options = [[*system, 3], [*system, 7, 8]], [wanted, {"max_new_tokens": 6}]
    expected = [alone(target, drafter, number, system, **wanted) for number in range(3)]
    expected += [
        alone(target, drafter, 3 + number, row, **more)
        for number, (row, more) in enumerate(zip(rows, options, strict=True))
    ]
    size = 4 * 60 * (target.bytes_per_token() + draft.bytes_per_token())
    with specdec.Engine(target, drafter=drafter, seats=4, memory=size, page=4) as engine:
        handles = engine.submit(system, samples=3, **wanted)
        engine.step()
        (memory,) = engine._run.groups.opened
        assert memory.page_use.adopted == 2 * 20
        handles += [engine.submit(row, **more) for row, more in zip(rows, options, strict=True)]
        while engine.busy:
            engine.step()
            check_pools(engine)
        assert memory.page_use.adopted >= 4 * 20
        assert [handle.result().tokens for handle in handles] == expected


def test_samples_share_their_prompt_in_the_memory_of_a_draft_model_too(target, draft):
    """So that more of them decode at a time than would fit with a copy each."""
    drafter = {"name": "small_model", "model": draft, "depth": 2}
    (prompt,) = prompts(33)
    size = 4 * 32 * (target.bytes_per_token() + draft.bytes_per_token())
    with specdec.Engine(target, drafter=drafter, seats=4, memory=size, page=4) as engine:
        handles = engine.submit(prompt, samples=4, temperature=1.0, max_new_tokens=12)
        seats = []
        while engine.busy:
            engine.step()
            check_pools(engine)
            seats.append(engine.seats_in_use)
        assert max(seats) == 4
        assert not sum(handle.set_aside for handle in handles)
    expected = [
        alone(target, drafter, number, prompt, temperature=1.0, max_new_tokens=12)
        for number in range(4)
    ]
    assert [handle.result().tokens for handle in handles] == expected


@pytest.mark.parametrize("kind", ["small_model", "eagle", "dflash"])
def test_memory_is_for_drafters_too(kind, target, draft):
    """As many pages for each; requests of all samplings have them between them."""
    made = suite.make({"name": kind}, target, draft)
    own = target.bytes_per_token()
    beside = beside_of(made, target.with_kv(specdec.KV("paged", 4)), 2)
    assert 0 < beside <= own
    memory = 4 * 40 * (own + beside)
    with specdec.Engine(
        target, drafter=made, seats=2, memory=memory, page=4, record=True
    ) as engine:
        assert engine.memory.pages == 40
        first = [engine.submit(ROWS[0], temperature=t, max_new_tokens=6) for t in (0.0, 1.0)]
        engine.step()
        opened = engine._run.groups.opened
        assert len(opened) == 2
        assert engine.memory.nbytes == 4 * 41 * own
        assert sum(one.nbytes for one in opened) == 4 * 41 * beside
        list(engine)
    assert all(handle.finish_reason == "length" for handle in first)
    assert engine.report.cache_bytes == {"target": 4 * 41 * own, "drafter": 4 * 41 * beside}
    says = rf"of the target and of the drafter \({own} and {beside} bytes a token\); give more"
    with pytest.raises(ValueError, match=says):
        specdec.Engine(target, drafter=made, memory=4 * (own + beside) - 1, page=4)


def test_a_pool_that_grows_takes_everybody_at_once():
    table = PagedTable(TOY.p, prompt=1)
    with specdec.Engine(table, drafter="none", seats=6, page=4, kv="paged") as engine:
        handles = engine.submit([0, 1, 2], samples=6, max_new_tokens=3)
        engine.step()
        assert engine.seats_in_use == 6
        assert [handle.result().finish_reason for handle in handles] == ["length"] * 6


def test_each_request_ends_where_it_says():
    """EOS, a stop string, the length: each its own, in one batch."""
    target = model(byte_level(400), eos=0)
    prompt, wanted = [7, 8, 9], {"temperature": 1.0, "max_new_tokens": 30, "request_id": 0}
    whole = specdec.generate(
        target, prompt, temperature=1.0, max_new_tokens=30, ignore_eos=True, drafter="none"
    )
    text, ends = whole.texts[0], whole.tokens[0].tolist()[5]
    with specdec.Engine(target, drafter="none", seats=4) as engine:
        plain, stopped = (
            engine.submit(prompt, ignore_eos=True, stop=stop, **wanted) for stop in ((), text[4:6])
        )
        engine.step()
        assert plain.result().tokens == whole.tokens[0].tolist()
        assert stopped.result().text == text[: text.index(text[4:6])]
        assert stopped.result().finish_reason == "stop"
    target.model.generation_config.eos_token_id = [ends]
    with specdec.Engine(target, drafter="none", seats=4) as engine:
        short = engine.submit(prompt, **wanted)
        assert short.result().finish_reason == "eos"
        assert (
            short.result().tokens
            == whole.tokens[0].tolist()[: 1 + whole.tokens[0].tolist().index(ends)]
        )
