"""Weights and memory are apart: runs that share a model, or a drafter, do not notice one another;
prompts that share seats do not either; and memory is freed."""

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import specdec
from drafters.small_model import SmallModel
from experiments.certificates import suite
from specdec import Coupled, Drafter, Keyed, TokenTree
from specdec.generate import Run
from specdec.models.memory import Memory
from specdec.plugins import names
from specdec.requests import prepare
from tests.exact import title
from tests.models import prompts, shared, similar

pytestmark = pytest.mark.usefixtures("layout")
SHAPES: dict[str, list[dict[str, Any]]] = {
    "ngram": [{}, {"tree": True}],
    "small_model": [
        {"depth": 3},
        {"depth": 2, "branching": [3, 2]},
        {"depth": 3, "branching": 3, "draw": "ranked", "nodes": 7},
        {"depth": 3, "draw": "adaptive", "nodes": 6},
        {"depth": 4, "stop": {"acceptance": 0.6, "threshold": 0.02}},
    ],
    "eagle": [{"depth": 3, "nodes": 7}, {"depth": 3, "draw": "wor"}],
    "cascade": [{"threshold": 1.0}],  # by threshold=auto it decides for all rows
}
DRAFTERS = [
    {"name": name, **shape}
    for name in names("drafter")
    if name not in ("portfolio", "auto")  # they decide for all rows, auto by the clock
    for shape in SHAPES.get(name, [{}])
]
ROWS = prompts(9, 1, 14, 7, 4)
NEW = 14


@pytest.fixture(scope="module")
def target() -> Any:
    return specdec.load(shared("llama_gqa", torch.float64))


@pytest.fixture(scope="module")
def draft() -> Any:
    return specdec.load(similar(shared("llama_gqa", torch.float64)))


def options(request: int, temperature: float = 1.0) -> dict[str, Any]:
    return {"temperature": temperature, "max_new_tokens": NEW, "seed": 3, "request_ids": [request]}


def collected(events: Iterator[specdec.Event]) -> list[int]:
    return [token for event in events for token in event.tokens]


# ------------------------------------------------------------------------------------- side by side


# `priced` has one price for all rows, and goes on learning from run to run: its shapes depend on
# the batch and on earlier runs, its law does not.
ALONE = [drafter for drafter in DRAFTERS if drafter["name"] != "priced"]


@pytest.mark.parametrize("drafter", ALONE, ids=title)
def test_runs_on_one_target_with_one_drafter_object_are_what_they_are_alone(drafter, target, draft):
    made = suite.make(drafter, target, draft)
    alone = [
        specdec.generate(
            target, [row], drafter=suite.make(drafter, target, draft), **options(number)
        )
        .tokens[0]
        .tolist()
        for number, row in enumerate(ROWS)
    ]

    def stream(number: int) -> Iterator[specdec.Event]:
        return specdec.stream(target, [ROWS[number]], drafter=made, **options(number))

    # Two streams, read alternately, and a generate inside.
    first, second = stream(0), stream(2)
    texts: dict[int, list[int]] = {0: [], 2: []}
    inside: list[int] = []
    waiting = {0: first, 2: second}
    while waiting:
        for number, events in list(waiting.items()):
            event = next(events, None)
            if event is None:
                del waiting[number]
                continue
            texts[number] += event.tokens
            if not inside:
                out = specdec.generate(target, [ROWS[3]], drafter=made, **options(3))
                inside = out.tokens[0].tolist()
    assert (texts[0], texts[2], inside) == (alone[0], alone[2], alone[3])

    # Four threads.
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        torch.set_num_threads(1)
        found[number] = collected(stream(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(4)] == alone[:4]


@pytest.mark.parametrize("name", ["gemma3", "qwen3", "gpt2"])
def test_two_streams_on_other_families(name):
    target = specdec.load(shared(name, torch.float64))
    drafter = {"name": "small_model", "model": similar(shared(name, torch.float64)), "depth": 3}
    alone = [
        specdec.generate(target, [row], drafter=drafter, **options(number)).tokens[0].tolist()
        for number, row in enumerate(ROWS[:2])
    ]
    streams = [
        specdec.stream(target, [row], drafter=drafter, **options(number))
        for number, row in enumerate(ROWS[:2])
    ]
    texts: list[list[int]] = [[], []]
    while streams:
        for number, events in enumerate(list(streams)):
            event = next(events, None)
            if event is None:
                streams = [other for other in streams if other is not events]
            else:
                texts[
                    number if len(streams) == 2 else [len(t) < NEW for t in texts].index(True)
                ] += event.tokens
    assert texts == alone


def test_the_target_drafts_for_itself_in_a_session_of_its_own(target):
    """One object as target and as draft model: two memories, one set of weights, every draft
    accepted."""
    drafter = {"name": "small_model", "model": target, "depth": 4}
    out = specdec.generate(target, [ROWS[0]], drafter=drafter, max_new_tokens=10)
    assert out.report.tau == 5


# -------------------------------------------------------------------------------------------- seats


@pytest.mark.parametrize("chance", [Keyed, Coupled])
@pytest.mark.parametrize("drafter", ALONE, ids=title)
def test_tokens_depend_neither_on_seats_nor_on_order_nor_on_neighbours(
    drafter, chance, target, draft
):
    def run(order: list[int], seats: int | None) -> dict[int, list[int]]:
        out = specdec.generate(
            target,
            [ROWS[number] for number in order],
            drafter=suite.make(drafter, target, draft),
            temperature=1.0,
            max_new_tokens=NEW,
            request_ids=order,
            chance=chance(3),
            seats=seats,
        )
        assert out.finish_reasons == ["length"] * len(order)
        return {number: row.tolist() for number, row in zip(order, out.tokens, strict=True)}

    everybody = run([0, 1, 2, 3, 4], None)
    assert run([0, 1, 2, 3, 4], 2) == everybody
    assert run([4, 2, 0, 3, 1], 3) == everybody
    assert run([3, 1, 4, 0, 2], 1) == everybody


def test_more_seats_than_prompts_are_not_made(target):
    out = specdec.generate(target, ROWS[:2], max_new_tokens=3, drafter="none", seats=99)
    assert {len(step.live) for step in out.steps} == {2}


def test_a_seat_is_taken_as_soon_as_it_is_free(target):
    """Texts of different lengths: rounds are those of the seats' own loads, not of whole
    batches."""
    model = shared("llama_gqa", torch.float64)
    plain = [
        specdec.generate(target, [row], max_new_tokens=30, drafter="none").tokens[0].tolist()
        for row in ROWS
    ]
    ends = plain[0][4]
    eos, model.generation_config.eos_token_id = model.generation_config.eos_token_id, [ends]
    try:
        lengths = [(row.index(ends) + 1) if ends in row else 30 for row in plain]
        assert len(set(lengths)) > 1
        out = specdec.generate(target, ROWS, max_new_tokens=30, drafter="none", seats=2)
    finally:
        model.generation_config.eos_token_id = eos
    assert [len(row) for row in out.tokens] == lengths
    # when each seat is free, by always giving the next prompt the first free one
    free, rounds = ([0, 0], [])
    for length in lengths:
        seat = free.index(min(free))
        rounds.append((free[seat], free[seat] + length))
        free[seat] += length
    assert len(out.steps) == max(free)
    for number, (first, last) in enumerate(rounds):
        assert [step.number for step in out.steps if number in step.prompts] == list(
            range(first, last)
        )


def test_reports_count_live_rows_only_and_times_run_from_admission(target):
    out = specdec.generate(target, ROWS, max_new_tokens=8, drafter="none", seats=2)
    report = out.report
    assert report.tau == 1
    assert report.num_tokens == 8 * 5
    assert report.tau_per_row == [1.0] * 5
    assert report.rounds_per_row.tolist() == [8] * 5
    assert sum(int(step.live.sum()) for step in out.steps) == 40
    assert out.steps[-1].live.tolist() == [True, False]  # nobody waits any more
    assert out.steps[-1].prompts.tolist() == [4, -1]
    admitted = [one.admitted for one in report.served]
    assert admitted == sorted(admitted)
    assert admitted[2] > report.served[0].first_token > admitted[0]
    assert all(one.first_token < one.finished for one in report.served)
    assert all(0 < one < report.wall_seconds for one in report.finished_seconds)
    assert len(report.gaps) == 5 * 7
    assert report.prefill_seconds > 0
    assert report.wall_seconds > report.decode_seconds > 0


def test_events_name_the_prompt(target):
    found: dict[int, list[int]] = {number: [] for number in range(5)}
    for event in specdec.stream(target, ROWS, max_new_tokens=6, seats=2):
        found[event.row] += event.tokens
    out = specdec.generate(target, ROWS, max_new_tokens=6)
    assert list(found.values()) == [row.tolist() for row in out.tokens]


class Stops(Drafter):
    """Somebody presses Ctrl-C in its n-th round."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def propose(self, state: Any, chance: Any) -> TokenTree:
        self.rounds -= 1
        if self.rounds < 0:
            raise KeyboardInterrupt
        return TokenTree.root(state.roots)


def test_after_ctrl_c_what_is_finished_is_returned(target):
    whole = specdec.generate(target, ROWS, max_new_tokens=6, drafter="none")
    out = specdec.generate(target, ROWS, max_new_tokens=6, drafter=Stops(9), seats=1)
    assert out.finish_reasons == ["length", *["interrupted"] * 4]
    assert out.tokens[0].tolist() == whole.tokens[0].tolist()
    assert out.tokens[1].tolist() == whole.tokens[1].tolist()[:3]
    assert [len(row) for row in out.tokens] == [6, 3, 0, 0, 0]
    assert out.report.num_tokens == 9
    with pytest.raises(KeyboardInterrupt):  # nothing is finished
        specdec.generate(target, ROWS, max_new_tokens=6, drafter=Stops(3), seats=1)


def test_ctrl_c_ends_a_measurement_though_some_prompts_are_finished(target):
    """Half a batch must not be recorded as a whole one."""
    run = Run(*prepare(target, ROWS, max_new_tokens=6, drafter=Stops(9), seats=1))
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert [len(row) for row in run.output().tokens] == [6, 3, 0, 0, 0]


class Watching(Drafter):
    """Notes which calls the loop makes."""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls

    def begin(self, target: Any, rows: int, sampling: Any) -> None:
        self.calls.append(("begin", rows))

    def enter(self, rows: Any, state: Any) -> None:
        self.calls.append(("enter", list(rows), [state.text(row) for row in rows]))
        assert all(state.on_host.fresh[row] for row in rows)

    def propose(self, state: Any, chance: Any) -> TokenTree:
        self.calls.append(("propose", list(state.on_host.fresh)))
        return TokenTree.root(state.roots)

    def observe(self, state: Any) -> None:
        self.calls.append(("observe", list(state.on_host.lengths), list(state.on_host.live)))

    def leave(self, rows: Any) -> None:
        self.calls.append(("leave", list(rows)))


def test_a_state_says_what_is_left_and_forgets_who_sat_there_before(target, draft):
    """Room is what the text may still add; in a row's first round nothing was accepted yet."""
    prompts, firsts, accepted = {len(row): row for row in ROWS}, [], []

    class Watched(SmallModel):
        def propose(self, state, chance):
            for row, (length, room) in enumerate(
                zip(state.on_host.lengths, state.on_host.room, strict=True)
            ):
                if not state.on_host.live[row]:
                    continue
                number = state.on_host.texts[row]
                begun = max(n for n in prompts if number[:n] == prompts[n])
                assert room == NEW - (length - begun)
                assert state.on_host.fresh[row] == (length == begun)
                before = state.last.num_accepted[row]
                (firsts if length == begun else accepted).append(before)
            return super().propose(state, chance)

    specdec.generate(
        target, ROWS, drafter=Watched(draft, depth=3), temperature=1.0, max_new_tokens=NEW, seats=1
    )
    assert firsts == [0] * 5
    assert max(accepted) > 0


def test_memory_of_a_row_that_ended_stays_as_it_was(target, draft):
    lengths: list[list[int]] = [[], []]

    class Watched(SmallModel):
        def propose(self, state, chance):
            for row, live in enumerate(state.on_host.live):
                if not live:  # for good: nobody waits for the seat
                    lengths[row].append(state.memory._memory.lengths[row])
            return super().propose(state, chance)

    specdec.generate(target, ROWS[:3], drafter=Watched(draft), max_new_tokens=NEW, seats=2)
    assert max(map(len, lengths)) > 2
    assert all(len(set(found)) <= 1 for found in lengths)


def test_a_drafter_is_told_who_comes_and_goes(target):
    calls: list[Any] = []
    specdec.generate(
        target, [[1, 2], [3], [4, 5, 6]], max_new_tokens=2, drafter=Watching(calls), seats=2
    )
    assert calls == [
        ("begin", 2),
        ("enter", [0, 1], [[1, 2], [3]]),
        ("propose", [True, True]),
        ("observe", [3, 2], [True, True]),
        ("propose", [False, False]),
        ("observe", [4, 3], [False, False]),
        ("leave", [0, 1]),
        ("enter", [0], [[4, 5, 6]]),
        ("propose", [True, False]),
        ("observe", [4, 3], [True, False]),
        ("propose", [False, False]),
        ("observe", [5, 3], [False, False]),
        ("leave", [0]),
    ]


def test_an_earlier_state_stays_what_it_was(target):
    """A drafter may keep states: nothing that comes later changes them."""
    states, texts = [], []

    class Keeping(Drafter):
        def propose(self, state: Any, chance: Any) -> TokenTree:
            states.append(state)
            texts.append(
                (
                    [state.text(row) for row in range(state.rows)],
                    state.tokens.clone(),
                    list(state.on_host.lengths),
                )
            )
            return TokenTree.root(state.roots)

    specdec.generate(target, ROWS, max_new_tokens=4, drafter=Keeping(), seats=2)
    assert len(states) > 8
    for state, (text, tokens, lengths) in zip(states, texts, strict=True):
        assert [state.text(row) for row in range(state.rows)] == text
        assert torch.equal(state.tokens, tokens)
        assert state.on_host.lengths == lengths


# ------------------------------------------------------------------------------------------- memory


class Books:
    """Every memory that is opened, and how many bytes were in use at most."""

    def __init__(self, monkeypatch: Any) -> None:
        self.open: list[Any] = []
        self.most = 0
        begin, end = Memory.__init__, Memory.close

        def opened(memory: Memory, *arguments: Any, **more: Any) -> None:
            begin(memory, *arguments, **more)
            self.open.append(weakref.ref(memory))
            self.count()

        def closed(memory: Memory) -> None:
            self.count()
            end(memory)

        monkeypatch.setattr(Memory, "__init__", opened)
        monkeypatch.setattr(Memory, "close", closed)

    def count(self) -> None:
        self.most = max(self.most, self.in_use())

    def in_use(self) -> int:
        return sum(memory.nbytes for ref in self.open if (memory := ref()) is not None)

    def bytes(self) -> int:
        gc.collect()
        return self.in_use()


@pytest.fixture
def books(monkeypatch):
    return Books(monkeypatch)


class Fails(Drafter):
    def propose(self, state: Any, chance: Any) -> TokenTree:
        raise RuntimeError("something else")


@pytest.mark.parametrize("drafter", DRAFTERS, ids=title)
def test_memory_is_freed_when_a_run_ends_fails_or_is_closed(drafter, books, target, draft):
    made = suite.make(drafter, target, draft)
    out = specdec.generate(target, ROWS, drafter=made, max_new_tokens=4, seats=2)
    assert books.bytes() == 0
    assert out.report.cache_bytes["target"] > 0
    events = specdec.stream(target, ROWS, drafter=made, max_new_tokens=4)
    next(events)
    assert books.bytes() > 0
    events.close()  # type: ignore[attr-defined]
    assert books.bytes() == 0
    events = specdec.stream(target, ROWS, drafter=made, max_new_tokens=4)
    next(events)
    del events
    assert books.bytes() == 0
    with pytest.raises(RuntimeError, match="something else"):
        specdec.generate(target, ROWS, drafter=Fails(), max_new_tokens=4)
    assert books.bytes() == 0


@pytest.mark.parametrize("drafter", DRAFTERS, ids=title)
def test_there_are_never_two_memories_where_one_suffices(drafter, books, target, draft):
    """Parts of the target draft in its memory; heads keep one layer."""
    alone = specdec.generate(
        target, [ROWS[2]], drafter="none", max_new_tokens=30
    ).report.cache_bytes["target"]
    books.most = 0
    out = specdec.generate(
        target, [ROWS[2]], drafter=suite.make(drafter, target, draft), max_new_tokens=30
    )
    own = out.report.cache_bytes
    with_memory = (
        *("small_model", "cascade", "eagle", "eagle3", "dflash", "dspark", "priced"),
        *("quantized_self", "sparse_self", "pard", "mtp"),
    )
    assert (own["drafter"] > 0) == (drafter["name"] in with_memory)
    assert books.most <= own["target"] + own["drafter"]
    # a tree has no more than 40 nodes here; one that costs decide may have more
    most = 96 if drafter["name"] == "priced" else 40
    assert own["target"] <= alone * (14 + 30 + most) / (14 + 30 + 1)


def test_what_a_drafter_opened_is_closed_whoever_still_holds_it(target, draft):
    held = []

    class Held(SmallModel):
        def begin(self, target, rows, sampling):
            super().begin(target, rows, sampling)
            held.append(self._session)

    specdec.generate(target, ROWS[:1], drafter=Held(draft), max_new_tokens=3)
    assert [session.nbytes for session in held] == [0]


def test_a_broken_up_run_leaves_the_target_usable(target):
    events = specdec.stream(target, ROWS, max_new_tokens=5)
    next(events)
    again = specdec.generate(target, ROWS, max_new_tokens=5)
    events.close()  # type: ignore[attr-defined]
    assert [len(row) for row in again.tokens] == [5] * 5


# ----------------------------------------------------------------------------- the user's own model


def everything(model: torch.nn.Module) -> list[tuple[str, int]]:
    """Every attribute of every module and config, by identity."""
    found = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            content = tuple(map(id, value.values())) if isinstance(value, dict) else ()
            found.append((f"{name}.{key}", id(value), content))
    return found


def test_a_users_model_is_never_written_to_not_even_for_a_moment(monkeypatch):
    """While a pass runs, its config says what the user chose, and nothing in it is new."""
    model = specdec.load(shared("llama_gqa")).model
    before, config = everything(model), dict(vars(model.config))
    seen = []

    class Looking(Drafter):
        taps = ("head",)

        def propose(self, state: Any, chance: Any) -> TokenTree:
            seen.append((everything(model) == before, dict(vars(model.config)) == config))
            return TokenTree.root(state.roots)

    attended = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments: Any, **more: Any) -> Any:
        attended.append((everything(model) == before, dict(vars(model.config)) == config))
        return attend(*arguments, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    specdec.generate(model, ROWS, drafter=Looking(), max_new_tokens=3)
    assert attended
    assert seen
    assert set(attended) | set(seen) == {(True, True)}
    for name in ("layer_skip", "early_exit"):
        made = suite.make({"name": name}, specdec.load(model), specdec.load(model))
        specdec.generate(model, ROWS, drafter=made, max_new_tokens=3)
    assert everything(model) == before


def test_a_transformers_that_moved_what_we_lean_on_is_named(monkeypatch):
    """The error speaks of transformers, not of the model."""
    from transformers import PreTrainedConfig

    monkeypatch.setattr(
        PreTrainedConfig,
        "_attn_implementation",
        property(lambda self: "sdpa", lambda self, value: None),
    )
    with pytest.raises(
        ValueError, match=r"this version of transformers \(.*\) has changed.*_attn_implementation"
    ):
        specdec.load(shared("llama_gqa"))


# ------------------------------------------------------------------------------ the random schedule


@pytest.mark.parametrize("seed", range(3))
def test_a_session_under_a_random_schedule_is_what_its_texts_say(seed):
    """Rows are read, scored, kept, left and filled anew in any order; logits are those of the plain
    text."""
    model, random = shared("llama_gqa", torch.float64), np.random.default_rng(seed)
    session = specdec.load(model).open(3, 4)
    texts: list[list[int]] = [[], [], []]
    with torch.inference_mode():
        for _ in range(12):
            empty = [row for row in range(3) if not texts[row] or random.random() < 0.2]
            if empty:
                session.release(empty)
                new = [random.integers(0, 97, random.integers(1, 9)).tolist() for _ in empty]
                padded = torch.tensor([row + [0] * (8 - len(row)) for row in new])
                session.read(padded, [len(row) for row in new], rows=empty)
                for row, text in zip(empty, new, strict=True):
                    texts[row] = list(text)
            parents = [
                [-1, *(int(random.integers(0, node)) for node in range(1, 5))] for _ in range(3)
            ]
            tree = TokenTree(torch.from_numpy(random.integers(0, 97, (3, 5))), parents)
            logits = session.score(tree).logits
            paths = [tree.path(row, int(random.integers(0, 5))) for row in range(3)]
            for row, path in enumerate(paths):
                nodes = [0, *path]
                text = texts[row] + tree.tokens[row, nodes].tolist()
                plain = model(torch.tensor([text])).logits[0, -len(nodes) :]
                assert (plain - logits[row, nodes]).abs().max() < 1e-9
                texts[row] = text if len(text) < 40 else []
            kept = np.array([path + [-1] * (4 - len(path)) for path in paths])
            session.keep(kept, [len(path) for path in paths])
            session._memory.check_integrity()
